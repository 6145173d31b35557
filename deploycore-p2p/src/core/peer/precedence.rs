//! A rollback before all others.

use std::time::Duration;

use crate::core::time::Instant;

/// Whether others wait for a rollback, one direction.
///
/// While one moves, nothing else does: what would be moved beside it would take of its bandwidth. A rollback that has little use for that,
/// because those it deals with are slow or have nothing, would keep everything else from moving: after [`PATIENCE`] the others
/// may move beside it for as long, and so on in turn.
#[derive(Debug)]
pub(super) struct Precedence {
    /// A rollback moved lately: others wait until then.
    held_until: Instant,
    /// Others do not wait before.
    open_until: Instant,
    /// Others were stopped since it began.
    begun: bool,
    /// When a rollback last made use of it.
    used_at: Instant,
    /// Bytes since the last look: of rollbacks, and in all.
    urgent: u64,
    moved: u64,
    /// The most bytes a second of late.
    best: f64,
    looked_at: Instant,
}

/// How long others still wait when a rollback moves nothing: it is asked for in waves while it spreads.
const HELD: Duration = Duration::from_millis(100);
/// How long others wait for a rollback that makes little use of it, and then do not.
const PATIENCE: Duration = Duration::from_secs(2);
/// A rollback makes use of it with this part of the bandwidth.
const USED: f64 = 0.125;
/// What of the best rate remains at each look, four times a second: after a minute, half.
const FADING: f64 = 0.997;

impl Precedence {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            held_until: Instant::ZERO,
            open_until: Instant::ZERO,
            begun: false,
            used_at: now,
            urgent: 0,
            moved: 0,
            best: 0.0,
            looked_at: now,
        }
    }

    /// A rollback begins to move something. Gives whether what is under way of others is to be stopped.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        if now < self.open_until {
            return false;
        }
        let first = !self.begun || now >= self.held_until;
        if !self.begun {
            self.used_at = now;
        }
        (self.begun, self.held_until) = (true, now + HELD);
        first
    }

    /// Until when others wait, if they do. `moving` says whether a rollback has something under way now: then it is until that is over.
    /// When they need not, they go on, and are to be stopped when a rollback begins again.
    pub(super) fn holds(&mut self, moving: bool, now: Instant) -> Option<Instant> {
        let until = if moving { Instant::FAR } else { self.held_until };
        let holds = now >= self.open_until && now < until;
        self.begun &= holds;
        holds.then_some(until)
    }

    /// Bytes were moved.
    pub(super) fn moved(&mut self, bytes: u64, urgent: bool) {
        self.moved += bytes;
        if urgent {
            self.urgent += bytes;
        }
    }

    /// Sees, a few times a second, whether a rollback makes use of it. `moving` as above.
    pub(super) fn look(&mut self, moving: bool, now: Instant) {
        let span = now.since(self.looked_at).as_secs_f64().max(0.01);
        let (urgent, moved) = (self.urgent as f64 / span, self.moved as f64 / span);
        (self.urgent, self.moved, self.looked_at) = (0, 0, now);
        self.best = moved.max(self.best * FADING);
        self.begun &= moving || now < self.held_until;
        let used = urgent > 0.0 && urgent >= self.best * USED;
        if !self.begun || used {
            self.used_at = now;
        } else if now.since(self.used_at) >= PATIENCE {
            (self.begun, self.open_until) = (false, now + PATIENCE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::at(Duration::from_millis(millis))
    }

    /// Looks each quarter of a second while a rollback moves this part of a megabyte a second; gives when others might move.
    fn open(part: u64) -> Vec<u64> {
        let mut precedence = Precedence::new(at(0));
        precedence.moved(250_000, false);
        precedence.look(false, at(250));
        let mut open = Vec::new();
        for millis in (500..10_000).step_by(250) {
            precedence.begin(at(millis));
            precedence.moved(250_000 * part / 100, true);
            precedence.look(true, at(millis));
            if precedence.holds(true, at(millis)).is_none() {
                open.push(millis);
            }
        }
        open
    }

    #[test]
    fn others_wait_for_a_rollback_as_long_as_it_uses_the_bandwidth() {
        assert_eq!(open(100), Vec::<u64>::new());
        assert_eq!(open(20), Vec::<u64>::new());
        let slow = open(5);
        assert_eq!(slow.first(), Some(&2_500), "{slow:?}");
        assert!((12..=20).contains(&slow.len()), "about half of the time: {slow:?}");
    }

    /// Nothing else has moved yet, to compare it with.
    #[test]
    fn others_do_not_wait_for_one_that_never_moves() {
        let mut precedence = Precedence::new(at(0));
        let mut holds = |millis| {
            precedence.begin(at(millis));
            precedence.look(true, at(millis));
            precedence.holds(true, at(millis)).is_some()
        };
        let held: Vec<u64> = (250..4_250).step_by(250).filter(|millis| holds(*millis)).collect();
        assert_eq!(held, (250..2_250).step_by(250).collect::<Vec<_>>());
    }

    #[test]
    fn others_are_stopped_once() {
        let mut precedence = Precedence::new(at(0));
        assert!(precedence.begin(at(10)) && !precedence.begin(at(20)));
        assert_eq!(precedence.holds(false, at(119)), Some(at(120)));
        assert_eq!(precedence.holds(false, at(120)), None);
        assert!(precedence.begin(at(130)), "a new one");
    }
}
