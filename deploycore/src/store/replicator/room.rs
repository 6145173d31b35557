//! The memory that all lanes share, and who gives way to whom in a lane.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::model::CopyPriority;

const CLASSES: usize = CopyPriority::ALL.len();

/// Bytes on their way, over all lanes.
///
/// Half of the room is set aside for the lanes in equal shares, so that one whose region hangs cannot take what the others need; the other
/// half is for whoever comes. Copies of each priority may hold one span in any case: nobody waits for those who wait for him.
#[derive(Debug)]
pub(super) struct Room {
    total: u64,
    /// Set aside for each lane.
    share: u64,
    lanes: Mutex<Vec<LaneRoom>>,
    /// Rung whenever someone may find what it waits for.
    changed: Notify,
}

#[derive(Debug, Default)]
struct LaneRoom {
    /// By precedence, as all here.
    held: [Held; CLASSES],
    /// Copies that still move bytes.
    moving: [usize; CLASSES],
    /// Who waits, first the one whose turn is next.
    waiting: BTreeSet<Turn>,
    turns: u64,
}

/// The precedence of a copy, then the order of coming.
type Turn = (usize, u64);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    bytes: u64,
    parts: usize,
}

impl LaneRoom {
    fn bytes(&self) -> u64 {
        self.held.iter().map(|held| held.bytes).sum()
    }

    fn parts(&self) -> usize {
        self.held.iter().map(|held| held.parts).sum()
    }

    fn gives_way(&self, class: usize) -> bool {
        self.moving[..class].iter().any(|copies| *copies > 0)
    }
}

impl Room {
    pub(super) fn new(total: u64, lanes: usize) -> Self {
        let lanes = lanes.max(1);
        let share = total / 2 / lanes as u64;
        let lanes = Mutex::new((0..lanes).map(|_| LaneRoom::default()).collect());
        Self { total, share, lanes, changed: Notify::new() }
    }

    /// What each of `copies` of a lane may hold at once if every lane makes as many.
    pub(super) fn share_of(&self, copies: usize) -> u64 {
        self.total / self.lock().len() as u64 / copies.max(1) as u64
    }

    /// The bytes and the number of a lane's parts on their way.
    pub(super) fn in_flight(&self, lane: usize) -> (u64, usize) {
        let lanes = self.lock();
        (lanes[lane].bytes(), lanes[lane].parts())
    }

    fn has_room(&self, lanes: &[LaneRoom], lane: usize, class: usize, bytes: u64) -> bool {
        if lanes[lane].held[class] == Held::default() {
            return true;
        }
        let taken = lanes.iter().enumerate().map(|(index, others)| {
            let more = if index == lane { bytes } else { 0 };
            (others.bytes() + more).max(self.share)
        });
        taken.sum::<u64>() <= self.total
    }

    fn change<T>(&self, change: impl FnOnce(&mut Vec<LaneRoom>) -> T) -> T {
        let changed = change(&mut self.lock());
        self.changed.notify_waiters();
        changed
    }

    fn lock(&self) -> MutexGuard<'_, Vec<LaneRoom>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A copy that moves bytes in a lane.
#[derive(Debug)]
pub(super) struct Moving {
    room: Arc<Room>,
    lane: usize,
    class: AtomicUsize,
    is_over: AtomicBool,
    /// Spans that it holds, and waits for.
    holds: AtomicUsize,
    waits: AtomicUsize,
}

impl Moving {
    pub(super) fn begin(room: Arc<Room>, lane: usize, priority: CopyPriority) -> Arc<Self> {
        let class = class_of(priority);
        room.change(|lanes| lanes[lane].moving[class] += 1);
        Arc::new(Self { room, lane, class: class.into(), is_over: false.into(), holds: 0.into(), waits: 0.into() })
    }

    /// Someone has made the copy more urgent.
    pub(super) fn raise(&self, priority: CopyPriority) {
        let (class, lane) = (class_of(priority), self.lane);
        self.room.change(|lanes| {
            let before = self.class.load(Relaxed);
            if class < before && !self.is_over.load(Relaxed) {
                self.class.store(class, Relaxed);
                lanes[lane].moving[before] -= 1;
                lanes[lane].moving[class] += 1;
            }
        });
    }

    /// Its bytes are over: the others need not wait for what it does yet.
    pub(super) fn end(&self) {
        let lane = self.lane;
        self.room.change(|lanes| {
            if !self.is_over.swap(true, Relaxed) {
                lanes[lane].moving[self.class.load(Relaxed)] -= 1;
            }
        });
    }

    /// Whether it stands still for others: for a more urgent copy, or until there is room.
    pub(super) fn is_held_up(&self) -> bool {
        self.gives_way() || (self.waits.load(Relaxed) > 0 && self.holds.load(Relaxed) == 0)
    }

    fn gives_way(&self) -> bool {
        self.room.lock()[self.lane].gives_way(self.class.load(Relaxed))
    }

    /// Waits while a more urgent copy of the lane moves.
    pub(super) async fn turn(&self) {
        self.until(|| (!self.gives_way()).then_some(())).await;
    }

    /// Waits for its turn, for the room of a part, and until fewer than `most` parts of the lane are on their way.
    pub(super) async fn hold_part(self: &Arc<Self>, bytes: u64, most: impl Fn() -> usize) -> Hold {
        self.hold_span(Held { bytes, parts: 1 }, most).await
    }

    /// Waits for its turn, and for the room of a copy that is made in one go.
    pub(super) async fn hold(self: &Arc<Self>, bytes: u64) -> Hold {
        self.hold_span(Held { bytes, parts: 0 }, || usize::MAX).await
    }

    async fn hold_span(self: &Arc<Self>, ask: Held, most: impl Fn() -> usize) -> Hold {
        let place = Place::take(self);
        let class = self.until(|| self.try_hold(&place, ask, most())).await;
        Hold { moving: self.clone(), class, held: ask }
    }

    fn try_hold(&self, place: &Place<'_>, ask: Held, most: usize) -> Option<usize> {
        let mut lanes = self.room.lock();
        let class = self.class.load(Relaxed);
        place.keep(&mut lanes[self.lane], class);
        let lane = &lanes[self.lane];
        let is_next = lane.waiting.first() == Some(&place.turn());
        let goes = is_next && !lane.gives_way(class) && (ask.parts == 0 || lane.parts() < most.max(1));
        if !goes || !self.room.has_room(&lanes, self.lane, class, ask.bytes) {
            return None;
        }
        let held = &mut lanes[self.lane].held[class];
        held.bytes += ask.bytes;
        held.parts += ask.parts;
        self.holds.fetch_add(1, Relaxed);
        Some(class)
    }

    /// Tries at once, and whenever something has changed.
    async fn until<T>(&self, mut attempt: impl FnMut() -> Option<T>) -> T {
        loop {
            let changed = self.room.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = attempt() {
                return found;
            }
            changed.await;
        }
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        self.end();
    }
}

/// A place among those that wait in a lane; it is given up when the wait is dropped, too.
struct Place<'m> {
    moving: &'m Moving,
    turn: Mutex<Turn>,
}

impl<'m> Place<'m> {
    fn take(moving: &'m Moving) -> Self {
        let class = moving.class.load(Relaxed);
        moving.waits.fetch_add(1, Relaxed);
        let mut lanes = moving.room.lock();
        let lane = &mut lanes[moving.lane];
        lane.turns += 1;
        let turn = (class, lane.turns);
        lane.waiting.insert(turn);
        Self { moving, turn: Mutex::new(turn) }
    }

    fn turn(&self) -> Turn {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the place of a copy that is more urgent by now.
    fn keep(&self, lane: &mut LaneRoom, class: usize) {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if turn.0 != class {
            lane.waiting.remove(&turn);
            turn.0 = class;
            lane.waiting.insert(*turn);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let turn = self.turn();
        self.moving.waits.fetch_sub(1, Relaxed);
        self.moving.room.change(|lanes| lanes[self.moving.lane].waiting.remove(&turn));
    }
}

/// Room that is taken until this is dropped.
#[derive(Debug)]
pub(super) struct Hold {
    moving: Arc<Moving>,
    class: usize,
    held: Held,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let (moving, class, Held { bytes, parts }) = (&self.moving, self.class, self.held);
        moving.holds.fetch_sub(1, Relaxed);
        moving.room.change(|lanes| {
            let held = &mut lanes[moving.lane].held[class];
            held.bytes -= bytes;
            held.parts -= parts;
        });
    }
}

fn class_of(priority: CopyPriority) -> usize {
    usize::try_from(priority.precedence()).expect("a place in an order")
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use CopyPriority::{Emergency, Normal, Rollback};

    fn now<T>(wait: impl Future<Output = T>) -> Option<T> {
        wait.now_or_never()
    }

    #[test]
    fn a_lane_that_hangs_leaves_the_others_their_share() {
        let room = Arc::new(Room::new(100, 5));
        let hung = Moving::begin(room.clone(), 0, Normal);
        let held: Vec<_> = std::iter::from_fn(|| now(hung.hold(10))).collect();
        assert_eq!(held.len(), 6, "the half for all, and its own share of the other");
        for lane in 1..5 {
            let other = Moving::begin(room.clone(), lane, Normal);
            let own = now(other.hold(10)).expect("its share");
            assert!(now(other.hold(10)).is_none());
            drop(own);
        }
        drop(held);
        assert_eq!(room.in_flight(0), (0, 0));
    }

    #[test]
    fn whoever_is_more_urgent_goes_first_and_the_others_wait_for_its_bytes() {
        let room = Arc::new(Room::new(30, 1));
        let (normal, urgent) = (Moving::begin(room.clone(), 0, Normal), Moving::begin(room.clone(), 0, Normal));
        let held = now(normal.hold(20)).unwrap();
        urgent.raise(Emergency);
        assert!(normal.is_held_up() && !urgent.is_held_up());
        assert!(now(normal.hold(1)).is_none() && now(normal.turn()).is_none());
        let part = now(urgent.hold_part(20, || 1)).expect("the first of its priority, whatever is taken");
        assert!(now(urgent.hold_part(1, || 1)).is_none(), "one part at once");
        assert_eq!(room.in_flight(0), (40, 1));
        drop((part, held));

        let first = Moving::begin(room.clone(), 0, Rollback);
        assert!(now(urgent.turn()).is_none());
        first.end();
        assert!(now(urgent.turn()).is_some() && now(normal.turn()).is_none());
        drop(urgent);
        assert!(now(normal.hold(30)).is_some());
        // Another lane has nothing to do with it.
        let room = Arc::new(Room::new(30, 2));
        let _rollback = Moving::begin(room.clone(), 0, Rollback);
        assert!(now(Moving::begin(room, 1, Normal).turn()).is_some());
    }

    #[tokio::test]
    async fn those_who_wait_come_in_their_order_and_a_dropped_wait_holds_nobody() {
        let room = Arc::new(Room::new(10, 1));
        let copy = Moving::begin(room.clone(), 0, Normal);
        let held = copy.hold(10).await;
        let mut given_up = Box::pin(copy.hold(10));
        let mut large = Box::pin(copy.hold(10));
        let mut small = Box::pin(copy.hold(1));
        assert!(now(&mut given_up).is_none() && now(&mut large).is_none() && now(&mut small).is_none());
        drop(held);
        drop(given_up);
        assert!(now(&mut small).is_none(), "the large one came first");
        let held = large.await;
        assert!(now(&mut small).is_none());
        drop(held);
        small.await;
    }
}
