//! What goes between the members: connections come and go, messages and blocks travel.
//!
//! A member's side of a connection is its own. What is done at one side is known at the other after the latency, and until then what
//! comes from there is for nobody.

use std::time::Duration;

use super::member::Announcement;
use super::part::Part;
use super::queue::Dated;
use super::{Event, Place, Token, addr, id};
use crate::core::message::{Addr, Block, ConnId, Message, Role};
use crate::core::time::Instant;
use crate::core::{gate, peer, tracker};

/// A machine looks at announcements of pieces when something else comes, and after this time at the latest, or a 64th of the time that
/// has passed: they are most of the events, and looked at together they cost a small part.
const LOOKING: Duration = Duration::from_millis(125);

/// Puts looks: after all else that is put at their instant.
const LOOKS: Place = u32::MAX as Place;

impl Part {
    /// Puts what comes to another member after the latency.
    fn post(&mut self, from: Place, to: Place, event: Event) {
        let latency = self.settings.latency;
        if self.holds(to) {
            return self.queue.after(latency, from, event);
        }
        let at = self.now + latency;
        self.mail_to(to, at).line.push_back(Dated { at, by: from as u32, event });
    }

    /// Puts what comes to another member at an instant, at least the latency from now.
    fn post_at(&mut self, at: Instant, from: Place, to: Place, event: Event) {
        if self.holds(to) {
            return self.queue.at(at, from, event);
        }
        self.mail_to(to, at).timed.push(Dated { at, by: from as u32, event });
    }

    /// Breaks the connections of this part's members between the two sides of a partition. Each side tells the other too, which may not know
    /// yet that it was answered.
    pub(super) fn cut(&mut self, partition: usize) {
        for place in self.places() {
            let splits = |other| self.settings.partitions[partition].splits(place, other);
            let open = self.member(place).ends.open();
            let broken: Vec<_> = open.filter(|(_, (other, _))| splits(*other)).collect();
            for (conn, (other, there)) in broken {
                self.queue.after(self.settings.latency, place, Event::Closed(place, conn));
                self.post(place, other, Event::Closed(other, there));
            }
        }
    }

    /// Breaks all connections of a member that is gone.
    pub(super) fn sever(&mut self, place: Place) {
        for (other, there) in self.member_mut(place).ends.close_all() {
            self.post(place, other, Event::Closed(other, there));
        }
    }

    pub(super) fn dial(&mut self, from: Place, addr: &Addr) {
        let to: Place = addr.0.parse().expect("simulated addresses are places");
        let member = self.member_mut(from);
        let (conn, life) = (member.ends.dial(to), member.life);
        self.post(from, to, Event::Dialed { from, conn, life, to });
    }

    pub(super) fn dialed(&mut self, from: Place, there: ConnId, life: u32, to: Place) {
        let is_up = self.role(to) != Role::Node || self.member(to).peer.is_some();
        if !is_up || self.settings.is_cut(from, to, self.now.since_start()) {
            return self.post(to, from, Event::Refused(from, there));
        }
        let member = self.member_mut(to);
        let (conn, own) = (member.ends.accept(from, there), member.life);
        self.post(to, from, Event::Answered { at: from, conn: there, with: to, there: conn, life: own });
        self.opened(to, conn, from, life, None);
    }

    pub(super) fn answered(&mut self, at: Place, conn: ConnId, with: Place, there: ConnId, life: u32) {
        if self.member_mut(at).ends.answered(conn, there) {
            self.opened(at, conn, with, life, Some(addr(with)));
        } else {
            // It died meanwhile.
            self.post(at, with, Event::Closed(with, there));
        }
    }

    pub(super) fn refused(&mut self, at: Place, conn: ConnId) {
        if let Some(other) = self.member_mut(at).ends.refused(conn)
            && self.role(at) == Role::Node
        {
            self.peer_input(at, peer::Input::ConnectFailed(addr(other)));
        }
    }

    fn opened(&mut self, at: Place, conn: ConnId, with: Place, life: u32, dialed: Option<Addr>) {
        let (peer, role, incarnation) = (id(with), self.role(with), u64::from(life));
        let zone = self.settings.zone(with);
        match self.role(at) {
            Role::Node => self.peer_input(at, peer::Input::Connected { conn, peer, incarnation, role, zone, dialed }),
            Role::Tracker => {
                self.tracker_input(tracker::Input::Connected { conn, peer, role, zone, host: String::new() });
            }
            Role::Gate => self.gate_input(gate::Input::Connected { conn, peer, role, dialed: dialed.is_some() }),
        }
    }

    pub(super) fn closed(&mut self, at: Place, conn: ConnId) {
        if self.member_mut(at).ends.close(conn).is_none() {
            return;
        }
        match self.role(at) {
            Role::Node => self.peer_input(at, peer::Input::Disconnected(conn)),
            Role::Tracker => self.tracker_input(tracker::Input::Disconnected(conn)),
            Role::Gate => self.gate_input(gate::Input::Disconnected(conn)),
        }
    }

    pub(super) fn message(&mut self, at: Place, conn: ConnId, message: Message) {
        match self.role(at) {
            // It lets be what comes on a connection that it does not know any more.
            Role::Node => self.peer_input(at, peer::Input::Message(conn, message)),
            _ if self.member(at).ends.other(conn).is_none() => {}
            Role::Tracker => self.tracker_input(tracker::Input::Message(conn, message)),
            Role::Gate => self.gate_input(gate::Input::Message(conn, message)),
        }
    }

    pub(super) fn send(&mut self, from: Place, conn: ConnId, message: Message) {
        let Some((to, there)) = self.member(from).ends.other(conn) else { return };
        match message {
            Message::Have { digest, pieces, count } if self.role(to) == Role::Node => {
                let comes = self.now + self.settings.latency;
                let artifact = self.artifact(&digest) as u32;
                for piece in pieces {
                    self.announce(to, Announcement { comes, conn: there.0 as u32, artifact, piece, count });
                }
            }
            _ => self.post(from, to, Event::Message(to, there, message)),
        }
    }

    fn announce(&mut self, to: Place, announcement: Announcement) {
        if self.holds(to) {
            return self.announced(to, announcement);
        }
        let looks = looks_at(announcement.comes);
        self.mail_to(to, looks).announcements.push((to, announcement));
    }

    pub(super) fn announced(&mut self, to: Place, announcement: Announcement) {
        self.inbox(to).announcements.push(announcement);
        self.look_by(to, looks_at(announcement.comes));
    }

    fn look_by(&mut self, at: Place, when: Instant) {
        let inbox = self.inbox(at);
        if when < inbox.looks {
            inbox.looks = when;
            self.queue.at(when, LOOKS, Event::Look(at));
        }
    }

    /// The time to look has come, unless it was brought forward.
    pub(super) fn look_due(&mut self, at: Place) {
        let now = self.now;
        if self.inbox(at).looks != now {
            return;
        }
        self.events += 1;
        self.inbox(at).looks = Instant::FAR;
        self.look(at);
        self.wake_later(at);
        if let Some(first) = self.inbox(at).announcements.iter().map(|announcement| announcement.comes).min() {
            self.look_by(at, looks_at(first));
        }
    }

    /// Lets a machine take the announcements that came until now, those of a neighbour that came together as one.
    pub(super) fn look(&mut self, at: Place) {
        let now = self.now;
        let mut announcements = std::mem::take(&mut self.inbox(at).announcements);
        // Those of another part are put later than they were said.
        announcements.sort_by_key(|announcement| (announcement.comes, announcement.conn));
        let came = announcements.partition_point(|announcement| announcement.comes <= now);
        let together = |one: &Announcement, next: &Announcement| {
            (one.comes, one.conn, one.artifact, one.count) == (next.comes, next.conn, next.artifact, next.count)
        };
        for batch in announcements[..came].chunk_by(together) {
            let Announcement { conn, artifact, count, .. } = batch[0];
            let (conn, digest) = (ConnId(u64::from(conn)), self.shapes[artifact as usize].digest());
            let pieces = batch.iter().map(|announcement| announcement.piece).collect();
            self.handle_at(at, peer::Input::Message(conn, Message::Have { digest, pieces, count }));
        }
        announcements.drain(..came);
        // None came meanwhile: a machine says nothing to itself.
        self.inbox(at).announcements = announcements;
    }

    pub(super) fn close(&mut self, from: Place, conn: ConnId) {
        if let Some((to, there)) = self.member_mut(from).ends.close(conn) {
            self.post(from, to, Event::Closed(to, there));
        }
    }

    /// Puts a block on the sender's uplink; gives when its last byte has left.
    pub(super) fn transmit(&mut self, from: Place, conn: ConnId, block: Block<Token>) -> Instant {
        let now = self.now;
        let member = self.member_mut(from);
        let end = member.up.free.max(now) + member.up.time(block.data.len);
        member.up.free = end;
        if let Some((to, conn)) = member.ends.other(conn) {
            match self.settings.crossing(from, to) {
                Some(zones) => self.queue.at(end, from, Event::Crosses { zones, at: to, conn, block }),
                None => self.post_at(end + self.settings.latency, from, to, Event::Arrives(to, conn, block)),
            }
        }
        end
    }

    /// The last byte of a block is at the receiver's downlink, which may be behind.
    pub(super) fn arrives(&mut self, at: Place, conn: ConnId, block: Block<Token>) {
        let now = self.now;
        let down = &mut self.member_mut(at).down;
        let end = now.max(down.free + down.time(block.data.len));
        down.free = end;
        self.queue.at(end, at, Event::Block(at, conn, block));
    }

    /// Takes a block from one zone to another, one after the other out of the first and into the second.
    pub(super) fn cross(&mut self, zones: (usize, usize), at: Place, conn: ConnId, block: Block<Token>) {
        let (out, into) = (self.out_of[zones.0], self.into[zones.1]);
        let end = self.now.max(out.free + out.time(block.data.len)).max(into.free + into.time(block.data.len));
        (self.out_of[zones.0].free, self.into[zones.1].free) = (end, end);
        self.crossed[zones.1] += u64::from(block.data.len);
        self.queue.at(end + self.settings.latency, at, Event::Arrives(at, conn, block));
    }
}

/// When a machine looks at what comes then, if nothing else makes it look before.
fn looks_at(comes: Instant) -> Instant {
    comes + LOOKING.min(comes.since_start() / 64)
}
