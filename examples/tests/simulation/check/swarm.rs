//! The swarm: the store is read about once, verified bytes only.

use std::collections::BTreeMap;

use deploycore::model::{Digest, RegionName, piece_size_for};

use super::{Checker, Invariant};

/// What gates read.
#[derive(Debug, Default)]
pub struct Model {
    read: BTreeMap<(RegionName, Digest), u64>,
}

impl Checker {
    /// A gate read bytes of an artifact from its region's store for machines.
    pub fn gate_read(&self, region: &RegionName, digest: &Digest, bytes: u64) {
        let Some(built) = self.truth(digest) else { return };
        let read = {
            let mut state = self.lock();
            let read = state.swarm.read.entry((region.clone(), *digest)).or_default();
            *read += bytes;
            *read
        };
        let size = built.bytes.len() as u64;
        let most = (size + size / 5).max(size + 8 * piece_size_for(size));
        self.require(Invariant::StoreReadOnce, read <= most, || {
            format!("{region} read {read} bytes of an artifact of {size}; {most} are allowed")
        });
    }
}
