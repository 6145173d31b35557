//! What happens next: events in the order of their time, those of one instant in the order in which they were put.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use super::Event;
use crate::core::time::Instant;

/// Nearly all events happen one of a few fixed times after they are put, which keeps them in order without more ado: one queue for each
/// such delay. The others lie in slots of time, unordered, and go through a heap that is small when their slot has come.
#[derive(Debug)]
pub(super) struct Queue {
    now: Instant,
    sequence: u64,
    fixed: Vec<(Duration, VecDeque<(Key, Event)>)>,
    heap: BinaryHeap<Reverse<(Key, u32)>>,
    later: BTreeMap<u64, Vec<Reverse<(Key, u32)>>>,
    /// What the heap's entries mean, and which places are free: the heap moves its entries about, so they are small.
    events: Vec<Option<Event>>,
    free: Vec<u32>,
}

type Key = (Instant, u64);

/// The slot that an instant lies in.
fn slot(at: Instant) -> u64 {
    at.since_start().as_micros() as u64 / 128
}

impl Queue {
    /// An empty queue that expects these delays.
    pub(super) fn new(delays: &[Duration]) -> Self {
        Self {
            now: Instant::ZERO,
            sequence: 0,
            fixed: delays.iter().map(|delay| (*delay, VecDeque::new())).collect(),
            heap: BinaryHeap::new(),
            later: BTreeMap::new(),
            events: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Puts an event at this time after the last one that was taken.
    pub(super) fn after(&mut self, delay: Duration, event: Event) {
        match self.fixed.iter().position(|(fixed, _)| *fixed == delay) {
            Some(at) => {
                let key = self.key(self.now + delay);
                self.fixed[at].1.push_back((key, event));
            }
            None => self.at(self.now + delay, event),
        }
    }

    /// Puts an event at this instant.
    pub(super) fn at(&mut self, at: Instant, event: Event) {
        let key = self.key(at.max(self.now));
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() as u32 - 1
        });
        self.events[place as usize] = Some(event);
        match slot(key.0) {
            later if later > slot(self.now) => self.later.entry(later).or_default().push(Reverse((key, place))),
            _ => self.heap.push(Reverse((key, place))),
        }
    }

    fn key(&mut self, at: Instant) -> Key {
        self.sequence += 1;
        (at, self.sequence)
    }

    /// The next event that lies in no slot to come, and which fixed delay it has.
    fn front(&self) -> Option<(Key, Option<usize>)> {
        let fronts = self.fixed.iter().enumerate().filter_map(|(at, (_, queue))| Some((queue.front()?.0, Some(at))));
        let top = self.heap.peek().map(|Reverse((key, _))| (*key, None));
        fronts.chain(top).min()
    }

    /// Takes the next event.
    pub(super) fn pop(&mut self) -> Option<(Instant, Event)> {
        let mut next = self.front();
        while let Some(later) = self.later.first_entry() {
            if next.is_some_and(|((at, _), _)| slot(at) < *later.key()) {
                break;
            }
            self.heap.extend(later.remove());
            next = self.front();
        }
        let ((now, _), from) = next?;
        self.now = now;
        if let Some(at) = from {
            let (_, event) = self.fixed[at].1.pop_front()?;
            return Some((now, event));
        }
        let Reverse((_, place)) = self.heap.pop()?;
        self.free.push(place);
        Some((now, self.events[place as usize].take()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_forward_and_ties_keep_their_order() {
        let millis = Duration::from_millis;
        let mut queue = Queue::new(&[millis(1), millis(5)]);
        for (delay, machine) in [(5, 0), (1, 1), (3, 2), (1, 3), (5, 4), (3, 5)] {
            queue.after(millis(delay), Event::Start(machine));
        }
        queue.at(Instant::at(millis(1)), Event::Start(6));
        let mut order = Vec::new();
        while let Some((now, event)) = queue.pop() {
            let Event::Start(machine) = event else { panic!("{event:?}") };
            order.push((now.since_start().as_millis(), machine));
            if machine == 3 {
                queue.after(millis(1), Event::Start(7));
                queue.at(Instant::ZERO, Event::Start(8));
            }
        }
        let expected = [(1, 1), (1, 3), (1, 6), (1, 8), (2, 7), (3, 2), (3, 5), (5, 0), (5, 4)];
        assert_eq!(order, expected);
    }
}
