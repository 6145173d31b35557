//! What the parts of a region tell each other.
//!
//! The parts go on side by side for as long as nothing that one of them does can reach another: the latency. Then each gives each other
//! one what is for that.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::Place;
use super::member::Announcement;
use super::queue::Dated;
use crate::core::time::Instant;

/// What one part has for another after a step, and how far it is.
#[derive(Debug)]
pub(super) struct Mail {
    /// What comes after the latency, in this order.
    pub(super) line: VecDeque<Dated>,
    /// What comes later.
    pub(super) timed: Vec<Dated>,
    pub(super) announcements: Vec<(Place, Announcement)>,
    /// When the sender goes on, or what it has sent to any part wants to be looked at.
    pub(super) next: Instant,
    /// Completions that the sender waits for.
    pub(super) left: usize,
}

impl Default for Mail {
    fn default() -> Self {
        let (line, timed, announcements) = (VecDeque::new(), Vec::new(), Vec::new());
        Self { line, timed, announcements, next: Instant::FAR, left: 0 }
    }
}

impl Mail {
    /// An empty one with room for as much.
    pub(super) fn like(&self) -> Self {
        Self {
            line: VecDeque::with_capacity(self.line.len()),
            timed: Vec::with_capacity(self.timed.len()),
            announcements: Vec::with_capacity(self.announcements.len()),
            ..Self::default()
        }
    }
}

/// A part's way to another, and from there.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) part: usize,
    to: Sender<Mail>,
    from: Receiver<Mail>,
}

impl Route {
    /// Gives the other part its mail. That it is gone will be seen when it answers.
    pub(super) fn give(&self, mail: Mail) {
        let _ = self.to.send(mail);
    }

    /// Waits for the other part's mail; `None` if its thread is gone.
    pub(super) fn take(&self) -> Option<Mail> {
        self.from.recv().ok()
    }
}

/// The routes of each of so many parts, in the order of the others.
pub(super) fn routes(parts: usize) -> Vec<Vec<Route>> {
    let mut all: Vec<Vec<Route>> = (0..parts).map(|_| Vec::new()).collect();
    for one in 0..parts {
        for other in one + 1..parts {
            let (to_other, from_one) = channel();
            let (to_one, from_other) = channel();
            all[one].push(Route { part: other, to: to_other, from: from_other });
            all[other].push(Route { part: one, to: to_one, from: from_one });
        }
    }
    all
}
