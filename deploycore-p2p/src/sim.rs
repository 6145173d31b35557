//! A discrete-event simulator of one region: the machines of [`core`](crate::core), unchanged, on a network of queues.
//!
//! Each member has an uplink, which sends one block after the other at its rate, and a downlink, which receives at its rate; a
//! block is on both at the same time, as on a switched network. Messages take the latency. No bytes are moved: a block is
//! its length and whether it is good. The same settings give the same run.

pub mod command;
mod network;
mod queue;
mod settings;
mod shared;
mod traffic;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use deploycore::model::Digest;
use deploycore::port::swarm::{Limits, Priority};
use fastrand::Rng;

use self::network::{Connections, Pipe};
use self::queue::Queue;
pub use self::settings::{Partition, Report, Settings};
pub use self::shared::{SHARED_SECONDS, Second, Shared};
use self::traffic::Inbox;
use crate::core::bitfield::Bitfield;
use crate::core::gate::{self, Gate, Record};
use crate::core::message::{Addr, Block, ConnId, Message, Payload, PeerId, Role};
use crate::core::peer::{self, Peer};
use crate::core::shape::Shape;
use crate::core::time::Instant;
use crate::core::tracker::{self, Tracker};

/// A block without its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    len: u32,
    good: bool,
}

impl Payload for Token {
    fn byte_len(&self) -> usize {
        self.len as usize
    }
}

/// A member, by its place: machines first, then the tracker, then the gate.
type Place = usize;

#[derive(Debug)]
enum Event {
    Wake(Place),
    Start(Place),
    Crash(Place),
    /// A machine dies, to start again.
    Restart(Place),
    /// This one of the partitions begins.
    Cut(usize),
    /// All machines start with the second artifact.
    Second,
    RestartTracker,
    RestartGate,
    /// A connection attempt reaches the other side.
    Dialed {
        from: Place,
        addr: Addr,
    },
    /// For the member, unless its connection is gone by then.
    Message(Place, ConnId, Message),
    /// A machine looks at the announcements that came.
    Look(Place),
    Opened {
        at: Place,
        conn: ConnId,
        with: Place,
        dialed: Option<Addr>,
    },
    Closed(Place, ConnId),
    Sent(Place, ConnId, u32),
    /// The last byte of a block is at the receiver's downlink, if that is free.
    Arrives(Place, ConnId, Block<Token>),
    Block(Place, ConnId, Block<Token>),
    /// The last byte of a block has left the sender, which is in another zone than the receiver.
    Crosses {
        zones: (usize, usize),
        at: Place,
        conn: ConnId,
        block: Block<Token>,
    },
    Stored {
        at: Place,
        life: u32,
        artifact: usize,
        piece: u32,
        good: Vec<bool>,
        hashes: bool,
    },
    Loaded(u32, Digest),
    Persisted {
        life: u32,
        artifact: usize,
        version: u64,
        record: Record,
    },
}

struct World {
    settings: Settings,
    /// The artifacts; what else stands by artifact has their order.
    shapes: Vec<Shape>,
    rng: Rng,
    now: Instant,
    queue: Queue,
    peer_settings: Arc<peer::Settings>,
    peers: Vec<Option<Peer<Token>>>,
    tracker: Tracker,
    gate: Gate,
    records: Vec<Record>,
    /// How often each member started.
    lives: Vec<u32>,
    wakes: Vec<Instant>,
    up: Vec<Pipe>,
    down: Vec<Pipe>,
    /// What leaves and what enters each zone, and how many bytes entered.
    out_of: Vec<Pipe>,
    into: Vec<Pipe>,
    crossed: Vec<u64>,
    connections: Connections,
    inboxes: Vec<Inbox>,
    completed: Vec<Vec<Option<Duration>>>,
    /// What each machine received by second since the second artifact's start.
    shared: Vec<Vec<Shared>>,
    /// The verified pieces of machines that died and will start again.
    kept: BTreeMap<Place, Vec<Bitfield>>,
    store_bytes: u64,
    /// Bytes that machines which died had received for nothing.
    wasted: u64,
    /// Completions that are waited for.
    left: usize,
}

/// How long a piece takes to be verified and written.
const STORING: Duration = Duration::from_micros(500);
/// How long a machine that restarts is gone.
const RESTART: Duration = Duration::from_secs(2);

/// Simulates until every machine that [must complete](Settings::must_complete) has, or the horizon is reached.
pub fn run(settings: Settings) -> Report {
    let mut world = World::new(settings);
    let mut events = 0;
    while let Some((at, event)) = world.queue.pop() {
        if at.since_start() > world.settings.horizon || world.left == 0 {
            break;
        }
        world.now = at;
        events += 1;
        world.event(event);
    }
    world.report(events)
}

impl World {
    fn new(settings: Settings) -> Self {
        let machines = settings.machines;
        let artifacts: &[&[u8]] = if settings.second.is_some() { &[b"simulated", b"second"] } else { &[b"simulated"] };
        let shape = |name: &&[u8]| Shape::new(Digest::of(name), settings.size).with_max_block(settings.peer.max_block);
        let shapes: Vec<Shape> = artifacts.iter().map(shape).collect();
        let mut rng = Rng::with_seed(settings.seed);
        let links = |rate: u64| -> Vec<Pipe> {
            let factor = |machine| settings.links.get(&machine).copied().unwrap_or(1.0);
            (0..machines).map(|machine| Pipe::new((rate as f64 * factor(machine)).max(1.0) as u64)).collect()
        };
        let mut up = links(settings.up);
        up.extend([Pipe::new(1 << 40), Pipe::new(settings.store)]);
        let mut down = links(settings.down);
        down.extend([Pipe::new(1 << 40); 2]);
        let between = Pipe::new(settings.between.unwrap_or(1 << 60));
        let mut world = Self {
            now: Instant::ZERO,
            queue: Queue::new(&[settings.latency, STORING]),
            peer_settings: Arc::new(settings.peer.clone()),
            peers: (0..machines).map(|_| None).collect(),
            // It has run for long; one that starts anew has not.
            tracker: Tracker::new(
                tracker::Settings { settle: Duration::ZERO, ..settings.tracking() },
                rng.fork(),
                Instant::ZERO,
            ),
            gate: Gate::new(settings.gate.clone(), id(machines + 1), addr(machines + 1), Instant::ZERO),
            records: shapes.iter().map(Record::new).collect(),
            lives: vec![0; machines + 2],
            wakes: vec![Instant::FAR; machines + 2],
            up,
            down,
            out_of: vec![between; settings.zones],
            into: vec![between; settings.zones],
            crossed: vec![0; settings.zones],
            connections: Connections::default(),
            inboxes: (0..machines).map(|_| Inbox::default()).collect(),
            completed: vec![vec![None; machines]; shapes.len()],
            shared: settings.second.map_or_else(Vec::new, |_| vec![vec![Shared::default(); SHARED_SECONDS]; machines]),
            kept: BTreeMap::new(),
            store_bytes: 0,
            wasted: 0,
            left: shapes.len() * (0..machines).filter(|machine| settings.must_complete(*machine)).count(),
            shapes,
            rng: rng.fork(),
            settings,
        };
        world.wake_later(world.tracker_place());
        world.wake_later(world.gate_place());
        world
            .queue
            .after(Duration::ZERO, Event::Dialed { from: world.gate_place(), addr: addr(world.tracker_place()) });
        for machine in 0..machines {
            let delay = world.settings.arrivals.mul_f64(world.rng.f64());
            let from = world.settings.counts_from(machine);
            world.queue.after(from + delay, Event::Start(machine));
        }
        for (machine, at) in world.settings.crashes.clone() {
            world.queue.after(at, Event::Crash(machine));
        }
        for (machine, at) in world.settings.restarts.clone() {
            world.queue.after(at, Event::Restart(machine));
        }
        for partition in 0..world.settings.partitions.len() {
            world.queue.after(world.settings.partitions[partition].from, Event::Cut(partition));
        }
        if let Some(at) = world.settings.second {
            world.queue.after(at, Event::Second);
        }
        for at in world.settings.tracker_restarts.clone() {
            world.queue.after(at, Event::RestartTracker);
        }
        for at in world.settings.gate_restarts.clone() {
            world.queue.after(at, Event::RestartGate);
        }
        world
    }

    fn tracker_place(&self) -> Place {
        self.settings.machines
    }

    fn gate_place(&self) -> Place {
        self.settings.machines + 1
    }

    fn role(&self, place: Place) -> Role {
        match place {
            place if place == self.tracker_place() => Role::Tracker,
            place if place == self.gate_place() => Role::Gate,
            _ => Role::Node,
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Wake(place) => {
                if self.wakes[place] <= self.now {
                    self.wakes[place] = Instant::FAR;
                    self.wake(place);
                }
            }
            Event::Start(machine) => self.start(machine),
            Event::Crash(machine) => drop(self.stop(machine)),
            Event::Restart(machine) => {
                if let Some(kept) = self.stop(machine) {
                    self.kept.insert(machine, kept);
                    self.queue.after(RESTART, Event::Start(machine));
                }
            }
            Event::Cut(partition) => self.cut(partition),
            Event::Second => {
                for machine in 0..self.settings.machines {
                    self.fetch(machine, 1, None);
                }
            }
            Event::RestartTracker => {
                let place = self.tracker_place();
                self.tracker = Tracker::new(self.settings.tracking(), self.rng.fork(), self.now);
                self.sever(place);
                let gate = self.gate_place();
                self.queue.after(Duration::from_millis(250), Event::Dialed { from: gate, addr: addr(place) });
            }
            Event::RestartGate => {
                let place = self.gate_place();
                self.lives[place] += 1;
                self.gate = Gate::new(self.settings.gate.clone(), id(place), addr(place), self.now);
                self.sever(place);
                self.queue
                    .after(Duration::from_millis(100), Event::Dialed { from: place, addr: addr(self.tracker_place()) });
            }
            Event::Dialed { from, addr } => self.dialed(from, addr),
            Event::Opened { at, conn, with, dialed } => {
                if self.connections.is_open(conn) {
                    self.opened(at, conn, with, dialed);
                } else if let Some(addr) = dialed {
                    // It ended before it had begun.
                    self.peer_input(at, peer::Input::ConnectFailed(addr));
                }
            }
            Event::Closed(at, conn) => self.closed(at, conn),
            Event::Message(at, conn, message) => {
                if self.connections.is_open(conn) {
                    self.message(at, conn, message);
                }
            }
            Event::Look(at) => {
                self.inboxes[at].is_awaited = false;
                self.look(at);
                self.wake_later(at);
                self.await_look(at);
            }
            Event::Sent(at, conn, len) => self.peer_input(at, peer::Input::Sent(conn, len)),
            Event::Arrives(at, conn, block) => {
                let pipe = &mut self.down[at];
                let end = self.now.max(pipe.free + pipe.time(block.data.len));
                pipe.free = end;
                self.queue.at(end, Event::Block(at, conn, block));
            }
            Event::Block(at, conn, block) => {
                if self.connections.is_open(conn) {
                    self.count_shared(at, &block);
                    self.peer_input(at, peer::Input::Block(conn, block));
                }
            }
            Event::Crosses { zones, at, conn, block } => self.cross(zones, at, conn, block),
            Event::Stored { at, life, artifact, piece, good, hashes } => {
                if self.lives[at] == life {
                    let verified = good.iter().all(|good| *good);
                    let wanted = hashes || !verified;
                    let blocks = if wanted { good.iter().map(|good| [u8::from(*good); 32]).collect() } else { vec![] };
                    let digest = self.shapes[artifact].digest();
                    self.peer_input(at, peer::Input::Stored { digest, piece, verified, blocks });
                }
            }
            Event::Loaded(life, digest) => {
                if self.lives[self.gate_place()] == life {
                    let artifact = self.artifact(&digest);
                    let found = artifact.map(|at| (self.shapes[at].size(), self.records[at].clone()));
                    self.gate_input(gate::Input::Loaded(digest, found));
                }
            }
            Event::Persisted { life, artifact, version, record } => {
                if self.lives[self.gate_place()] == life {
                    self.records[artifact] = record;
                    self.gate_input(gate::Input::Persisted(self.shapes[artifact].digest(), version));
                }
            }
        }
    }

    fn start(&mut self, machine: Place) {
        if self.settings.crashes.get(&machine).is_some_and(|at| Instant::at(*at) <= self.now) {
            return;
        }
        let tracker = addr(self.tracker_place());
        let rng = self.rng.fork();
        let peer = Peer::new(Arc::clone(&self.peer_settings), id(machine), addr(machine), vec![tracker], rng, self.now);
        let peer = peer.with_zone(self.settings.zone(machine));
        self.peers[machine] = Some(peer);
        self.lives[machine] += 1;
        let mut kept = self.kept.remove(&machine).unwrap_or_default().into_iter();
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
        let peer = self.peers[machine].take()?;
        self.sever(machine);
        self.wasted += self.wasted_by(&peer);
        Some(self.shapes.iter().map_while(|shape| peer.have(&shape.digest()).cloned()).collect())
    }

    fn wasted_by(&self, peer: &Peer<Token>) -> u64 {
        self.shapes.iter().filter_map(|shape| Some(peer.progress(&shape.digest())?.wasted)).sum()
    }

    fn count_shared(&mut self, machine: Place, block: &Block<Token>) {
        let Some(start) = self.settings.second.map(Instant::at).filter(|start| *start <= self.now) else { return };
        let second = self.now.since(start).as_secs() as usize;
        if let Some(shared) = self.shared[machine].get_mut(second) {
            let first = block.digest == self.shapes[0].digest();
            *if first { &mut shared.first } else { &mut shared.second } += u64::from(block.data.len);
        }
    }

    fn artifact(&self, digest: &Digest) -> Option<usize> {
        self.shapes.iter().position(|shape| shape.digest() == *digest)
    }

    fn is_up(&self, place: Place) -> bool {
        self.peers.get(place).is_none_or(Option::is_some)
    }

    fn wake(&mut self, place: Place) {
        match self.role(place) {
            Role::Node => self.peer_input(place, peer::Input::Timeout),
            Role::Tracker => self.tracker_input(tracker::Input::Timeout),
            Role::Gate => self.gate_input(gate::Input::Timeout),
        }
    }

    fn wake_later(&mut self, place: Place) {
        let next = match self.role(place) {
            Role::Node => self.peers[place].as_ref().map_or(Instant::FAR, Peer::poll_timeout),
            Role::Tracker => self.tracker.poll_timeout(),
            Role::Gate => self.gate.poll_timeout(),
        };
        if next < self.wakes[place] {
            self.wakes[place] = next;
            self.queue.at(next.max(self.now), Event::Wake(place));
        }
    }

    fn peer_input(&mut self, place: Place, input: peer::Input<Token>) {
        if place >= self.settings.machines {
            return;
        }
        if !self.inboxes[place].announcements.is_empty() {
            self.look(place);
        }
        self.handle_at(place, input);
        self.wake_later(place);
    }

    fn handle_at(&mut self, place: Place, input: peer::Input<Token>) {
        let Some(peer) = &mut self.peers[place] else { return };
        peer.handle(input, self.now);
        while let Some(output) = self.peers[place].as_mut().and_then(Peer::poll_output) {
            match output {
                peer::Output::Connect(addr, _) => {
                    self.queue.after(self.settings.latency, Event::Dialed { from: place, addr });
                }
                peer::Output::Close(conn, _) => self.close(place, conn),
                peer::Output::Send(conn, message) => self.send(place, conn, message),
                peer::Output::SendBlock { conn, digest, piece, block, len, .. } => {
                    let good = !self.settings.corrupt.contains(&place);
                    let block = Block { digest, piece, block, data: Token { len, good } };
                    let end = self.transmit(place, conn, block);
                    self.queue.at(end, Event::Sent(place, conn, len));
                }
                peer::Output::Store { digest, piece, blocks, hash_blocks } => {
                    let artifact = self.artifact(&digest).expect("machines fetch the artifacts there are");
                    let (life, good) = (self.lives[place], blocks.iter().map(|block| block.good).collect());
                    let stored = Event::Stored { at: place, life, artifact, piece, good, hashes: hash_blocks };
                    self.queue.after(STORING, stored);
                }
                peer::Output::Complete(digest) => {
                    let artifact = self.artifact(&digest).expect("machines fetch the artifacts there are");
                    self.complete(place, artifact);
                }
            }
        }
    }

    /// Counts a machine's first completion of an artifact.
    fn complete(&mut self, machine: Place, artifact: usize) {
        let second = if artifact == 1 { self.settings.second } else { None };
        let from = self.settings.counts_from(machine).max(second.unwrap_or_default());
        let completed = &mut self.completed[artifact][machine];
        if completed.is_none() {
            *completed = Some(self.now.since(Instant::at(from)));
            self.left -= usize::from(self.settings.must_complete(machine));
        }
    }

    fn tracker_input(&mut self, input: tracker::Input) {
        let place = self.tracker_place();
        self.tracker.handle(input, self.now);
        while let Some(output) = self.tracker.poll_output() {
            match output {
                tracker::Output::Send(conn, message) => self.send(place, conn, message),
                tracker::Output::Close(conn, _) => self.close(place, conn),
            }
        }
        self.wake_later(place);
    }

    fn gate_input(&mut self, input: gate::Input) {
        let place = self.gate_place();
        let life = self.lives[place];
        self.gate.handle(input, self.now);
        while let Some(output) = self.gate.poll_output() {
            match output {
                gate::Output::Send(conn, message) => self.send(place, conn, message),
                gate::Output::Close(conn, _) => self.close(place, conn),
                gate::Output::Serve { conn, digest, piece, block, len, .. } => {
                    let block = Block { digest, piece, block, data: Token { len, good: true } };
                    self.store_bytes += u64::from(len);
                    self.transmit(place, conn, block);
                }
                gate::Output::Load(digest) => self.queue.after(Duration::from_millis(5), Event::Loaded(life, digest)),
                gate::Output::Persist(digest, version, record) => {
                    let artifact = self.artifact(&digest).expect("the gate finds the artifacts there are");
                    let persisted = Event::Persisted { life, artifact, version, record };
                    self.queue.after(Duration::from_millis(2), persisted);
                }
            }
        }
        self.wake_later(place);
    }

    fn report(mut self, events: u64) -> Report {
        let found = |machine: &&usize| self.peers.iter().flatten().any(|peer| peer.is_quarantined(id(**machine)));
        let wasted = self.peers.iter().flatten().map(|peer| self.wasted_by(peer)).sum::<u64>();
        Report {
            bound: self.settings.bound(),
            standings: self.tracker.standings(self.now),
            crossed: std::mem::take(&mut self.crossed),
            usage: self.records[0].usage(),
            store_bytes: self.store_bytes,
            wasted: self.wasted + wasted,
            quarantined: self.settings.corrupt.iter().filter(found).count(),
            events,
            stuck: self.stuck(),
            shared: std::mem::take(&mut self.shared),
            second: if self.completed.len() > 1 { self.completed.remove(1) } else { Vec::new() },
            completed: self.completed.remove(0),
        }
    }

    fn stuck(&self) -> Vec<String> {
        let mut stuck = Vec::new();
        for machine in (0..self.settings.machines).filter(|machine| self.settings.must_complete(*machine)) {
            for (shape, completed) in self.shapes.iter().zip(&self.completed) {
                if completed[machine].is_none() {
                    let progress = self.peers[machine].as_ref().and_then(|peer| peer.progress(&shape.digest()));
                    let standing = progress.map_or("has not started".to_owned(), |progress| format!("{progress:?}"));
                    stuck.push(format!("machine {machine}: {standing}"));
                }
            }
        }
        stuck
    }
}

fn id(place: Place) -> PeerId {
    // Scattered, so that no order of the ids means anything.
    PeerId((place as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn addr(place: Place) -> Addr {
    Addr::from(place.to_string())
}
