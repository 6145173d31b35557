//! What happened in a run: a hash of everything, the last lines, and counts that show that the run was not idle.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// How many lines a failure shows.
const KEPT_LINES: usize = 80;

/// What a run met. A run of many seeds in which one of these stays 0 is idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Met {
    /// Effects on a backend.
    Effects,
    /// A service dropped at an await.
    Crashes,
    /// A service kept from acting for a while, as by SIGSTOP.
    Stalls,
    /// A region cut off from the global backends.
    Partitions,
    /// A call that failed before its effect.
    Failures,
    /// A call that had its effect and failed.
    LostReplies,
    /// A call that had its effect after its caller had given it up.
    Strays,
    /// A holder of a void lease that was refused.
    Zombies,
    /// Jobs taken back from a lost worker.
    Rescues,
    /// Jobs that succeeded.
    Builds,
    /// Copies that became complete.
    Copies,
    /// Copies that disappeared from a region.
    LostCopies,
    /// Deploys refused because a region lacked the artifact.
    Refusals,
    /// Goals written to the global store.
    Revisions,
    /// Those of them that were rollbacks.
    Rollbacks,
    /// Goals that a machine gave up for the previous build.
    Reverts,
    /// Artifacts that a machine fetched.
    Fetches,
    /// Pieces read from a region's store again after a lease on them ran out.
    Releases,
    /// Pieces that did not verify.
    BadPieces,
}

impl Met {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::Effects,
        Self::Crashes,
        Self::Stalls,
        Self::Partitions,
        Self::Failures,
        Self::LostReplies,
        Self::Strays,
        Self::Zombies,
        Self::Rescues,
        Self::Builds,
        Self::Copies,
        Self::LostCopies,
        Self::Refusals,
        Self::Revisions,
        Self::Rollbacks,
        Self::Reverts,
        Self::Fetches,
        Self::Releases,
        Self::BadPieces,
    ];
}

/// Counts of what was met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<Met, u64>);

impl Tally {
    /// How often.
    pub fn get(&self, met: Met) -> u64 {
        self.0.get(&met).copied().unwrap_or(0)
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Self) {
        for (met, count) in &other.0 {
            *self.0.entry(*met).or_default() += count;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts: Vec<_> = Met::ALL.iter().map(|met| format!("{met:?} {}", self.get(*met))).collect();
        f.write_str(&counts.join(", "))
    }
}

/// The events of one run, in order.
#[derive(Debug)]
pub struct Trace {
    started: Instant,
    print: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    hasher: blake3::Hasher,
    lines: VecDeque<String>,
    tally: Tally,
}

impl Trace {
    /// An empty trace that starts now; `print` shows each event as it comes.
    pub fn new(print: bool) -> Self {
        Self { started: Instant::now(), print, state: Mutex::default() }
    }

    /// Notes an event. Its text holds no random id, so that two runs of one seed hash alike.
    pub fn event(&self, actor: &str, text: impl fmt::Display) {
        let line = format!("{:>12.6} {actor:<14} {text}", self.started.elapsed().as_secs_f64());
        if self.print {
            println!("{line}");
        }
        let mut state = self.lock();
        state.hasher.update(line.as_bytes());
        if state.lines.len() == KEPT_LINES {
            state.lines.pop_front();
        }
        state.lines.push_back(line);
    }

    /// Counts something met.
    pub fn met(&self, met: Met) {
        *self.lock().tally.0.entry(met).or_default() += 1;
    }

    /// Virtual time since the start.
    pub fn elapsed(&self) -> std::time::Duration {
        self.started.elapsed()
    }

    /// The counts so far.
    pub fn tally(&self) -> Tally {
        self.lock().tally.clone()
    }

    /// The hash of all events so far.
    pub fn hash(&self) -> String {
        self.lock().hasher.finalize().to_hex()[..16].to_owned()
    }

    /// The last events.
    pub fn tail(&self) -> String {
        self.lock().lines.iter().fold(String::new(), |all, line| all + line + "\n")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
