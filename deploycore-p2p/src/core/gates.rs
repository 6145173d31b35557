//! The gates of a region, as its trackers name them.

use std::time::Duration;

use super::message::{ConnId, Contact};
use super::time::Instant;

/// How long the word of a tracker counts whose connection ended, as long as another gives its own: as long as a tracker itself takes a gate for
/// living that is not connected. One that was started again has not heard of all gates yet.
const MEMORY: Duration = Duration::from_secs(10);

/// What each tracker said last, taken together: a gate counts as long as one tracker names it.
#[derive(Debug, Default)]
pub(super) struct Gates {
    told: Vec<Told>,
    all: Vec<Contact>,
}

#[derive(Debug)]
struct Told {
    tracker: ConnId,
    gates: Vec<Contact>,
    /// When the connection ended.
    gone_at: Option<Instant>,
}

impl Gates {
    /// All of them, each once; the address is that of the newest word.
    pub(super) fn all(&self) -> &[Contact] {
        &self.all
    }

    /// A tracker names the gates that it knows.
    pub(super) fn told(&mut self, tracker: ConnId, gates: Vec<Contact>, now: Instant) {
        self.told.retain(|told| told.tracker != tracker);
        self.told.push(Told { tracker, gates, gone_at: None });
        self.forget(now);
        self.merge();
    }

    /// The connection to a tracker ended.
    pub(super) fn disconnected(&mut self, tracker: ConnId, now: Instant) {
        for told in self.told.iter_mut().filter(|told| told.tracker == tracker) {
            told.gone_at = Some(now);
        }
    }

    /// Forgets what was said on connections that ended long ago, unless nobody has said anything since. Whether anything was forgotten.
    pub(super) fn forget(&mut self, now: Instant) -> bool {
        let is_old = |told: &Told| told.gone_at.is_some_and(|gone| now.since(gone) >= MEMORY);
        if self.told.iter().all(|told| told.gone_at.is_some()) {
            return false;
        }
        let before = self.told.len();
        self.told.retain(|told| !is_old(told));
        let forgot = self.told.len() != before;
        if forgot {
            self.merge();
        }
        forgot
    }

    fn merge(&mut self) {
        self.all.clear();
        for contact in self.told.iter().rev().flat_map(|told| &told.gates) {
            if !self.all.iter().any(|known| known.peer == contact.peer) {
                self.all.push(contact.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::message::PeerId;

    fn contact(gate: u64, addr: &str) -> Contact {
        Contact { peer: PeerId(gate), addr: addr.into() }
    }

    fn named(gates: &Gates) -> Vec<u64> {
        let mut named: Vec<u64> = gates.all().iter().map(|contact| contact.peer.0).collect();
        named.sort_unstable();
        named
    }

    #[test]
    fn a_tracker_that_starts_again_is_not_the_end_of_a_gate() {
        let mut gates = Gates::default();
        let (old, new) = (ConnId(1), ConnId(2));
        gates.told(old, vec![contact(1, "a:1"), contact(2, "b:1")], Instant::ZERO);
        gates.disconnected(old, Instant::ZERO);
        assert!(!gates.forget(Instant::at(MEMORY * 2)));
        assert_eq!(named(&gates), [1, 2], "nobody knows better");
        gates.told(new, vec![contact(2, "b:2")], Instant::at(MEMORY / 2));
        assert_eq!(named(&gates), [1, 2], "the other has yet to come");
        assert!(gates.all().contains(&contact(2, "b:2")) && !gates.all().contains(&contact(2, "b:1")));
        assert!(gates.forget(Instant::at(MEMORY * 2)));
        assert_eq!(named(&gates), [2]);
    }

    #[test]
    fn a_gate_counts_as_long_as_one_tracker_names_it() {
        let mut gates = Gates::default();
        gates.told(ConnId(1), vec![contact(1, "a:1")], Instant::ZERO);
        gates.told(ConnId(2), vec![contact(2, "b:1")], Instant::ZERO);
        assert_eq!(named(&gates), [1, 2]);
        gates.told(ConnId(1), vec![], Instant::ZERO);
        assert_eq!(named(&gates), [2]);
    }
}
