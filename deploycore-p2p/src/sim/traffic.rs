//! What goes between the members: connections come and go, messages and blocks travel.

use std::time::Duration;

use super::{Event, Place, Token, World, id};
use crate::core::message::{Addr, Block, ConnId, Message, Role};
use crate::core::time::Instant;
use crate::core::{gate, peer, tracker};

/// A machine looks at announcements of pieces when something else comes, and after this time at the latest, or a 64th of the time that
/// has passed: they are most of the events, and looked at together they cost a small part.
const LOOKING: Duration = Duration::from_millis(125);

/// What a machine did not look at yet.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// Announcements of pieces, and when they come.
    pub(super) announcements: Vec<(Instant, ConnId, Message)>,
    /// It will look.
    pub(super) is_awaited: bool,
}

impl World {
    /// Breaks all connections between the two sides of a partition.
    pub(super) fn cut(&mut self, partition: usize) {
        let partition = &self.settings.partitions[partition];
        let splits = |(_, (one, other)): &(ConnId, (Place, Place))| partition.splits(*one, *other);
        let broken: Vec<_> = self.connections.open().filter(splits).collect();
        for (conn, (one, other)) in broken {
            self.connections.close(conn);
            self.queue.after(self.settings.latency, Event::Closed(one, conn));
            self.queue.after(self.settings.latency, Event::Closed(other, conn));
        }
    }

    /// Breaks all connections of a member, whose own end is gone.
    pub(super) fn sever(&mut self, place: Place) {
        let other_end = |(conn, (one, other)): (ConnId, (Place, Place))| match (one == place, other == place) {
            (true, _) => Some((conn, other)),
            (_, true) => Some((conn, one)),
            _ => None,
        };
        let broken: Vec<(ConnId, Place)> = self.connections.open().filter_map(other_end).collect();
        for (conn, other) in broken {
            self.connections.close(conn);
            self.queue.after(self.settings.latency, Event::Closed(other, conn));
        }
    }

    pub(super) fn dialed(&mut self, from: Place, addr: Addr) {
        let to: Place = addr.0.parse().expect("simulated addresses are places");
        if !self.is_up(from) {
            return;
        }
        if !self.is_up(to) || self.settings.is_cut(from, to, self.now.since_start()) {
            return self.peer_input(from, peer::Input::ConnectFailed(addr));
        }
        let conn = self.connections.add(from, to);
        let latency = self.settings.latency;
        self.queue.after(Duration::ZERO, Event::Opened { at: to, conn, with: from, dialed: None });
        self.queue.after(latency, Event::Opened { at: from, conn, with: to, dialed: Some(addr) });
    }

    pub(super) fn opened(&mut self, at: Place, conn: ConnId, with: Place, dialed: Option<Addr>) {
        let (peer, role) = (id(with), self.role(with));
        match self.role(at) {
            Role::Node => {
                let incarnation = u64::from(self.lives[with]);
                let zone = self.settings.zone(with);
                self.peer_input(at, peer::Input::Connected { conn, peer, incarnation, role, zone, dialed });
            }
            Role::Tracker => {
                let (zone, host) = (self.settings.zone(with), String::new());
                self.tracker_input(tracker::Input::Connected { conn, peer, role, zone, host });
            }
            Role::Gate => {
                let dialed = dialed.is_some();
                self.gate_input(gate::Input::Connected { conn, peer, role, dialed });
            }
        }
    }

    pub(super) fn closed(&mut self, at: Place, conn: ConnId) {
        match self.role(at) {
            Role::Node => self.peer_input(at, peer::Input::Disconnected(conn)),
            Role::Tracker => self.tracker_input(tracker::Input::Disconnected(conn)),
            Role::Gate => self.gate_input(gate::Input::Disconnected(conn)),
        }
    }

    pub(super) fn message(&mut self, at: Place, conn: ConnId, message: Message) {
        match self.role(at) {
            Role::Node => self.peer_input(at, peer::Input::Message(conn, message)),
            Role::Tracker => self.tracker_input(tracker::Input::Message(conn, message)),
            Role::Gate => self.gate_input(gate::Input::Message(conn, message)),
        }
    }

    pub(super) fn send(&mut self, from: Place, conn: ConnId, message: Message) {
        if let Some(to) = self.connections.other_end(conn, from) {
            let latency = self.settings.latency;
            match message {
                Message::Have { .. } if to < self.settings.machines => {
                    self.inboxes[to].announcements.push((self.now + latency, conn, message));
                    self.await_look(to);
                }
                _ => self.queue.after(latency, Event::Message(to, conn, message)),
            }
        }
    }

    pub(super) fn await_look(&mut self, at: Place) {
        let inbox = &mut self.inboxes[at];
        if !inbox.announcements.is_empty() && !inbox.is_awaited {
            inbox.is_awaited = true;
            let delay = self.settings.latency + LOOKING.min(self.now.since_start() / 64);
            self.queue.after(delay, Event::Look(at));
        }
    }

    /// Lets a machine take the announcements that came until now.
    pub(super) fn look(&mut self, at: Place) {
        let mut announcements = std::mem::take(&mut self.inboxes[at].announcements);
        let came = announcements.partition_point(|(when, ..)| *when <= self.now);
        for (_, conn, message) in announcements.drain(..came) {
            if self.connections.is_open(conn) {
                self.handle_at(at, peer::Input::Message(conn, message));
            }
        }
        // None came meanwhile: a machine says nothing to itself.
        self.inboxes[at].announcements = announcements;
    }

    pub(super) fn close(&mut self, from: Place, conn: ConnId) {
        if let Some(to) = self.connections.other_end(conn, from) {
            self.connections.close(conn);
            self.queue.after(self.settings.latency, Event::Closed(to, conn));
        }
    }

    /// Puts a block on the sender's uplink; gives when its last byte has left.
    pub(super) fn transmit(&mut self, from: Place, conn: ConnId, block: Block<Token>) -> Instant {
        let pipe = &mut self.up[from];
        let end = pipe.free.max(self.now) + pipe.time(block.data.len);
        pipe.free = end;
        if let Some(to) = self.connections.other_end(conn, from) {
            match self.settings.crossing(from, to) {
                Some(zones) => self.queue.at(end, Event::Crosses { zones, at: to, conn, block }),
                None => self.queue.at(end + self.settings.latency, Event::Arrives(to, conn, block)),
            }
        }
        end
    }

    /// Takes a block from one zone to another, one after the other out of the first and into the second.
    pub(super) fn cross(&mut self, zones: (usize, usize), at: Place, conn: ConnId, block: Block<Token>) {
        let (out, into) = (self.out_of[zones.0], self.into[zones.1]);
        let end = self.now.max(out.free + out.time(block.data.len)).max(into.free + into.time(block.data.len));
        (self.out_of[zones.0].free, self.into[zones.1].free) = (end, end);
        self.crossed[zones.1] += u64::from(block.data.len);
        self.queue.at(end + self.settings.latency, Event::Arrives(at, conn, block));
    }
}
