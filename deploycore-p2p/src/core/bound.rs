//! How fast a swarm can be.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The links of a region, in bytes a second. Those of the machines count as equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Links {
    /// What a machine can receive.
    pub down: u64,
    /// What a machine can send.
    pub up: u64,
    /// What the store may give, all gates together.
    pub store: u64,
}

/// What makes the bound what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Term {
    /// A machine's link in.
    Downlink,
    /// What the store may give.
    Store,
    /// What the store and all links out can give together.
    Uplinks,
}

impl Term {
    /// As a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Downlink => "downlink",
            Self::Store => "store",
            Self::Uplinks => "uplinks",
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The shortest time in which all machines can have an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// How long.
    #[serde(with = "seconds")]
    pub time: Duration,
    /// What makes it so.
    pub term: Term,
}

impl Links {
    /// The bound for an artifact of `size` bytes and this many machines: max(F/d, F/B, N × F/(B + N × u)), with F the size, N the machines, d and u
    /// what one receives and sends, and B what the store gives. A rate of 0 makes it endless.
    pub fn bound(&self, size: u64, machines: usize) -> Bound {
        let (size, machines) = (size as f64, machines as f64);
        let all = self.store as f64 + machines * self.up as f64;
        let terms = [
            (size / self.down as f64, Term::Downlink),
            (size / self.store as f64, Term::Store),
            (size * machines / all, Term::Uplinks),
        ];
        // Nothing of nothing takes no time.
        let known = terms.map(|(seconds, term)| (if seconds.is_nan() { 0.0 } else { seconds }, term));
        let (seconds, term) = known.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, Term::Downlink));
        Bound { time: Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX), term }
    }
}

impl Bound {
    /// A time as a multiple of this one; infinite where the bound is no time at all.
    pub fn ratio(&self, time: Duration) -> f64 {
        if self.time.is_zero() { f64::INFINITY } else { time.as_secs_f64() / self.time.as_secs_f64() }
    }
}

/// Durations as numbers of seconds, as people and plots read them.
pub(crate) mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(time.as_secs_f64())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_term_binds_where_it_is_the_largest() {
        let links = |down, up, store| Links { down, up, store };
        let bound = |links: Links, machines| {
            let Bound { time, term } = links.bound(1_000, machines);
            (time.as_secs_f64(), term)
        };
        assert_eq!(bound(links(10, 100, 1_000), 3), (100.0, Term::Downlink));
        assert_eq!(bound(links(100, 100, 10), 3), (100.0, Term::Store));
        assert_eq!(bound(links(100, 5, 25), 15), (150.0, Term::Uplinks));
        assert_eq!(links(0, 1, 1).bound(1, 1), Bound { time: Duration::MAX, term: Term::Downlink });
        assert_eq!(links(0, 0, 0).bound(0, 0).time, Duration::ZERO);
    }
}
