//! The members of one artifact: who has what, and who knows whom.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::standing::Gone;
use crate::core::bitfield::Bitfield;
use crate::core::message::{ConnId, Contact, MAX_CONTACTS, PeerId, Standing, Zone, ZonePart};
use crate::core::shape::Shape;
use crate::core::time::Instant;

#[derive(Debug)]
pub(super) struct Member {
    pub(super) contact: Contact,
    pub(super) conn: ConnId,
    pub(super) zone: Option<Zone>,
    pub(super) have: Bitfield,
    pub(super) standing: Standing,
    pub(super) heard: Instant,
    /// When it is forgotten unless it is heard of.
    pub(super) expires: Instant,
    /// Introductions it is part of, as far as known.
    pub(super) degree: u16,
    /// Where it stands among the members of its zone.
    pub(super) in_zone: usize,
}

#[derive(Debug)]
pub(super) struct Swarm {
    pub(super) shape: Shape,
    pub(super) members: Vec<Member>,
    pub(super) index: BTreeMap<PeerId, usize>,
    /// The members of each zone, in no order.
    zones: BTreeMap<Zone, Vec<PeerId>>,
    /// How many members hold each piece.
    pub(super) holders: Vec<u32>,
    pub(super) gone: Gone,
}

/// How many members at most are looked at for one introduction.
const SCAN: usize = 2_048;

impl Swarm {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            shape,
            members: Vec::new(),
            index: BTreeMap::new(),
            zones: BTreeMap::new(),
            holders: vec![0; shape.pieces() as usize],
            gone: Gone::new(),
        }
    }

    pub(super) fn note(&mut self, member: Member) {
        self.gone.remove(&member.contact.peer);
        if let Some(at) = self.index.get(&member.contact.peer) {
            let known = &mut self.members[*at];
            known.have.minus(&member.have).for_each(|piece| self.holders[piece as usize] -= 1);
            member.have.minus(&known.have).for_each(|piece| self.holders[piece as usize] += 1);
            let (degree, in_zone, old) = (known.degree, known.in_zone, known.zone);
            let (zone, peer) = (member.zone, member.contact.peer);
            *known = Member { degree, in_zone, ..member };
            if zone != old {
                self.leave_zone(old, in_zone);
                let at = self.index[&peer];
                self.members[at].in_zone = self.enter_zone(zone, peer);
            }
        } else {
            member.have.iter().for_each(|piece| self.holders[piece as usize] += 1);
            let in_zone = self.enter_zone(member.zone, member.contact.peer);
            self.index.insert(member.contact.peer, self.members.len());
            self.members.push(Member { in_zone, ..member });
        }
    }

    fn enter_zone(&mut self, zone: Option<Zone>, peer: PeerId) -> usize {
        let Some(zone) = zone else { return 0 };
        let members = self.zones.entry(zone).or_default();
        members.push(peer);
        members.len() - 1
    }

    fn leave_zone(&mut self, zone: Option<Zone>, in_zone: usize) {
        let Some(zone) = zone else { return };
        let Some(members) = self.zones.get_mut(&zone) else { return };
        members.swap_remove(in_zone);
        if let Some(at) = members.get(in_zone).and_then(|moved| self.index.get(moved)) {
            self.members[*at].in_zone = in_zone;
        }
        if members.is_empty() {
            self.zones.remove(&zone);
        }
    }

    /// Which of the members of its zone one is.
    pub(super) fn part(&self, peer: PeerId) -> Option<ZonePart> {
        let member = &self.members[*self.index.get(&peer)?];
        let of = self.zones.get(&member.zone?)?.len();
        Some(ZonePart { index: member.in_zone as u32, of: of as u32 })
    }

    pub(super) fn holders_except(&self, piece: u32, except: &[PeerId]) -> u32 {
        let holds = |peer: &&PeerId| self.index.get(peer).is_some_and(|at| self.members[*at].have.contains(piece));
        let all = self.holders.get(piece as usize).copied().unwrap_or(0);
        all.saturating_sub(except.iter().filter(holds).count() as u32)
    }

    /// One that fetched all of it still counts among those that did, for as many as `max_gone`.
    pub(super) fn forget(&mut self, peer: PeerId, max_gone: usize) {
        let Some(at) = self.index.remove(&peer) else {
            return;
        };
        let member = self.members.swap_remove(at);
        if member.have.is_full() && member.standing.millis.is_some() && self.gone.len() < max_gone {
            self.gone.insert(peer, member.standing);
        }
        member.have.iter().for_each(|piece| self.holders[piece as usize] -= 1);
        if let Some(moved) = self.members.get(at) {
            self.index.insert(moved.contact.peer, at);
        }
        self.leave_zone(member.zone, member.in_zone);
    }

    /// Up to `wanted` members for `peer`, and beyond that a few that hold what it needs.
    pub(super) fn introduce(&mut self, peer: PeerId, need: &[u32], wanted: usize, rng: &mut Rng) -> Vec<Contact> {
        let own = self.index[&peer];
        let mut chosen: Vec<usize> = Vec::new();
        if !need.is_empty() {
            let start = rng.usize(..self.members.len());
            let scanned = (0..self.members.len().min(SCAN)).map(|step| (start + step) % self.members.len());
            let holds = |at: &usize| *at != own && need.iter().any(|piece| self.members[*at].have.contains(*piece));
            chosen.extend(scanned.filter(holds).take(8));
        }
        let len = self.members.len();
        let zone = self.members[own].zone.and_then(|zone| self.zones.get(&zone));
        match zone.filter(|zone| zone.len() < len) {
            _ if len <= wanted + 1 => chosen.extend((0..len).filter(|at| *at != own)),
            None => chosen.extend(self.least_introduced(len, |at| at, wanted, rng, |at| at != own)),
            Some(zone) => {
                let near = |step: usize| self.index[&zone[step]];
                let near = self.least_introduced(zone.len(), near, wanted - far(wanted), rng, |at| at != own);
                let elsewhere = |at: usize| self.members[at].zone != self.members[own].zone;
                chosen.extend(self.least_introduced(len, |at| at, wanted - near.len(), rng, elsewhere));
                chosen.extend(near);
            }
        }
        chosen.sort_unstable();
        chosen.dedup();
        rng.shuffle(&mut chosen);
        chosen.truncate(MAX_CONTACTS);
        for at in &chosen {
            self.members[*at].degree = self.members[*at].degree.saturating_add(1);
        }
        self.members[own].degree = self.members[own].degree.saturating_add(chosen.len() as u16);
        chosen.into_iter().map(|at| self.members[at].contact.clone()).collect()
    }

    /// Those with the fewest introductions among some that are drawn at random from so many candidates and may be named.
    fn least_introduced(
        &self,
        candidates: usize,
        candidate: impl Fn(usize) -> usize,
        wanted: usize,
        rng: &mut Rng,
        may: impl Fn(usize) -> bool,
    ) -> Vec<usize> {
        let mut sample: Vec<usize> = match candidates {
            all if all <= wanted * 4 => (0..all).map(candidate).collect(),
            _ => (0..wanted * 3).map(|_| candidate(rng.usize(..candidates))).collect(),
        };
        sample.sort_unstable();
        sample.dedup();
        sample.retain(|at| may(*at));
        rng.shuffle(&mut sample);
        sample.sort_by_key(|at| self.members[*at].degree);
        sample.truncate(wanted);
        sample
    }
}

/// How many of the members that are named to one in a zone are in others, at least: 30 %. With fewer, zones would be islands.
fn far(wanted: usize) -> usize {
    (wanted * 3).div_ceil(10)
}
