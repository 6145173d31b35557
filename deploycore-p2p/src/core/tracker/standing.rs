//! How far a region is with an artifact, as its members say.

use std::collections::BTreeMap;
use std::time::Duration;

use deploycore::model::Digest;
use serde::{Deserialize, Serialize};

use super::swarm::Swarm;
use crate::core::bound::{Bound, Links, seconds};
use crate::core::message::{Addr, PeerId, Standing, Waiting};
use crate::core::time::Instant;

/// Members named for what they wait for.
const MAX_NAMED: usize = 16;

/// How far a region is with an artifact. What members say is as old as their last announce: a second, or in large swarms up to a minute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SwarmStanding {
    /// Of what.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Members that take part now, those that began with all of it among them.
    pub members: usize,
    /// Machines that fetch it or did, those that left when they had it among them.
    pub fetchers: usize,
    /// Of those, how many have it.
    pub complete: usize,
    /// The time in which half of the fetchers had it, each from its own start; `None` before.
    #[serde(with = "optional_seconds")]
    pub p50: Option<Duration>,
    /// The same for 99 of 100.
    #[serde(with = "optional_seconds")]
    pub p99: Option<Duration>,
    /// The same for all.
    #[serde(with = "optional_seconds")]
    pub max: Option<Duration>,
    /// The longest that a fetcher is at it, or was.
    #[serde(with = "seconds")]
    pub elapsed: Duration,
    /// What the fetchers hold of all that they are to hold, from 0 to 1.
    pub share: f64,
    /// What `elapsed` will be for all at the speed so far: `elapsed` by `share`. `None` before anyone has anything.
    #[serde(with = "optional_seconds")]
    pub expected: Option<Duration>,
    /// The shortest time in which all could have it, where the links are known.
    pub bound: Option<Bound>,
    /// `expected` as a multiple of the bound, and what is known of p50, p99 and max.
    pub ratios: Option<Ratios>,
    /// Bytes that fetchers took from the store, in verified pieces.
    pub from_store: u64,
    /// Bytes that they took from each other.
    pub from_peers: u64,
    /// Where nothing moves, and why: some of those, the ones with the least first.
    pub waiting: Vec<(Addr, Waiting)>,
}

/// Times as multiples of the bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Ratios {
    /// What is to be expected for all at the speed so far.
    pub expected: Option<f64>,
    /// Half of the fetchers had it.
    pub p50: Option<f64>,
    /// 99 of 100.
    pub p99: Option<f64>,
    /// All.
    pub max: Option<f64>,
}

/// What the members of one artifact said that are gone by now, having fetched all of it.
pub(super) type Gone = BTreeMap<PeerId, Standing>;

impl Swarm {
    pub(super) fn standing(&self, links: Option<&Links>, now: Instant) -> SwarmStanding {
        let pieces = f64::from(self.shape.pieces());
        let mut took = Vec::new();
        let (mut elapsed, mut held, mut fetchers) = (Duration::ZERO, 0.0, 0);
        let (mut from_store, mut from_peers) = (0_u64, 0_u64);
        let mut waiting = Vec::new();
        let gone = self.gone.values().map(|standing| (standing, None));
        let here = self.members.iter().map(|member| (&member.standing, Some(member)));
        for (standing, member) in here.chain(gone) {
            let Some(millis) = standing.millis else { continue };
            let mut time = Duration::from_millis(millis.into());
            fetchers += 1;
            // Whoever announces may say what it likes.
            from_store = standing.from_store.saturating_add(from_store);
            from_peers = standing.from_peers.saturating_add(from_peers);
            match member {
                Some(member) if !member.have.is_full() => {
                    time += now.since(member.heard);
                    held += f64::from(member.have.count()) / pieces;
                    if let Some(reason) = standing.waiting {
                        waiting.push((member.have.count(), member.contact.addr.clone(), reason));
                    }
                }
                _ => {
                    held += 1.0;
                    took.push(time);
                }
            }
            elapsed = elapsed.max(time);
        }
        took.sort_unstable();
        waiting.sort_by_key(|(count, ..)| *count);
        waiting.truncate(MAX_NAMED);
        let within = |share: f64| {
            let rank = (fetchers as f64 * share).ceil() as usize;
            took.get(rank.max(1) - 1).copied()
        };
        let (p50, p99, max) = (within(0.5), within(0.99), within(1.0));
        let share = if fetchers == 0 { 1.0 } else { held / fetchers as f64 };
        let expected = max.or_else(|| Duration::try_from_secs_f64(elapsed.as_secs_f64() / share).ok());
        let bound = links.map(|links| links.bound(self.shape.size(), fetchers));
        let ratios = bound.map(|bound| {
            let ratio = |time: Option<Duration>| time.map(|time| bound.ratio(time)).filter(|ratio| ratio.is_finite());
            Ratios { expected: ratio(expected), p50: ratio(p50), p99: ratio(p99), max: ratio(max) }
        });
        SwarmStanding {
            digest: self.shape.digest(),
            size: self.shape.size(),
            members: self.members.len(),
            fetchers,
            complete: took.len(),
            p50,
            p99,
            max,
            elapsed,
            share,
            expected,
            bound,
            ratios,
            from_store,
            from_peers,
            waiting: waiting.into_iter().map(|(_, addr, reason)| (addr, reason)).collect(),
        }
    }
}

mod optional_seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[expect(clippy::ref_option, reason = "serde calls it so")]
    pub(super) fn serialize<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        time.map(|time| time.as_secs_f64()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        let seconds: Option<f64> = Option::deserialize(deserializer)?;
        seconds.map(|seconds| Duration::try_from_secs_f64(seconds).map_err(D::Error::custom)).transpose()
    }
}
