//! The ten invariants, looked at after each effect.
//!
//! The checker reads the memory backends directly, beneath every mishap and every mutant, and keeps a model of its own of what was
//! acknowledged. It calls none of the rules that it checks.

pub mod goals;
pub mod ledger;
pub mod machine;
pub mod queue;
pub mod swarm;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use deploycore::memory;
use deploycore::model::{Digest, JobId, RegionName};
use tokio_util::sync::CancellationToken;

use super::trace::{Met, Trace};

/// What must hold. The first ten are the design's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// 1. Only the current lease can write.
    OneEffectiveRun,
    /// 2. SUCCEEDED implies that the artifact is stored whole.
    StoredBeforeSucceeded,
    /// 3. Every job ends within its bounds.
    EveryJobEnds,
    /// 4. What was acknowledged stays.
    NothingIsLost,
    /// 5. A goal is written only when each region has its artifact, pinned.
    NoEarlyDeploy,
    /// 6. A goal's position never falls, and has one content.
    NoGoingBack,
    /// 7. No byte is run or shared before it verified.
    VerifiedBytesOnly,
    /// 8. A machine runs the old build or the new one, and a crash of its agent stops neither.
    OldOrNew,
    /// 9. The store is read about once.
    StoreReadOnce,
    /// 10. After healing each machine runs the newest goal.
    NewestGoalWins,
    /// Besides the ten: a dropped service leaves nothing running, and no service ends by itself.
    TasksEndWithTheirService,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// What was seen.
    pub detail: String,
}

/// The backends of a region.
#[derive(Debug, Clone, Default)]
pub struct RegionBackends {
    pub store: memory::Store,
    pub goals: memory::Goals,
}

/// All backends, as they are beneath mishaps and mutants.
#[derive(Debug)]
pub struct Backends {
    pub queue: Arc<memory::Queue>,
    pub ledger: Arc<memory::Ledger>,
    pub main: memory::Store,
    pub goals: memory::Goals,
    pub regions: BTreeMap<RegionName, RegionBackends>,
}

/// What a build gave: the truth about a digest.
#[derive(Debug, Clone)]
pub struct Built {
    pub job: JobId,
    pub bytes: Bytes,
    /// Whether it becomes ready on a machine.
    pub works: bool,
}

/// Looks at every effect.
#[derive(Debug)]
pub struct Checker {
    pub backends: Arc<Backends>,
    pub trace: Arc<Trace>,
    /// Cancelled by the first violation: the run is over.
    pub stop: CancellationToken,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    violation: Option<Violation>,
    built: BTreeMap<Digest, Built>,
    queue: queue::Model,
    ledger: ledger::Model,
    goals: goals::Model,
    machines: machine::Model,
    swarm: swarm::Model,
}

impl Checker {
    /// Nothing has happened yet.
    pub fn new(backends: Arc<Backends>, trace: Arc<Trace>) -> Self {
        Self { backends, trace, stop: CancellationToken::new(), state: Mutex::default() }
    }

    /// An invariant does not hold. The first one counts.
    pub fn violated(&self, invariant: Invariant, detail: impl Into<String>) {
        let detail = detail.into();
        self.trace.event("checker", format_args!("VIOLATION of {invariant}: {detail}"));
        self.lock().violation.get_or_insert(Violation { invariant, detail });
        self.stop.cancel();
    }

    /// The first violation.
    pub fn violation(&self) -> Option<Violation> {
        self.lock().violation.clone()
    }

    /// A builder made these bytes.
    pub fn built(&self, built: Built) -> Digest {
        let digest = Digest::of(&built.bytes);
        self.lock().built.insert(digest, built);
        digest
    }

    /// What a digest stands for.
    pub fn truth(&self, digest: &Digest) -> Option<Built> {
        self.lock().built.get(digest).cloned()
    }

    fn require(&self, invariant: Invariant, holds: bool, detail: impl FnOnce() -> String) {
        if !holds {
            self.violated(invariant, detail());
        }
    }

    fn effect(&self) {
        self.trace.met(Met::Effects);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
