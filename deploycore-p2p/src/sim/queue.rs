//! What happens next in a part of a region: events in the order of their time.
//!
//! Those of one instant have an order that does not depend on how the region is divided: first what was put at that instant, then what takes
//! a fixed time, both in the order of the places that put them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use super::{Event, Place};
use crate::core::time::Instant;

/// Nearly all events happen one of a few fixed times after they are put, which keeps them in order without more ado: one line for each
/// such delay, and one for what comes from each other part. The others lie in slots of time, unordered, and go through a heap that is
/// small when their slot has come.
#[derive(Debug)]
pub(super) struct Queue {
    now: Instant,
    sequence: u64,
    delays: Vec<Duration>,
    /// One for each delay, then one for each part.
    lines: Vec<VecDeque<Dated>>,
    /// The events of the lines at this instant, the last first.
    batch: Vec<(u32, Event)>,
    batch_at: Instant,
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

/// When it happens, and which place put it.
#[derive(Debug)]
pub(super) struct Dated {
    pub(super) at: Instant,
    pub(super) by: u32,
    pub(super) event: Event,
}

/// The instant, the place that put it, in which order it did, and where the event lies.
type Entry = Reverse<(Instant, u32, u64, u32)>;

/// Slots that are kept ready: about a second of them.
const SOON: u64 = 8_192;

/// The slot that an instant lies in.
fn slot(at: Instant) -> u64 {
    at.since_start().as_micros() as u64 / 128
}

impl Queue {
    /// An empty queue that expects these delays, and events from so many parts.
    pub(super) fn new(delays: &[Duration], parts: usize) -> Self {
        Self {
            now: Instant::ZERO,
            sequence: 0,
            delays: delays.to_vec(),
            lines: (0..delays.len() + parts).map(|_| VecDeque::new()).collect(),
            batch: Vec::new(),
            batch_at: Instant::FAR,
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
    pub(super) fn after(&mut self, delay: Duration, by: Place, event: Event) {
        let at = self.now + delay;
        match self.delays.iter().position(|fixed| *fixed == delay) {
            Some(line) => self.lines[line].push_back(Dated { at, by: by as u32, event }),
            None => self.at(at, by, event),
        }
    }

    /// Puts an event at this instant.
    pub(super) fn at(&mut self, at: Instant, by: Place, event: Event) {
        self.put(Dated { at: at.max(self.now), by: by as u32, event });
    }

    fn put(&mut self, Dated { at, by, event }: Dated) {
        self.sequence += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() as u32 - 1
        });
        self.events[place as usize] = Some(event);
        let entry = Reverse((at, by, self.sequence, place));
        match slot(at) {
            past if past <= self.slot => self.heap.push(entry),
            soon if soon - self.slot <= SOON => {
                self.soon[(soon % SOON) as usize].push(entry);
                self.in_soon += 1;
            }
            later => self.later.entry(later).or_default().push(entry),
        }
    }

    /// Puts what comes from another part, after all that came from it before and after the events that were taken.
    pub(super) fn arrive(&mut self, part: usize, mut line: VecDeque<Dated>, timed: Vec<Dated>) {
        self.lines[self.delays.len() + part].append(&mut line);
        for dated in timed {
            self.put(dated);
        }
    }

    /// When the next event of the lines is, and in which it is alone at that instant, if so.
    fn lined(&self) -> (Instant, Option<usize>) {
        if !self.batch.is_empty() {
            return (self.batch_at, None);
        }
        let (mut first, mut alone) = (Instant::FAR, None);
        for (number, line) in self.lines.iter().enumerate() {
            let Some(front) = line.front().filter(|front| front.at <= first) else { continue };
            let follows = line.get(1).is_some_and(|second| second.at == front.at);
            alone = (front.at < first && !follows).then_some(number);
            first = front.at;
        }
        (first, alone)
    }

    fn heaped(&self) -> Instant {
        self.heap.peek().map_or(Instant::FAR, |Reverse((at, ..))| *at)
    }

    /// Puts the next slot that has something into the heap, unless `before` is sooner; `false` if there was none.
    fn advance(&mut self, before: Instant) -> bool {
        let limit = slot(before);
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

    /// Takes the next event if it is before this instant, or else says when it is.
    pub(super) fn pop(&mut self, before: Instant) -> Result<(Instant, Event), Instant> {
        let (lined, alone) = self.lined();
        let mut next = lined.min(self.heaped());
        while self.advance(next) {
            next = lined.min(self.heaped());
        }
        if next >= before {
            return Err(next);
        }
        self.now = next;
        if self.heaped() == next
            && let Some(Reverse((.., place))) = self.heap.pop()
            && let Some(event) = self.events[place as usize].take()
        {
            self.free.push(place);
            return Ok((next, event));
        }
        if let Some(dated) = alone.and_then(|line| self.lines[line].pop_front()) {
            return Ok((next, dated.event));
        }
        if self.batch.is_empty() {
            self.gather(next);
        }
        let (_, event) = self.batch.pop().expect("the lines have an event at this instant");
        Ok((next, event))
    }

    /// Takes the events of one instant out of the lines.
    fn gather(&mut self, at: Instant) {
        for line in &mut self.lines {
            while let Some(dated) = line.pop_front_if(|dated| dated.at == at) {
                self.batch.push((dated.by, dated.event));
            }
        }
        if self.batch.len() > 1 {
            self.batch.sort_by_key(|(by, _)| *by);
            self.batch.reverse();
        }
        self.batch_at = at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn taken(queue: &mut Queue) -> Option<(u128, Place)> {
        let (now, event) = queue.pop(Instant::FAR).ok()?;
        let Event::Start(machine) = event else { panic!("{event:?}") };
        Some((now.since_start().as_millis(), machine))
    }

    #[test]
    fn time_goes_forward_and_ties_are_in_the_order_of_places() {
        let mut queue = Queue::new(&[MILLI, 5 * MILLI], 1);
        for (delay, by, machine) in [(5, 9, 0), (1, 2, 1), (3, 1, 2), (1, 1, 3), (5, 8, 4), (3, 0, 5), (1, 1, 9)] {
            queue.after(delay * MILLI, by, Event::Start(machine));
        }
        queue.at(Instant::at(MILLI), 7, Event::Start(6));
        let mut order = Vec::new();
        while let Some((now, machine)) = taken(&mut queue) {
            order.push((now, machine));
            if machine == 3 {
                queue.after(MILLI, 0, Event::Start(7));
                queue.at(Instant::ZERO, 3, Event::Start(8));
            }
        }
        let expected = [(1, 6), (1, 3), (1, 8), (1, 9), (1, 1), (2, 7), (3, 5), (3, 2), (5, 4), (5, 0)];
        assert_eq!(order, expected);
    }

    #[test]
    fn what_another_part_puts_is_as_if_it_were_put_here() {
        let events = [(1, 4, 0), (1, 2, 1), (1, 3, 2), (2, 3, 3), (2, 1, 4), (7, 2, 5), (7, 5, 6)];
        let (mut all, mut half) = (Queue::new(&[MILLI], 1), Queue::new(&[MILLI], 1));
        let (mut line, mut timed) = (VecDeque::new(), Vec::new());
        for (delay, by, machine) in events {
            let (at, event) = (Instant::at(delay * MILLI), || Event::Start(machine));
            all.after(delay * MILLI, by, event());
            match (by % 2, delay) {
                (0, _) => half.after(delay * MILLI, by, event()),
                (_, 1) => line.push_back(Dated { at, by: by as u32, event: event() }),
                _ => timed.push(Dated { at, by: by as u32, event: event() }),
            }
        }
        half.arrive(0, line, timed);
        let order = |mut queue| std::iter::from_fn(move || taken(&mut queue)).collect::<Vec<_>>();
        let all = order(all);
        assert_eq!((all.len(), all), (events.len(), order(half)));
    }

    #[test]
    fn what_is_not_before_the_limit_stays() {
        let mut queue = Queue::new(&[], 0);
        queue.at(Instant::at(3 * MILLI), 0, Event::Start(0));
        assert_eq!(queue.pop(Instant::at(3 * MILLI)).unwrap_err(), Instant::at(3 * MILLI));
        assert_eq!(taken(&mut queue), Some((3, 0)));
        assert_eq!(queue.pop(Instant::FAR).unwrap_err(), Instant::FAR);
    }
}
