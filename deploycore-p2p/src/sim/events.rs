//! What happens to the members of a part.

use std::sync::Arc;
use std::time::Duration;

use deploycore::port::swarm::{Limits, Priority};

use super::part::{Part, STORING, new_gate, wasted_by};
use super::{Event, Place, Token, addr, id};
use crate::core::bitfield::Bitfield;
use crate::core::gate;
use crate::core::message::{Block, ConnId, Payload as _, Role};
use crate::core::peer::{self, Peer};
use crate::core::time::Instant;
use crate::core::tracker::{self, Tracker};

/// How long a machine that restarts is gone.
const RESTART: Duration = Duration::from_secs(2);

impl Part {
    pub(super) fn event(&mut self, event: Event) {
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
                let (place, gate) = (self.gate_place(), new_gate(&self.settings, self.now));
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
                self.count_shared(at, conn, &block);
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

    fn count_shared(&mut self, machine: Place, conn: ConnId, block: &Block<Token>) {
        let Some(start) = self.settings.second.map(Instant::at).filter(|start| *start <= self.now) else { return };
        if self.member(machine).ends.other(conn).is_none() {
            return;
        }
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
}
