//! Turns: in which order the jobs of one priority are claimed.
//!
//! Jobs are claimed by priority, then turn, then age. Where the oldest job goes first, all have the same turn. Where services take turns, the jobs of a
//! service that are ready stand in a line, one for each priority, and each has a turn after the one before it; a line that was empty begins behind the turn
//! that claims have come to. So a line of any length advances by one job while each other line does. It is start-time fair queueing (Goyal,
//! Vin and Cheng, 1996) with jobs of equal cost.

use serde::{Deserialize, Serialize};

/// Which job goes first among those of one priority.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The one that was enqueued first, whatever its service. A service with many jobs holds up all others.
    #[default]
    Oldest,
    /// Services take turns, however many jobs each has waiting.
    ///
    /// Among the jobs of one priority without a concurrency key: a job that becomes ready while no other of its service waits is claimed after at most
    /// two of each other service, and one that waits behind others of its service after at most two of each other service since the one before it was
    /// claimed or, in the long run, one. The jobs of one service are claimed in the order in which they became ready. With services that have
    /// one job at a time, it is the order of age.
    ///
    /// Not counted are jobs that came back from a worker, which keep their turn and go first, and those whose key was full, which have kept theirs.
    /// A job with an earliest start takes its turn when that has passed; one that
    /// [takes the place](crate::model::OlderJobs::CancelQueued) of others takes the first of their turns. Turns of other cancelled jobs are not given
    /// again. Jobs of one service that several calls enqueue at once may share a turn, so that such a service has as many jobs a turn as
    /// there are such calls.
    FairShare,
}

impl Order {
    /// As it is written in settings and databases.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Oldest => "oldest",
            Self::FairShare => "fair_share",
        }
    }
}

/// Turns given under one order, and more than there ever will be. Those of the next order are all greater.
pub const TURNS_OF_AN_ORDER: u64 = 1 << 40;

/// The order that holds, and since which turn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Turns {
    /// The order.
    pub order: Order,
    /// No job that was enqueued under this order has an earlier turn, none that was enqueued before has a later one.
    pub first: u64,
}

impl Turns {
    /// The turns from now on. What was enqueued under another order goes before all that will be.
    #[must_use]
    pub fn under(self, order: Order) -> Self {
        if self.order == order { self } else { Self { order, first: self.first + TURNS_OF_AN_ORDER } }
    }

    /// The turn of a job that becomes ready.
    pub fn last_in(self, line: Line) -> u64 {
        match self.order {
            Order::Oldest => self.first,
            Order::FairShare => self.first.max(line.claimed).max(line.last) + 1,
        }
    }

    /// The turn of a job that becomes ready and takes the place of all that waits in its line.
    pub fn in_place_of(self, line: Line, first: Option<u64>) -> u64 {
        match (self.order, first) {
            (Order::FairShare, Some(first)) => first,
            _ => self.last_in(Line { last: 0, ..line }),
        }
    }
}

/// What the turn of the next job of a service hangs on, among the jobs of one priority.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Line {
    /// The greatest turn of a job of any service that was ever claimed and is kept; 0 for none.
    pub claimed: u64,
    /// The greatest turn of a job of the service that is queued; 0 for none.
    pub last: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_begins_behind_what_was_claimed_and_goes_on_behind_its_last() {
        let turns = Turns::default().under(Order::FairShare);
        let first = turns.first;
        assert_eq!(turns.last_in(Line::default()), first + 1);
        assert_eq!(turns.last_in(Line { claimed: first + 7, last: 0 }), first + 8);
        assert_eq!(turns.last_in(Line { claimed: first + 7, last: first + 9 }), first + 10);
        assert_eq!(turns.in_place_of(Line { claimed: first + 7, last: first + 9 }, Some(first + 8)), first + 8);
        assert_eq!(turns.in_place_of(Line { claimed: first + 7, last: first + 9 }, None), first + 8);
    }

    #[test]
    fn each_order_begins_behind_all_turns_of_the_one_before() {
        let oldest = Turns::default();
        assert_eq!((oldest.under(Order::Oldest), oldest.last_in(Line { claimed: 3, last: 4 })), (oldest, 0));
        let fair = oldest.under(Order::FairShare);
        let late = fair.last_in(Line { claimed: fair.first + 1_000_000_000_000, last: 0 });
        let again = fair.under(Order::Oldest);
        assert!(again.first > late && again.last_in(Line { claimed: late, last: late }) == again.first);
        assert_eq!(again.in_place_of(Line::default(), Some(late)), again.first);
    }
}
