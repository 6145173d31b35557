//! The swarm: the store is read about once, verified bytes only.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use deploycore::model::{Digest, RegionName, piece_size_for};
use deploycore_p2p::core::gate::Record;

use super::{Checker, Invariant, Met};

/// What gates read.
#[derive(Debug, Default)]
pub struct Model {
    read: BTreeMap<(RegionName, Digest), Read>,
}

#[derive(Debug, Default)]
struct Read {
    bytes: u64,
    ranges: BTreeSet<(u64, u64)>,
}

impl Checker {
    /// A gate read bytes of an artifact from its region's store for a machine; `record` is what gates say durably.
    pub fn gate_read(&self, region: &RegionName, digest: &Digest, range: &Range<u64>, record: Option<&Record>) {
        let Some(built) = self.truth(digest) else { return };
        self.effect();
        let (read, fresh) = {
            let mut state = self.lock();
            let read = state.swarm.read.entry((region.clone(), *digest)).or_default();
            read.bytes += range.end - range.start;
            (read.bytes, read.ranges.insert((range.start, range.end)))
        };
        if !fresh {
            self.trace.met(Met::Releases);
            self.trace.event("gate", format_args!("{region} reads {range:?} of {digest:?} again"));
        }
        let size = built.bytes.len() as u64;
        let most = (size + size / 5).max(size + 8 * piece_size_for(size));
        let (leased, recovery) = record.map_or((0, 0), |record| (record.leased, record.recovery));
        let within = read <= leased + recovery && read <= most + recovery && leased <= most;
        self.require(Invariant::StoreReadOnce, within, || {
            format!(
                "{region} read {read} bytes of an artifact of {size}; {leased} are leased, {recovery} recovered, {most} allowed"
            )
        });
    }

    /// A node reads bytes to share them.
    pub fn shared(&self, digest: &Digest, offset: u64, bytes: &[u8]) {
        let truth = self.truth(digest);
        let start = offset as usize;
        let same = truth.is_some_and(|built| built.bytes.get(start..start + bytes.len()) == Some(bytes));
        self.require(Invariant::VerifiedBytesOnly, same, || {
            format!("{} bytes at {offset} of {digest:?} are shared and are something else", bytes.len())
        });
    }

    /// A piece did not verify, and was dropped.
    pub fn bad_piece(&self, digest: &Digest) {
        self.trace.met(Met::BadPieces);
        self.trace.event("swarm", format_args!("a piece of {digest:?} does not verify"));
    }
}
