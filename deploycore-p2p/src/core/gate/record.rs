//! What a gate keeps of an artifact for good.

use serde::{Deserialize, Serialize};

use super::Settings;
use crate::core::shape::Shape;

/// The durable counts of one artifact: what was granted, whether or not all of it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Bytes of the artifact.
    pub size: u64,
    /// Bytes granted by leases within the budget.
    pub leased: u64,
    /// Bytes granted by recovery leases.
    pub recovery: u64,
    /// How often each piece was granted.
    pub reads: Vec<u8>,
}

/// What was read of an artifact.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes of leased reads.
    pub leased_bytes: u64,
    /// Bytes of recovery reads.
    pub recovery_bytes: u64,
    /// Bytes of the artifact.
    pub size: u64,
}

impl Usage {
    /// All reads as a multiple of the artifact's size.
    pub fn ratio(&self) -> f64 {
        (self.leased_bytes + self.recovery_bytes) as f64 / self.size.max(1) as f64
    }
}

impl Record {
    /// The record of an artifact of which nothing was read.
    pub fn new(shape: &Shape) -> Self {
        Self { size: shape.size(), leased: 0, recovery: 0, reads: vec![0; shape.pieces() as usize] }
    }

    /// Whether it can be of this artifact.
    pub fn fits(&self, shape: &Shape) -> bool {
        self.size == shape.size() && self.reads.len() == shape.pieces() as usize
    }

    /// What was granted.
    pub fn usage(&self) -> Usage {
        Usage { leased_bytes: self.leased, recovery_bytes: self.recovery, size: self.size }
    }
}

/// How many bytes of leased reads an artifact may have: invariant 9.
pub(super) fn budget(shape: &Shape, settings: &Settings) -> u64 {
    let by_ratio = (shape.size() as f64 * settings.budget_ratio) as u64;
    by_ratio.max(shape.size() + u64::from(settings.budget_pieces) * shape.piece_size())
}
