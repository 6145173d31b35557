//! A part of a region: some of its members, and what happens to them.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use deploycore::model::Digest;
use deploycore::port::swarm::{Limits, Priority};
use fastrand::Rng;

use super::mail::{Mail, Route};
use super::member::{Inbox, Member, Pipe};
use super::queue::Queue;
use super::{Event, Place, SHARED_SECONDS, Settings, Shared, Token, addr, id};
use crate::core::bitfield::Bitfield;
use crate::core::gate::{self, Gate, Record};
use crate::core::message::{Block, Payload as _, Role};
use crate::core::peer::{self, Peer};
use crate::core::shape::Shape;
use crate::core::time::Instant;
use crate::core::tracker::{self, Tracker};

/// How long a piece takes to be verified and written.
const STORING: Duration = Duration::from_micros(500);
/// How long a machine that restarts is gone.
const RESTART: Duration = Duration::from_secs(2);
/// How long after its own end, and after the tracker's, the gate connects to the tracker.
const GATE_BACK: Duration = Duration::from_millis(100);
const TRACKER_BACK: Duration = Duration::from_millis(250);

pub(super) struct Part {
    pub(super) settings: Arc<Settings>,
    /// The artifacts; what else stands by artifact has their order.
    pub(super) shapes: Arc<[Shape]>,
    pub(super) now: Instant,
    pub(super) queue: Queue,
    peer_settings: Arc<peer::Settings>,
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
    wasted: u64,
    /// Completions that are waited for.
    left: usize,
    pub(super) events: u64,
}

/// What there is once in a region.
pub(super) struct Hub {
    pub(super) tracker: Tracker,
    gate: Gate,
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
            gate: gate(&settings, Instant::ZERO),
            records: shapes.iter().map(Record::new).collect(),
            store_bytes: 0,
        });
        let (settings, peer_settings) = (Arc::new(settings.clone()), Arc::new(settings.peer));
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
        let mut from = Instant::ZERO;
        loop {
            let next = loop {
                match self.queue.pop(from + step) {
                    Ok((now, event)) => {
                        self.now = now;
                        self.event(event);
                    }
                    Err(next) => break next,
                }
            };
            self.now = from + step;
            let Some((next, left)) = self.exchange(routes, next) else { return self };
            if left == 0 || next.since_start() > self.settings.horizon {
                return self;
            }
            from = next;
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

    fn machines(&self) -> Range<Place> {
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
    fn hub(&mut self) -> &mut Hub {
        self.hub.as_mut().expect("the last part has the tracker and the gate")
    }

    fn tracker_place(&self) -> Place {
        self.settings.machines
    }

    fn gate_place(&self) -> Place {
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

    fn event(&mut self, event: Event) {
        // These depend on how the region is divided: what is put in each part, and looks that are in vain.
        self.events += u64::from(!matches!(event, Event::Cut(_) | Event::Second | Event::Look(_)));
        match event {
            Event::Wake(place) => {
                let (now, wakes) = (self.now, &mut self.member_mut(place).wakes);
                if *wakes <= now {
                    *wakes = Instant::FAR;
                    self.wake(place);
                }
            }
            Event::Look(place) => self.look_due(place),
            Event::Start(machine) => self.start(machine),
            Event::Crash(machine) => drop(self.stop(machine)),
            Event::Restart(machine) => {
                if let Some(kept) = self.stop(machine) {
                    self.member_mut(machine).kept = kept;
                    self.queue.after(RESTART, machine, Event::Start(machine));
                }
            }
            Event::Cut(partition) => self.cut(partition),
            Event::Second => {
                for machine in self.machines() {
                    self.fetch(machine, 1, None);
                }
            }
            Event::RestartTracker => {
                let (place, now) = (self.tracker_place(), self.now);
                let (tracking, rng) = (self.settings.tracking(), self.member_mut(place).rng.fork());
                self.hub().tracker = Tracker::new(tracking, rng, now);
                self.sever(place);
            }
            Event::RestartGate => {
                let (place, gate) = (self.gate_place(), gate(&self.settings, self.now));
                self.member_mut(place).life += 1;
                self.hub().gate = gate;
                self.sever(place);
            }
            Event::DialTracker => self.dial(self.gate_place(), &addr(self.tracker_place())),
            Event::Dialed { from, conn, life, to } => self.dialed(from, conn, life, to),
            Event::Answered { at, conn, with, there, life } => self.answered(at, conn, with, there, life),
            Event::Refused(at, conn) => self.refused(at, conn),
            Event::Closed(at, conn) => self.closed(at, conn),
            Event::Message(at, conn, message) => self.message(at, conn, message),
            Event::Sent(at, conn, len) => self.peer_input(at, peer::Input::Sent(conn, len)),
            Event::Arrives(at, conn, block) => self.arrives(at, conn, block),
            Event::Block(at, conn, block) => {
                self.count_shared(at, &block);
                self.peer_input(at, peer::Input::Block(conn, block));
            }
            Event::Crosses { zones, at, conn, block } => self.cross(zones, at, conn, block),
            Event::Stored { at, life, artifact, piece, good, hashes } => {
                if self.member(at).life == life {
                    let verified = good.iter().all(|good| *good);
                    let wanted = hashes || !verified;
                    let blocks = if wanted { good.iter().map(|good| [u8::from(*good); 32]).collect() } else { vec![] };
                    let digest = self.shapes[artifact].digest();
                    self.peer_input(at, peer::Input::Stored { digest, piece, verified, blocks });
                }
            }
            Event::Loaded(life, digest) => {
                if self.member(self.gate_place()).life == life {
                    let artifact = self.artifact(&digest);
                    let found = (self.shapes[artifact].size(), self.hub().records[artifact].clone());
                    self.gate_input(gate::Input::Loaded(digest, Some(found)));
                }
            }
            Event::Persisted { life, artifact, version, record } => {
                if self.member(self.gate_place()).life == life {
                    self.hub().records[artifact] = record;
                    self.gate_input(gate::Input::Persisted(self.shapes[artifact].digest(), version));
                }
            }
        }
    }

    fn start(&mut self, machine: Place) {
        if self.settings.crashes.get(&machine).is_some_and(|at| Instant::at(*at) <= self.now) {
            return;
        }
        let (settings, tracker) = (Arc::clone(&self.peer_settings), addr(self.tracker_place()));
        let (now, zone) = (self.now, self.settings.zone(machine));
        let member = self.member_mut(machine);
        let peer = Peer::new(settings, id(machine), addr(machine), vec![tracker], member.rng.fork(), now);
        member.peer = Some(peer.with_zone(zone));
        member.life += 1;
        let mut kept = std::mem::take(&mut member.kept).into_iter();
        self.fetch(machine, 0, kept.next());
        if self.settings.second.is_some_and(|at| Instant::at(at) <= self.now) {
            self.fetch(machine, 1, kept.next());
        }
    }

    /// Makes a machine fetch an artifact of which it has these pieces. One that is not running fetches it when it starts.
    fn fetch(&mut self, machine: Place, artifact: usize, have: Option<Bitfield>) {
        let shape = self.shapes[artifact];
        let have = have.unwrap_or_else(|| Bitfield::new(shape.pieces()));
        let priority = if artifact == 1 { self.settings.second_priority } else { Priority::Normal };
        let limits = Limits::default();
        self.peer_input(machine, peer::Input::Start(Box::new(peer::Start { shape, have, priority, limits })));
    }

    /// Ends a machine; gives the pieces it had, if it was running.
    fn stop(&mut self, machine: Place) -> Option<Vec<Bitfield>> {
        let peer = self.member_mut(machine).peer.take()?;
        self.sever(machine);
        self.wasted += wasted_by(&self.shapes, &peer);
        Some(self.shapes.iter().map_while(|shape| peer.have(&shape.digest()).cloned()).collect())
    }

    fn count_shared(&mut self, machine: Place, block: &Block<Token>) {
        let Some(start) = self.settings.second.map(Instant::at).filter(|start| *start <= self.now) else { return };
        let second = self.now.since(start).as_secs() as usize;
        let is_first = block.digest == self.shapes[0].digest();
        if let Some(shared) = self.member_mut(machine).shared.get_mut(second) {
            *if is_first { &mut shared.first } else { &mut shared.second } += block.data.byte_len() as u64;
        }
    }

    fn wake(&mut self, place: Place) {
        match self.role(place) {
            Role::Node => self.peer_input(place, peer::Input::Timeout),
            Role::Tracker => self.tracker_input(tracker::Input::Timeout),
            Role::Gate => self.gate_input(gate::Input::Timeout),
        }
    }

    pub(super) fn wake_later(&mut self, place: Place) {
        let next = match self.role(place) {
            Role::Node => self.member(place).peer.as_ref().map_or(Instant::FAR, Peer::poll_timeout),
            Role::Tracker => self.hub().tracker.poll_timeout(),
            Role::Gate => self.hub().gate.poll_timeout(),
        };
        let wakes = &mut self.member_mut(place).wakes;
        if next < *wakes {
            *wakes = next;
            self.queue.at(next, place, Event::Wake(place));
        }
    }

    pub(super) fn peer_input(&mut self, place: Place, input: peer::Input<Token>) {
        if !self.inbox(place).announcements.is_empty() {
            self.look(place);
        }
        self.handle_at(place, input);
        self.wake_later(place);
    }

    pub(super) fn handle_at(&mut self, place: Place, input: peer::Input<Token>) {
        let now = self.now;
        let Some(peer) = &mut self.member_mut(place).peer else { return };
        peer.handle(input, now);
        while let Some(output) = self.member_mut(place).peer.as_mut().and_then(Peer::poll_output) {
            match output {
                peer::Output::Connect(addr, _) => self.dial(place, &addr),
                peer::Output::Close(conn, _) => self.close(place, conn),
                peer::Output::Send(conn, message) => self.send(place, conn, message),
                peer::Output::SendBlock { conn, digest, piece, block, len, .. } => {
                    let good = !self.member(place).gives_bad;
                    let end = self.transmit(place, conn, Block { digest, piece, block, data: Token { len, good } });
                    self.queue.at(end, place, Event::Sent(place, conn, len));
                }
                peer::Output::Store { digest, piece, blocks, hash_blocks } => {
                    let (artifact, life) = (self.artifact(&digest), self.member(place).life);
                    let good = blocks.iter().map(|block| block.good).collect();
                    let stored = Event::Stored { at: place, life, artifact, piece, good, hashes: hash_blocks };
                    self.queue.after(STORING, place, stored);
                }
                peer::Output::Complete(digest) => self.complete(place, self.artifact(&digest)),
            }
        }
    }

    /// Counts a machine's first completion of an artifact.
    fn complete(&mut self, machine: Place, artifact: usize) {
        let second = if artifact == 1 { self.settings.second } else { None };
        let from = self.settings.counts_from(machine).max(second.unwrap_or_default());
        let now = self.now;
        let member = self.member_mut(machine);
        if member.completed[artifact].is_none() {
            member.completed[artifact] = Some(now.since(Instant::at(from)));
            self.left -= usize::from(self.member(machine).must_complete);
        }
    }

    pub(super) fn tracker_input(&mut self, input: tracker::Input) {
        let (place, now) = (self.tracker_place(), self.now);
        self.hub().tracker.handle(input, now);
        while let Some(output) = self.hub().tracker.poll_output() {
            match output {
                tracker::Output::Send(conn, message) => self.send(place, conn, message),
                tracker::Output::Close(conn, _) => self.close(place, conn),
            }
        }
        self.wake_later(place);
    }

    pub(super) fn gate_input(&mut self, input: gate::Input) {
        let (place, now) = (self.gate_place(), self.now);
        let life = self.member(place).life;
        self.hub().gate.handle(input, now);
        while let Some(output) = self.hub().gate.poll_output() {
            match output {
                gate::Output::Send(conn, message) => self.send(place, conn, message),
                gate::Output::Close(conn, _) => self.close(place, conn),
                gate::Output::Serve { conn, digest, piece, block, len, .. } => {
                    self.hub().store_bytes += u64::from(len);
                    self.transmit(place, conn, Block { digest, piece, block, data: Token { len, good: true } });
                }
                gate::Output::Load(digest) => {
                    self.queue.after(Duration::from_millis(5), place, Event::Loaded(life, digest));
                }
                gate::Output::Persist(digest, version, record) => {
                    let persisted = Event::Persisted { life, artifact: self.artifact(&digest), version, record };
                    self.queue.after(Duration::from_millis(2), place, persisted);
                }
            }
        }
        self.wake_later(place);
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

fn wasted_by(shapes: &[Shape], peer: &Peer<Token>) -> u64 {
    shapes.iter().filter_map(|shape| Some(peer.progress(&shape.digest())?.wasted)).sum()
}

fn gate(settings: &Settings, now: Instant) -> Gate {
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
