//! Which artifacts may ask, in which order, and what becomes of what others asked for when a rollback begins.

use std::cmp::Reverse;

use deploycore::model::Digest;
use deploycore::port::swarm::Priority;
use smallvec::SmallVec;

use super::Peer;
use super::artifact::Artifact;
use super::rates::Way;
use crate::core::message::{Message, Payload, Role};
use crate::core::time::Instant;

impl<B> Artifact<B> {
    pub(super) fn is_rollback(&self) -> bool {
        self.priority == Priority::Rollback
    }

    /// Whether others wait for it. One with a limit of its own leaves them the rest.
    pub(super) fn takes_precedence(&self, way: Way) -> bool {
        self.is_rollback() && !self.rates.is_limited(way)
    }
}

impl<B: Payload> Peer<B> {
    /// The artifacts that may ask, in order: rollbacks, before which others may have to wait, then by turn.
    pub(super) fn by_share(&mut self, now: Instant) -> SmallVec<[usize; 4]> {
        let wanted = |at: &usize| !self.artifacts[*at].have.is_full();
        let mut order: SmallVec<[usize; 4]> = (0..self.artifacts.len()).filter(wanted).collect();
        if order.len() > 1 {
            let rollback = |at: usize| self.artifacts[at].is_rollback();
            if order.iter().any(|at| rollback(*at))
                && let Some(until) = self.precedence_in.holds(self.is_bringing_rollback(), now)
            {
                order.retain(|at| rollback(*at));
                self.tokens_at = self.tokens_at.min(until);
            }
            let turn = |artifact: &Artifact<B>| self.turns_in.of(artifact.turn_in, artifact.slack());
            order.sort_by_key(|at| (Reverse(rollback(*at)), turn(&self.artifacts[*at])));
        }
        order
    }

    pub(super) fn is_bringing_rollback(&self) -> bool {
        let brought = |artifact: &Artifact<B>| artifact.outstanding > 0 && artifact.takes_precedence(Way::In);
        self.artifacts.iter().any(brought)
    }

    /// Bytes asked for and not yet received, of rollbacks or of all others: neither waits for the other's.
    pub(super) fn outstanding_beside(&self, artifact: usize) -> u64 {
        let rollback = self.artifacts[artifact].is_rollback();
        let beside = self.artifacts.iter().filter(|other| other.is_rollback() != rollback);
        self.outstanding - beside.map(|other| other.outstanding).sum::<u64>()
    }

    /// Notes that bytes of an artifact are asked for. A rollback that begins to ask stops what others have under way.
    pub(super) fn asked(&mut self, at: usize, bytes: u64, now: Instant) {
        let artifact = &mut self.artifacts[at];
        self.outstanding += bytes;
        artifact.outstanding += bytes;
        let slack = artifact.slack();
        self.turns_in.take(&mut artifact.turn_in, bytes, slack, artifact.priority);
        if artifact.takes_precedence(Way::In) && self.precedence_in.begin(now) {
            self.stop_others();
        }
    }

    /// Notes that requests are over: the bytes came, or will not come, and then they cost nothing.
    pub(super) fn no_more_asked(&mut self, digest: &Digest, bytes: u64, came: bool) {
        self.outstanding -= bytes;
        let Some(at) = self.artifact_at(digest) else {
            return;
        };
        let artifact = &mut self.artifacts[at];
        artifact.outstanding -= bytes;
        if came {
            self.precedence_in.moved(bytes, artifact.is_rollback());
        } else {
            artifact.turn_in.give_back(bytes, artifact.priority);
            self.give_back_rate(at, Way::In, bytes);
        }
    }

    /// Takes back what neighbours were asked for of others than rollbacks. Blocks on their way come all the same, and are of use: their
    /// pieces stay begun with whom they were begun.
    fn stop_others(&mut self) {
        for artifact in 0..self.artifacts.len() {
            let own = &self.artifacts[artifact];
            if own.is_rollback() || own.outstanding == 0 {
                continue;
            }
            let digest = own.shape.digest();
            for at in 0..self.links.len() {
                let (conn, role) = (self.links[at].conn, self.links[at].role);
                if role != Role::Node {
                    continue;
                }
                let asks = self.links.take_asks(at, |ask| ask.digest == digest);
                self.artifacts[artifact].unask(&asks);
                for ask in &asks {
                    self.send(conn, Message::Cancel { digest, piece: ask.piece, block: ask.block });
                }
                self.no_more_asked(&digest, asks.iter().map(|ask| u64::from(ask.len)).sum(), false);
            }
        }
    }
}
