//! Whether the workers had the time to show that they live.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// An instant by both clocks of this host: the steady one stands still while the host is suspended, the wall clock does not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) steady: Instant,
    pub(super) wall: SystemTime,
}

impl Now {
    pub(super) fn read() -> Self {
        Self { steady: Instant::now(), wall: SystemTime::now() }
    }

    /// The time since `earlier`, by the clock that shows more. A wall clock that was set forward costs a wait and no job.
    fn since(self, earlier: Self) -> Duration {
        let by_wall = self.wall.duration_since(earlier.wall).unwrap_or_default();
        self.steady.duration_since(earlier.steady).max(by_wall)
    }
}

/// What a reaper may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Rescue,
    /// Heartbeats may be missing through no fault of the workers: see that writes arrive, for this long yet.
    Wait(Duration),
}

/// The reaper's touch with the queue. It is kept by answers to writes alone, since heartbeats are writes: a queue may answer reads while
/// it takes none. It breaks when `longest_gap` passes without an answer, and is trusted once it has held for `grace`.
#[derive(Debug)]
pub(super) struct Contact {
    longest_gap: Duration,
    grace: Duration,
    touch: Option<Touch>,
}

/// Answers without a longer gap between them.
#[derive(Debug, Clone, Copy)]
struct Touch {
    first: Now,
    last: Now,
}

impl Contact {
    pub(super) fn new(longest_gap: Duration, grace: Duration) -> Self {
        Self { longest_gap, grace, touch: None }
    }

    pub(super) fn step(&self, now: Now) -> Step {
        let Some(touch) = self.unbroken(now) else { return Step::Wait(self.grace) };
        // The steady clock: a host that was suspended in between did not wait.
        let held = touch.last.steady.duration_since(touch.first.steady);
        match self.grace.saturating_sub(held) {
            Duration::ZERO => Step::Rescue,
            left => Step::Wait(left),
        }
    }

    /// The queue answered a write at `now`; whether the touch began anew.
    pub(super) fn answered(&mut self, now: Now) -> bool {
        let unbroken = self.unbroken(now);
        self.touch = Some(Touch { first: unbroken.map_or(now, |touch| touch.first), last: now });
        unbroken.is_none()
    }

    fn unbroken(&self, now: Now) -> Option<Touch> {
        self.touch.filter(|touch| now.since(touch.last) <= self.longest_gap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens, at seconds of the steady clock and of the wall clock.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        Answer(u64, u64),
        /// And the seconds to wait that the step shall say; `None` where it may rescue.
        Step(u64, u64, Option<u64>),
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_touch_that_held_for_the_grace_is_trusted() {
        use Event::{Answer, Step as At};
        let table: [(&str, &[Event]); 8] = [
            ("at the start", &[At(0, 0, Some(3))]),
            ("after one answer", &[Answer(0, 0), At(1, 1, Some(3))]),
            ("within the grace", &[Answer(0, 0), Answer(2, 2), At(2, 2, Some(1))]),
            ("after the grace", &[Answer(0, 0), Answer(2, 2), Answer(3, 3), At(5, 5, None)]),
            ("no answer during the grace", &[Answer(0, 0), At(3, 3, Some(3)), At(5, 5, Some(3))]),
            ("a gap", &[Answer(0, 0), Answer(3, 3), At(8, 8, Some(3)), Answer(8, 8), At(8, 8, Some(3))]),
            ("a suspended host", &[Answer(0, 0), Answer(3, 3), At(4, 104, Some(3))]),
            ("a wall clock set back", &[Answer(0, 1000), Answer(3, 1003), At(5, 5, None)]),
        ];
        let (start, wall) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let at = |steady, by_wall| Now {
            steady: start + Duration::from_secs(steady),
            wall: wall + Duration::from_secs(by_wall),
        };
        for (case, events) in table {
            let mut contact = Contact::new(Duration::from_secs(4), Duration::from_secs(3));
            for event in events {
                match *event {
                    Answer(steady, by_wall) => {
                        contact.answered(at(steady, by_wall));
                    }
                    At(steady, by_wall, wait) => {
                        let wanted = wait.map_or(Step::Rescue, |wait| Step::Wait(Duration::from_secs(wait)));
                        assert_eq!(contact.step(at(steady, by_wall)), wanted, "{case}: {event:?}");
                    }
                }
            }
        }
    }
}
