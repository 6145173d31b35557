//! Who sent bad bytes.

use super::Peer;
use super::artifact::{Begun, Suspect};
use crate::core::message::{ConnId, Message, Payload, PeerId, Refusal, Role};
use crate::core::time::Instant;

/// Pieces with suspect sources that are remembered.
const MAX_SUSPECTS: usize = 64;

impl<B: Payload> Peer<B> {
    /// Finds who sent bad bytes: at once when the piece had one source, otherwise once a good copy is here to compare with.
    pub(super) fn blame(
        &mut self,
        at: usize,
        piece: u32,
        begun: &Begun<B>,
        sources: &[(PeerId, bool, u64)],
        hashes: &[[u8; 32]],
        now: Instant,
    ) {
        tracing::warn!(digest = %self.artifacts[at].shape.digest().short(), piece, "a piece did not verify");
        let store = sources.iter().any(|(_, store, _)| *store);
        if let (true, Some(conn)) = (store, begun.source.filter(|conn| self.is_gate(*conn))) {
            let (digest, refusal) = (self.artifacts[at].shape.digest(), Refusal::BadBytes);
            self.send(conn, Message::Reject { digest, piece, block: 0, count: 1, refusal });
        }
        let first = sources.first().map(|(peer, store, _)| (*peer, *store));
        match first {
            Some((peer, store)) if sources.iter().all(|(other, ..)| *other == peer) => {
                self.convict(peer, store, piece, now);
            }
            _ => {
                let suspects = &mut self.artifacts[at].suspects;
                if suspects.len() < MAX_SUSPECTS && !suspects.iter().any(|suspect| suspect.piece == piece) {
                    let blocks = sources.iter().zip(hashes).map(|((peer, store, _), hash)| (*peer, *store, *hash));
                    suspects.push(Suspect { piece, blocks: blocks.collect() });
                }
            }
        }
    }

    /// Refuses a member that sent bad bytes, for a time. A gate is not refused: there is no other door, and the store behind it
    /// may be repaired.
    pub(super) fn convict(&mut self, peer: PeerId, store: bool, piece: u32, now: Instant) {
        if store {
            return;
        }
        tracing::warn!(%peer, piece, "a peer sent bad bytes; it is refused for a while");
        self.quarantine.insert(peer, now + self.settings.quarantine);
        let links: Vec<ConnId> = self.links.iter().filter(|link| link.peer == peer).map(|link| link.conn).collect();
        for conn in links {
            self.close(conn, "it sent bad bytes", now);
        }
    }

    /// A good copy of a piece is here: whoever sent other bytes in a bad one before is found by comparison.
    pub(super) fn compare_with_suspects(&mut self, at: usize, piece: u32, hashes: &[[u8; 32]], now: Instant) {
        let artifact = &mut self.artifacts[at];
        if let Some(suspect) = artifact.suspects.iter().position(|suspect| suspect.piece == piece) {
            let suspect = artifact.suspects.swap_remove(suspect);
            let differs = |((_, _, bad), good): &(&(PeerId, bool, [u8; 32]), &[u8; 32])| bad != *good;
            let guilty: Vec<(PeerId, bool)> = suspect
                .blocks
                .iter()
                .zip(hashes)
                .filter(differs)
                .map(|((peer, store, _), _)| (*peer, *store))
                .collect();
            for (peer, store) in guilty {
                self.convict(peer, store, piece, now);
            }
        }
    }

    fn is_gate(&self, conn: ConnId) -> bool {
        self.links.of(conn).is_some_and(|link| link.role == Role::Gate)
    }
}
