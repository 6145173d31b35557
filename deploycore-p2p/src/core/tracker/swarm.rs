//! The members of one artifact: who has what, and who knows whom.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::standing::Gone;
use crate::core::bitfield::Bitfield;
use crate::core::message::{ConnId, Contact, MAX_CONTACTS, PeerId, Standing};
use crate::core::shape::Shape;
use crate::core::time::Instant;

#[derive(Debug)]
pub(super) struct Member {
    pub(super) contact: Contact,
    pub(super) conn: ConnId,
    pub(super) have: Bitfield,
    pub(super) standing: Standing,
    pub(super) heard: Instant,
    /// When it is forgotten unless it is heard of.
    pub(super) expires: Instant,
    /// Introductions it is part of, as far as known.
    pub(super) degree: u16,
}

#[derive(Debug)]
pub(super) struct Swarm {
    pub(super) shape: Shape,
    pub(super) members: Vec<Member>,
    pub(super) index: BTreeMap<PeerId, usize>,
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
            let degree = known.degree;
            *known = Member { degree, ..member };
        } else {
            member.have.iter().for_each(|piece| self.holders[piece as usize] += 1);
            self.index.insert(member.contact.peer, self.members.len());
            self.members.push(member);
        }
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
        if self.members.len() <= wanted + 1 {
            chosen.extend((0..self.members.len()).filter(|at| *at != own));
        } else {
            let len = self.members.len();
            let mut sample: Vec<usize> = match len {
                len if len <= wanted * 4 => (0..len).collect(),
                _ => (0..wanted * 3).map(|_| rng.usize(..len)).collect(),
            };
            sample.sort_unstable();
            sample.dedup();
            sample.retain(|at| *at != own);
            rng.shuffle(&mut sample);
            sample.sort_by_key(|at| self.members[*at].degree);
            chosen.extend(sample.into_iter().take(wanted));
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
}
