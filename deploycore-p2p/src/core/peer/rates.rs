//! Rate limits: of the node, and of each artifact.

use deploycore::port::swarm::Limits;

use super::Peer;
use super::artifact::Artifact;
use crate::core::message::Payload;
use crate::core::time::{Bucket, Instant};

/// What some limits allow now.
#[derive(Debug)]
pub(super) struct Rates {
    limits: Limits,
    ingress: Bucket,
    egress: Bucket,
    disk: Bucket,
}

/// A way that bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From another member to the disk.
    In,
    /// From the disk to another member.
    Out,
}

impl Rates {
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        let Limits { ingress, egress, disk } = limits;
        let [ingress, egress, disk] = [ingress, egress, disk].map(|rate| Bucket::new(rate, now));
        Self { limits, ingress, egress, disk }
    }

    pub(super) fn set(&mut self, limits: Limits, now: Instant) {
        self.limits = limits;
        self.ingress.set_rate(limits.ingress, now);
        self.egress.set_rate(limits.egress, now);
        self.disk.set_rate(limits.disk, now);
    }

    /// Whether there is a limit on this way.
    pub(super) fn is_limited(&self, way: Way) -> bool {
        let Limits { ingress, egress, disk } = self.limits;
        disk.is_some() || if way == Way::In { ingress.is_some() } else { egress.is_some() }
    }

    fn of(&mut self, way: Way) -> [&mut Bucket; 2] {
        [if way == Way::In { &mut self.ingress } else { &mut self.egress }, &mut self.disk]
    }
}

impl<B: Payload> Peer<B> {
    /// Takes as many bytes of an artifact's and the node's limits if they all allow something now; else the node looks again when they do.
    pub(super) fn take_rate(&mut self, artifact: usize, way: Way, bytes: u64, now: Instant) -> bool {
        if !self.is_limited(&self.artifacts[artifact], way) {
            return true;
        }
        let artifact = &mut self.artifacts[artifact].rates;
        let buckets = self.rates.of(way).into_iter().chain(artifact.of(way));
        if let Some(when) = buckets.filter_map(|bucket| bucket.allows(now).err()).max() {
            self.tokens_at = self.tokens_at.min(when);
            return false;
        }
        self.rates.of(way).into_iter().chain(artifact.of(way)).for_each(|bucket| bucket.owe(bytes));
        true
    }

    /// Whether an artifact is limited on this way, by a limit of its own or the node's.
    pub(super) fn is_limited(&self, artifact: &Artifact<B>, way: Way) -> bool {
        self.rates.is_limited(way) || artifact.rates.is_limited(way)
    }

    /// Gives back what was taken for nothing.
    pub(super) fn give_back_rate(&mut self, artifact: usize, way: Way, bytes: u64) {
        if self.is_limited(&self.artifacts[artifact], way) {
            let artifact = &mut self.artifacts[artifact].rates;
            self.rates.of(way).into_iter().chain(artifact.of(way)).for_each(|bucket| bucket.give_back(bytes));
        }
    }
}
