//! Whether a gate can do its work, or leaves it to others.

use std::time::Duration;

use tokio::time::Instant as Clock;

/// Whether the gate can do its work.
#[derive(Debug, Default)]
pub(super) struct Health {
    pub(super) store: Part,
    pub(super) counts: Part,
    away_until: Option<Clock>,
}

/// The first and the last of its failures since it worked.
#[derive(Debug, Default)]
pub(super) struct Part {
    failures: Option<(Clock, Clock)>,
}

/// A part that has failed for so long is left alone...
const PATIENCE: Duration = Duration::from_secs(5);
/// ...for so long at least.
const AWAY: Duration = Duration::from_secs(30);

impl Part {
    pub(super) fn note(&mut self, works: bool, now: Clock) {
        self.failures = if works { None } else { Some((self.failures.map_or(now, |(first, _)| first), now)) };
    }
}

impl Health {
    /// Whether the gate is to leave its artifacts to others now, for a while.
    pub(super) fn leaves(&mut self, now: Clock) -> bool {
        let fails = |part: &Part| part.failures.is_some_and(|(first, last)| last - first >= PATIENCE);
        let leaves = fails(&self.store) || fails(&self.counts);
        if leaves {
            (self.store, self.counts, self.away_until) = (Part::default(), Part::default(), Some(now + AWAY));
        }
        leaves
    }

    /// Counts are tried to be written all the while; whether the store works again is seen by coming back.
    pub(super) fn is_away(&mut self, now: Clock) -> bool {
        let is_away = self.away_until.is_some_and(|until| now < until || self.counts.failures.is_some());
        if !is_away {
            self.away_until = None;
        }
        is_away
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_only_fails_for_long_is_left_alone_until_it_may_work_again() {
        let (start, mut health) = (Clock::now(), Health::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        health.store.note(false, at(0));
        assert!(!health.leaves(at(60)), "nobody has asked it since");
        health.store.note(true, at(61));
        health.store.note(false, at(62));
        health.store.note(false, at(66));
        assert!(!health.leaves(at(66)) && !health.is_away(at(66)));
        health.store.note(false, at(67));
        assert!(health.leaves(at(67)) && health.is_away(at(67)) && health.is_away(at(96)));
        assert!(!health.is_away(at(97)) && !health.leaves(at(97)), "it is given another chance");
    }

    #[test]
    fn counts_that_cannot_be_written_are_waited_for() {
        let (start, mut health) = (Clock::now(), Health::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        (0..=5).for_each(|second| health.counts.note(false, at(second)));
        assert!(health.leaves(at(5)));
        health.counts.note(false, at(60));
        assert!(health.is_away(at(61)));
        health.counts.note(true, at(62));
        assert!(!health.is_away(at(62)));
    }
}
