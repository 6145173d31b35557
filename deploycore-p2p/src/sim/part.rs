//! A part of a region: some of its members, and how it goes on beside the other parts.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use deploycore::model::Digest;
use fastrand::Rng;

use super::mail::{Mail, Route};
use super::member::{Inbox, Member, Pipe};
use super::queue::Queue;
use super::{Event, Place, SHARED_SECONDS, Settings, Shared, Token, addr, id};
use crate::core::gate::{Gate, Record};
use crate::core::message::Role;
use crate::core::peer::{self, Peer};
use crate::core::shape::Shape;
use crate::core::time::Instant;
use crate::core::tracker::{self, Tracker};

/// How long a piece takes to be verified and written.
pub(super) const STORING: Duration = Duration::from_micros(500);
/// How long after its own end, and after the tracker's, the gate connects to the tracker.
const GATE_BACK: Duration = Duration::from_millis(100);
const TRACKER_BACK: Duration = Duration::from_millis(250);

pub(super) struct Part {
    pub(super) settings: Arc<Settings>,
    /// The artifacts; what else stands by artifact has their order.
    pub(super) shapes: Arc<[Shape]>,
    pub(super) now: Instant,
    pub(super) queue: Queue,
    pub(super) peer_settings: Arc<peer::Settings>,
    /// How many places a part has. The last has the rest, and with it the tracker and the gate.
    span: usize,
    first: Place,
    pub(super) members: Vec<Member>,
    /// Of each member, close together: others put into them.
    inboxes: Vec<Inbox>,
    hub: Option<Hub>,
    /// What leaves and what enters each zone, and how many bytes entered.
    pub(super) out_of: Vec<Pipe>,
    pub(super) into: Vec<Pipe>,
    pub(super) crossed: Vec<u64>,
    /// For the other parts, by their numbers.
    mail: Vec<Mail>,
    /// When the first of that wants to be looked at.
    mailed: Instant,
    /// Bytes that machines which died had received for nothing.
    pub(super) wasted: u64,
    /// Completions that are waited for.
    pub(super) left: usize,
    pub(super) events: u64,
}

/// What there is once in a region.
pub(super) struct Hub {
    pub(super) tracker: Tracker,
    pub(super) gate: Gate,
    pub(super) records: Vec<Record>,
    pub(super) store_bytes: u64,
}

impl Part {
    /// A region in so many parts, at most as many as there are machines.
    pub(super) fn divide(settings: Settings, parts: usize) -> Vec<Self> {
        let artifacts: &[&[u8]] = if settings.second.is_some() { &[b"simulated", b"second"] } else { &[b"simulated"] };
        let shape = |name: &&[u8]| Shape::new(Digest::of(name), settings.size).with_max_block(settings.peer.max_block);
        let shapes: Arc<[Shape]> = artifacts.iter().map(shape).collect();
        let mut rng = Rng::with_seed(settings.seed);
        let mut hub = Some(Hub {
            // It has run for long; one that starts anew has not.
            tracker: Tracker::new(
                tracker::Settings { settle: Duration::ZERO, ..settings.tracking() },
                rng.fork(),
                Instant::ZERO,
            ),
            gate: new_gate(&settings, Instant::ZERO),
            records: shapes.iter().map(Record::new).collect(),
            store_bytes: 0,
        });
        let peer_settings = Arc::new(settings.peer.clone());
        let settings = Arc::new(settings);
        let span = settings.machines / parts;
        let part = |number: usize| {
            let is_last = number + 1 == parts;
            let first = number * span;
            let places = first..if is_last { settings.machines + 2 } else { first + span };
            let between = Pipe::new(settings.between.unwrap_or(1 << 60));
            let mut part = Self {
                shapes: Arc::clone(&shapes),
                now: Instant::ZERO,
                queue: Queue::new(&[settings.latency, STORING], parts),
                peer_settings: Arc::clone(&peer_settings),
                span,
                first,
                inboxes: places.clone().map(|_| Inbox::default()).collect(),
                members: places.map(|place| member(&settings, place, &mut rng)).collect(),
                hub: if is_last { hub.take() } else { None },
                out_of: vec![between; settings.zones],
                into: vec![between; settings.zones],
                crossed: vec![0; settings.zones],
                mail: (0..parts).map(|_| Mail::default()).collect(),
                mailed: Instant::FAR,
                wasted: 0,
                left: 0,
                events: 0,
                settings: Arc::clone(&settings),
            };
            part.left = shapes.len() * part.members.iter().filter(|member| member.must_complete).count();
            part.begin();
            part
        };
        (0..parts).map(part).collect()
    }

    /// Puts what is known beforehand.
    fn begin(&mut self) {
        let settings = Arc::clone(&self.settings);
        let at = |time: &Duration| Instant::at(*time);
        for place in self.machines() {
            let delay = settings.arrivals.mul_f64(self.member_mut(place).rng.f64());
            self.queue.at(at(&(settings.counts_from(place) + delay)), place, Event::Start(place));
            if let Some(time) = settings.crashes.get(&place) {
                self.queue.at(at(time), place, Event::Crash(place));
            }
            if let Some(time) = settings.restarts.get(&place) {
                self.queue.at(at(time), place, Event::Restart(place));
            }
        }
        for (partition, cut) in settings.partitions.iter().enumerate() {
            self.queue.at(at(&cut.from), 0, Event::Cut(partition));
        }
        if let Some(time) = &settings.second {
            self.queue.at(at(time), 0, Event::Second);
        }
        if self.hub.is_none() {
            return;
        }
        let (tracker, gate) = (self.tracker_place(), self.gate_place());
        self.wake_later(tracker);
        self.wake_later(gate);
        self.queue.at(Instant::ZERO, gate, Event::DialTracker);
        for time in &settings.tracker_restarts {
            self.queue.at(at(time), tracker, Event::RestartTracker);
            self.queue.at(at(time) + TRACKER_BACK, gate, Event::DialTracker);
        }
        for time in &settings.gate_restarts {
            self.queue.at(at(time), gate, Event::RestartGate);
            self.queue.at(at(time) + GATE_BACK, gate, Event::DialTracker);
        }
    }

    /// Goes on, beside the other parts, until all that must complete have, or the horizon is reached.
    pub(super) fn run(mut self, routes: &[Route]) -> Self {
        // What is done within one step reaches other parts after it.
        let step = self.settings.latency.max(Duration::from_micros(1));
        let horizon = Instant::at(self.settings.horizon);
        let mut end = end_of_step(Instant::ZERO, step);
        loop {
            let next = loop {
                match self.queue.pop(end.min(horizon + Duration::from_micros(1))) {
                    Ok((now, event)) => {
                        self.now = now;
                        self.event(event);
                    }
                    Err(next) => break next,
                }
            };
            self.now = end.min(horizon);
            let Some((next, left)) = self.exchange(routes, next) else { return self };
            if left == 0 {
                return self;
            }
            if next > horizon {
                self.now = horizon;
                return self;
            }
            end = end_of_step(next, step);
        }
    }

    /// Gives the others what is for them and takes what is for this part. Gives when the region goes on and for how many completions it
    /// waits; nothing when another part is gone, which only a panic does.
    fn exchange(&mut self, routes: &[Route], next: Instant) -> Option<(Instant, usize)> {
        let mut region = (next.min(self.mailed), self.left);
        self.mailed = Instant::FAR;
        for route in routes {
            let empty = self.mail[route.part].like();
            let mail = std::mem::replace(&mut self.mail[route.part], empty);
            route.give(Mail { next: region.0, left: self.left, ..mail });
        }
        for route in routes {
            let mail = route.take()?;
            region = (region.0.min(mail.next), region.1 + mail.left);
            self.queue.arrive(route.part, mail.line, mail.timed);
            for (to, announcement) in mail.announcements {
                self.announced(to, announcement);
            }
        }
        Some(region)
    }

    /// The mail for the part that holds a place, where something wants to be looked at then.
    pub(super) fn mail_to(&mut self, place: Place, then: Instant) -> &mut Mail {
        self.mailed = self.mailed.min(then);
        let last = self.mail.len() - 1;
        &mut self.mail[(place / self.span).min(last)]
    }

    pub(super) fn places(&self) -> Range<Place> {
        self.first..self.first + self.members.len()
    }

    pub(super) fn machines(&self) -> Range<Place> {
        self.first..self.places().end.min(self.settings.machines)
    }

    pub(super) fn holds(&self, place: Place) -> bool {
        self.places().contains(&place)
    }

    pub(super) fn member(&self, place: Place) -> &Member {
        &self.members[place - self.first]
    }

    pub(super) fn member_mut(&mut self, place: Place) -> &mut Member {
        &mut self.members[place - self.first]
    }

    pub(super) fn inbox(&mut self, place: Place) -> &mut Inbox {
        &mut self.inboxes[place - self.first]
    }

    /// Tracker and gate, of the part that has them: it alone is told what is for these.
    pub(super) fn hub(&mut self) -> &mut Hub {
        self.hub.as_mut().expect("the last part has the tracker and the gate")
    }

    pub(super) fn tracker_place(&self) -> Place {
        self.settings.machines
    }

    pub(super) fn gate_place(&self) -> Place {
        self.settings.machines + 1
    }

    pub(super) fn role(&self, place: Place) -> Role {
        match place.checked_sub(self.settings.machines) {
            None => Role::Node,
            Some(0) => Role::Tracker,
            Some(_) => Role::Gate,
        }
    }

    /// The number of an artifact.
    pub(super) fn artifact(&self, digest: &Digest) -> usize {
        let artifact = self.shapes.iter().position(|shape| shape.digest() == *digest);
        artifact.expect("the members know of the artifacts there are")
    }

    /// What there is once in the region, if this part has it.
    pub(super) fn take_hub(&mut self) -> Option<Hub> {
        self.hub.take()
    }

    /// What its machines that should have completed and did not wait for.
    pub(super) fn stuck(&self) -> Vec<String> {
        let mut stuck = Vec::new();
        for (place, member) in self.places().zip(&self.members).filter(|(_, member)| member.must_complete) {
            for (shape, completed) in self.shapes.iter().zip(&member.completed) {
                if completed.is_none() {
                    let progress = member.peer.as_ref().and_then(|peer| peer.progress(&shape.digest()));
                    let standing = progress.map_or("has not started".to_owned(), |progress| format!("{progress:?}"));
                    stuck.push(format!("machine {place}: {standing}"));
                }
            }
        }
        stuck
    }

    /// Bytes that its machines received for nothing.
    pub(super) fn wasted(&self) -> u64 {
        let peers = self.members.iter().filter_map(|member| member.peer.as_ref());
        self.wasted + peers.map(|peer| wasted_by(&self.shapes, peer)).sum::<u64>()
    }
}

/// Steps begin at the multiples of their length: at the same instants however the region is divided, though what comes next may be a look in
/// vain.
fn end_of_step(at: Instant, step: Duration) -> Instant {
    let (at, step) = (at.since_start().as_micros() as u64, step.as_micros() as u64);
    Instant::at(Duration::from_micros((at / step + 1).saturating_mul(step)))
}

pub(super) fn wasted_by(shapes: &[Shape], peer: &Peer<Token>) -> u64 {
    shapes.iter().filter_map(|shape| Some(peer.progress(&shape.digest())?.wasted)).sum()
}

pub(super) fn new_gate(settings: &Settings, now: Instant) -> Gate {
    let place = settings.machines + 1;
    Gate::new(settings.gate.clone(), id(place), addr(place), now)
}

/// A member that did not start yet. All that it draws it draws from a generator of its own, so that others change nothing in it.
fn member(settings: &Settings, place: Place, rng: &mut Rng) -> Member {
    let rng = rng.fork();
    match place.checked_sub(settings.machines) {
        None => {
            let factor = settings.links.get(&place).copied().unwrap_or(1.0);
            let link = |rate: u64| (rate as f64 * factor).max(1.0) as u64;
            let mut machine = Member::new(link(settings.up), link(settings.down), rng);
            machine.gives_bad = settings.corrupt.contains(&place);
            machine.must_complete = settings.must_complete(place);
            if settings.second.is_some() {
                machine.shared = vec![Shared::default(); SHARED_SECONDS];
            }
            machine
        }
        Some(0) => Member::new(1 << 40, 1 << 40, rng),
        Some(_) => Member::new(settings.store, 1 << 40, rng),
    }
}
