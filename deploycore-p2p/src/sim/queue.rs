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
    heap: BinaryHeap<Entry>,
    /// The slots up to this one are in the heap.
    slot: u64,
    /// The slots after it, as many as there are: each where its number has its remainder. How many entries lie in them.
    soon: Vec<Vec<Entry>>,
    in_soon: usize,
    later: BTreeMap<u64, Vec<Entry>>,
    /// What the heap's entries mean, and which places are free: the heap moves its entries about, so they are small.
    events: Vec<Option<Event>>,
    free: Vec<u32>,
}

type Key = (Instant, u64);
type Entry = Reverse<(Key, u32)>;

/// Slots that are kept ready: about a second of them.
const SOON: u64 = 8_192;

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
            slot: 0,
            soon: vec![Vec::new(); SOON as usize],
            in_soon: 0,
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
        let entry = Reverse((key, place));
        match slot(key.0) {
            past if past <= self.slot => self.heap.push(entry),
            soon if soon - self.slot <= SOON => {
                self.soon[(soon % SOON) as usize].push(entry);
                self.in_soon += 1;
            }
            later => self.later.entry(later).or_default().push(entry),
        }
    }

    fn key(&mut self, at: Instant) -> Key {
        self.sequence += 1;
        (at, self.sequence)
    }

    /// The next event that lies in no slot to come, and which fixed delay it has.
    fn front(&self) -> Option<(Key, Option<usize>)> {
        let mut front = self.heap.peek().map(|Reverse((key, _))| (*key, None));
        for (at, (_, queue)) in self.fixed.iter().enumerate() {
            if let Some((key, _)) = queue.front()
                && front.is_none_or(|(first, _)| *key < first)
            {
                front = Some((*key, Some(at)));
            }
        }
        front
    }

    /// Puts the next slot that has something into the heap, unless `before` is sooner; `false` if there was none.
    fn advance(&mut self, before: Option<Instant>) -> bool {
        let limit = before.map_or(u64::MAX, slot);
        let later = self.later.first_key_value().map_or(u64::MAX, |(slot, _)| *slot);
        while self.slot < limit && (self.in_soon > 0 || later < u64::MAX) {
            self.slot = if self.in_soon > 0 { self.slot + 1 } else { later.min(limit) };
            let soon = &mut self.soon[(self.slot % SOON) as usize];
            let mut found = !soon.is_empty();
            self.in_soon -= soon.len();
            self.heap.extend(soon.drain(..));
            if later <= self.slot {
                self.heap.extend(self.later.pop_first().into_iter().flat_map(|(_, entries)| entries));
                found = true;
            }
            if found {
                return true;
            }
        }
        false
    }

    /// Takes the next event.
    pub(super) fn pop(&mut self) -> Option<(Instant, Event)> {
        let mut next = self.front();
        while self.advance(next.map(|((at, _), _)| at)) {
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
