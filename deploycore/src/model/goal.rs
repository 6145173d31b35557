//! A goal: what should run, per service.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ArtifactRef, Labels, RegionName, ServiceName, Timestamp, Waiver, friendly};

/// Grows when goals start anew, for instance after the global store was restored from a backup: it outranks generations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GoalEpoch(pub u64);

/// Counts the goals of a service in an epoch. It only grows, also for a rollback.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// Orders the goals of a service: the epoch, then the generation. It never falls, in any region, on any machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GoalPosition {
    /// Outranks the generation.
    pub epoch: GoalEpoch,
    /// Grows within the epoch.
    pub generation: Generation,
}

/// Counts the writes of one goal-state store. Two stores' revisions have nothing to do with each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

macro_rules! display_number {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

display_number!(GoalEpoch, Generation, Revision);

impl fmt::Display for GoalPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.generation)
    }
}

/// What a service should run, and where. Written once and never changed: a change is a new generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goal {
    /// The service.
    pub service: ServiceName,
    /// Its place in the order of the service's goals.
    #[serde(flatten)]
    pub position: GoalPosition,
    /// What to run.
    pub artifact: ArtifactRef,
    /// How to run it; versioned with the artifact.
    pub run: RunSpec,
    /// Which machines run it.
    pub selector: Selector,
    /// Why this generation exists.
    pub origin: Origin,
    /// When the deployer wrote it, by the deployer's clock: for people.
    pub created_at: Timestamp,
    /// The required regions that it was written without; none as a rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waivers: Vec<Waiver>,
}

impl Goal {
    /// The required regions that it was written without.
    pub fn waived(&self) -> BTreeSet<RegionName> {
        self.waivers.iter().map(|waiver| waiver.region.clone()).collect()
    }

    /// Those of them whose waiver has not expired yet.
    pub fn waived_at(&self, now: Timestamp) -> BTreeSet<RegionName> {
        let valid = self.waivers.iter().filter(|waiver| waiver.expires_at > now);
        valid.map(|waiver| waiver.region.clone()).collect()
    }
}

/// Why a generation exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Origin {
    /// A deploy of an artifact.
    Deploy,
    /// The content of an earlier generation again.
    Rollback {
        /// The generation that was deployed, never itself a rollback.
        restores: GoalPosition,
    },
}

/// How a machine runs an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunSpec {
    /// Arguments. `{port}` stands for the port, if there is one.
    pub args: Vec<String>,
    /// Environment, on top of a clean one (`PATH`, `HOME`, and `PORT` where there is one).
    pub env: BTreeMap<String, String>,
    /// The port the service listens on.
    pub port: Port,
    /// When it counts as running.
    pub readiness: Readiness,
    /// How long it may take to become ready; 60 s by default, a week at most, as each span here.
    #[serde(with = "friendly")]
    pub ready_timeout: Duration,
    /// From SIGTERM to SIGKILL; 10 s by default.
    #[serde(with = "friendly")]
    pub stop_grace: Duration,
}

impl Default for RunSpec {
    fn default() -> Self {
        Self {
            args: Vec::new(),
            env: BTreeMap::new(),
            port: Port::None,
            readiness: Readiness::Installed,
            ready_timeout: Duration::from_mins(1),
            stop_grace: Duration::from_secs(10),
        }
    }
}

/// Which port a service listens on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Port {
    /// It needs none.
    #[default]
    None,
    /// The agent picks a free one at each start and reports it.
    Free,
    /// This one.
    Fixed(u16),
}

/// When a started artifact counts as running.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Readiness {
    /// Nothing is started: the verified bytes under `current` are all that is wanted.
    #[default]
    Installed,
    /// It is run once and must end with 0.
    Exit,
    /// It must stay alive this long.
    Alive(#[serde(with = "friendly")] Duration),
    /// `GET` on this path of its port must answer with a 2xx status.
    Http(String),
}

/// Which machines run a service: those that have all these labels. An empty selector names every machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Selector(pub BTreeMap<String, String>);

impl Selector {
    /// Every machine.
    pub fn all() -> Self {
        Self::default()
    }

    /// Whether a machine with these labels is meant.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|(key, value)| labels.0.get(key) == Some(value))
    }
}
