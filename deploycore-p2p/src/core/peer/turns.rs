//! Shares by weight.

use deploycore::port::swarm::Priority;

/// Whose turn it is at something that artifacts share, one direction: start-time fair queueing. Whoever moves bytes goes back in the
/// order by as many, divided by its weight; so what artifacts move, as long as all of them can, is as their weights.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The highest turn that was taken.
    now: u64,
}

/// Where an artifact stands in the order: the least goes first. In bytes of the largest weight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn(u64);

/// The largest weight.
const UNIT: u64 = Priority::High.weight() as u64;

impl Turns {
    /// The turn of one that begins now.
    pub(super) fn first(&self) -> Turn {
        Turn(self.now)
    }

    /// An artifact's turn. One that could not use its turns for a while catches up by `slack` bytes, not by all that it missed.
    pub(super) fn of(&self, turn: Turn, slack: u64) -> Turn {
        Turn(turn.0.max(self.now.saturating_sub(slack * UNIT)))
    }

    /// Notes that an artifact moves `bytes`.
    pub(super) fn take(&mut self, turn: &mut Turn, bytes: u64, slack: u64, priority: Priority) {
        let start = self.of(*turn, slack);
        *turn = Turn(start.0 + cost(bytes, priority));
        // Others do not lag behind because a rollback went first.
        if priority != Priority::Rollback {
            self.now = self.now.max(start.0);
        }
    }
}

impl Turn {
    /// Takes back what was not moved.
    pub(super) fn give_back(&mut self, bytes: u64, priority: Priority) {
        self.0 = self.0.saturating_sub(cost(bytes, priority));
    }
}

fn cost(bytes: u64, priority: Priority) -> u64 {
    bytes * UNIT / u64::from(priority.weight())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLACK: u64 = 4 << 20;

    /// Each takes blocks when its turn is the least.
    fn share(weights: [Priority; 2], can: impl Fn(usize) -> [bool; 2]) -> [u64; 2] {
        let mut turns = Turns::default();
        let mut own = [turns.first(); 2];
        let mut moved = [0; 2];
        for step in 0..10_000 {
            let able = can(step);
            let Some(next) = (0..2).filter(|at| able[*at]).min_by_key(|at| turns.of(own[*at], SLACK)) else { continue };
            turns.take(&mut own[next], 1 << 20, SLACK, weights[next]);
            moved[next] += 1;
        }
        moved
    }

    #[test]
    fn what_artifacts_move_is_as_their_weights() {
        assert_eq!(share([Priority::Normal, Priority::High], |_| [true; 2]), [2_000, 8_000]);
        assert_eq!(share([Priority::Normal; 2], |_| [true; 2]), [5_000; 2]);
        // Where now and then one only can, the other makes up for it.
        let [normal, high] = share([Priority::Normal, Priority::High], |step| [true, step % 10 != 0]);
        assert!((1_999..=2_001).contains(&normal), "{normal} {high}");
    }

    #[test]
    fn one_that_could_not_for_long_catches_up_by_a_little() {
        let [one, other] = share([Priority::Normal; 2], |step| [true, step >= 5_000]);
        assert_eq!(one + other, 10_000);
        assert!((7_495..=7_500).contains(&one), "{one}");
    }
}
