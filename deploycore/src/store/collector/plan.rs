//! What to collect, as a pure function: state in, plan out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{
    ArtifactName, ArtifactStatus, CopyState, Digest, GoalPosition, MachineName, MachineReport, PinHolder, RegionName,
    ServiceName, Timestamp, Tombstone, elapsed,
};
use crate::port::goals::Stored;

/// What a plan is made from.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    /// The artifacts that are old enough, newest first.
    pub(super) artifacts: Vec<ArtifactStatus>,
    /// The newest of each service: those to keep.
    pub(super) newest: BTreeMap<ServiceName, BTreeSet<ArtifactName>>,
    /// The goals of each service, with its history.
    pub(super) goals: BTreeMap<ServiceName, Vec<Stored>>,
    /// What the machines of each region that has a store here may run, or why nothing is known of that.
    pub(super) machines: BTreeMap<RegionName, Result<Run, String>>,
}

/// What the machines of a region may run, each with one of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Run {
    /// What they do run.
    current: BTreeMap<Digest, MachineName>,
    /// The goals that they are at.
    goals: BTreeMap<(ServiceName, GoalPosition), MachineName>,
    /// There may be machines that are not known yet.
    pub(super) settling: bool,
}

impl Run {
    pub(super) fn add(&mut self, report: &MachineReport) {
        for service in &report.services {
            if let Some((_, artifact)) = &service.current {
                self.current.entry(artifact.digest).or_insert_with(|| report.machine.clone());
            }
            self.goals.entry((service.service.clone(), service.goal)).or_insert_with(|| report.machine.clone());
        }
    }
}

/// What would be collected, and what keeps the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectionPlan {
    /// Bytes to delete, with the artifacts that they are of. Those of the oldest artifacts first.
    pub collect: Vec<Collectable>,
    /// Each artifact that is old enough and stays, with what keeps it.
    pub kept: BTreeMap<ArtifactName, Kept>,
    /// Bytes in the main store or in a region's that no artifact has. They go where they are old.
    #[serde(default)]
    pub unneeded: BTreeSet<Digest>,
}

/// Bytes to delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collectable {
    /// Their name in every store.
    pub digest: Digest,
    /// How many they are, in each store.
    pub size: u64,
    /// The artifacts that are these bytes.
    pub artifacts: BTreeSet<ArtifactName>,
}

/// What keeps an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kept {
    /// A goal, or one in the history of goals, names these bytes.
    Goal {
        /// Of this service.
        service: ServiceName,
        /// The newest that does.
        position: GoalPosition,
    },
    /// A pin.
    Pin {
        /// Whose.
        holder: PinHolder,
    },
    /// It is one of the newest of its service.
    Newest,
    /// A machine runs these bytes.
    Machine {
        /// Where.
        region: RegionName,
        /// Which.
        machine: MachineName,
    },
    /// A machine is at a goal of its service that the history does not have any more: it may be of this artifact.
    UnknownGoal {
        /// Where.
        region: RegionName,
        /// Which.
        machine: MachineName,
    },
    /// A region that has a copy does not tell what its machines run.
    Silent {
        /// Which.
        region: RegionName,
        /// Why.
        reason: String,
    },
    /// A region that has a copy has no store here.
    NoStore {
        /// Which.
        region: RegionName,
    },
    /// It is to be copied, or is being copied.
    OnItsWay {
        /// Where to.
        region: RegionName,
    },
    /// Another artifact, which is kept, is the same bytes.
    SameBytes {
        /// Which.
        artifact: ArtifactName,
    },
    /// It is being collected already.
    Collecting {
        /// How far that is.
        tombstone: Tombstone,
    },
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Goal { service, position } => write!(f, "goal {position} of {service} names it"),
            Self::Pin { holder } => write!(f, "it is pinned by {holder}"),
            Self::Newest => f.write_str("it is one of the newest of its service"),
            Self::Machine { region, machine } => write!(f, "{machine} in {region} runs it"),
            Self::UnknownGoal { region, machine } => {
                write!(f, "{machine} in {region} is at a goal that is in no history, and may run it")
            }
            Self::Silent { region, reason } => write!(f, "{region} does not tell what its machines run: {reason}"),
            Self::NoStore { region } => write!(f, "{region} has a copy, and its store is not known here"),
            Self::OnItsWay { region } => write!(f, "it is on its way to {region}"),
            Self::SameBytes { artifact } => write!(f, "{artifact}, which stays, is the same bytes"),
            Self::Collecting { tombstone } => {
                write!(f, "it is {} since {} already", tombstone.stage.as_str(), tombstone.since)
            }
        }
    }
}

/// What is in use, by each way to be so.
pub(super) struct Uses<'a> {
    view: &'a View,
    goals: BTreeMap<Digest, (&'a ServiceName, GoalPosition)>,
    machines: BTreeMap<Digest, (&'a RegionName, &'a MachineName)>,
    unknown_goals: BTreeMap<&'a ServiceName, (&'a RegionName, &'a MachineName)>,
    /// When the bytes of the artifacts in the view were needed last.
    needed: BTreeMap<Digest, Timestamp>,
}

impl<'a> Uses<'a> {
    pub(super) fn of(view: &'a View) -> Self {
        let (goals, machines, unknown_goals) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut uses = Self { view, goals, machines, unknown_goals, needed: BTreeMap::new() };
        for status in &view.artifacts {
            let place = uses.needed.entry(status.registered.artifact.digest).or_insert(Timestamp::MIN);
            *place = status.last_needed_at().max(*place);
        }
        for stored in view.goals.values().flatten() {
            let goal = &stored.goal;
            let place = uses.goals.entry(goal.artifact.digest).or_insert((&goal.service, goal.position));
            place.1 = place.1.max(goal.position);
        }
        for (region, run) in view.machines.iter().filter_map(|(region, run)| Some((region, run.as_ref().ok()?))) {
            uses.add(region, run);
        }
        uses
    }

    fn add(&mut self, region: &'a RegionName, run: &'a Run) {
        for (digest, machine) in &run.current {
            self.machines.entry(*digest).or_insert((region, machine));
        }
        for ((service, position), machine) in &run.goals {
            let goals = self.view.goals.get(service);
            if !goals.into_iter().flatten().any(|stored| stored.goal.position == *position) {
                self.unknown_goals.entry(service).or_insert((region, machine));
            }
        }
    }

    /// What uses the bytes, whatever the ledger says of them.
    pub(super) fn of_digest(&self, digest: &Digest) -> Option<Kept> {
        if let Some((service, position)) = self.goals.get(digest) {
            return Some(Kept::Goal { service: (*service).clone(), position: *position });
        }
        let (region, machine) = self.machines.get(digest)?;
        Some(Kept::Machine { region: (*region).clone(), machine: (*machine).clone() })
    }

    /// Whether nobody has needed the bytes for `older_than`, for all that the ledger knows of the old artifacts that they are.
    pub(super) fn is_idle(&self, digest: &Digest, older_than: Duration, now: Timestamp) -> bool {
        self.needed.get(digest).is_some_and(|needed| elapsed(*needed, now) >= older_than)
    }

    /// What keeps an artifact for itself.
    fn of_artifact(&self, status: &ArtifactStatus) -> Option<Kept> {
        let (registered, name) = (&status.registered, &status.registered.artifact.name);
        if let Some(tombstone) = &status.tombstone {
            return Some(Kept::Collecting { tombstone: tombstone.clone() });
        }
        if let Some(kept) = self.of_digest(&registered.artifact.digest) {
            return Some(kept);
        }
        if let Some(holder) = status.pins.first() {
            return Some(Kept::Pin { holder: holder.clone() });
        }
        if self.view.newest.get(&registered.service).is_some_and(|newest| newest.contains(name)) {
            return Some(Kept::Newest);
        }
        if let Some((region, machine)) = self.unknown_goals.get(&registered.service) {
            return Some(Kept::UnknownGoal { region: (*region).clone(), machine: (*machine).clone() });
        }
        status.copies.iter().find_map(|(region, copy)| self.of_copy(region, copy.state))
    }

    fn of_copy(&self, region: &RegionName, state: CopyState) -> Option<Kept> {
        let region = region.clone();
        match (state, self.view.machines.get(&region)) {
            (CopyState::Pending, _) => Some(Kept::OnItsWay { region }),
            (_, None) => Some(Kept::NoStore { region }),
            (_, Some(Err(reason))) => Some(Kept::Silent { region, reason: reason.clone() }),
            (_, Some(Ok(run))) if run.settling => {
                Some(Kept::Silent { region, reason: "it has not listened to its machines for long enough".to_owned() })
            }
            (_, Some(Ok(_))) => None,
        }
    }
}

/// What may be collected: the bytes of which each artifact may be.
pub(super) fn plan(view: &View) -> CollectionPlan {
    let uses = Uses::of(view);
    let mut by_digest: BTreeMap<Digest, Vec<&ArtifactStatus>> = BTreeMap::new();
    for status in &view.artifacts {
        by_digest.entry(status.registered.artifact.digest).or_default().push(status);
    }
    let (mut kept, mut collect) = (BTreeMap::new(), Vec::new());
    for (digest, statuses) in by_digest {
        let name = |status: &&ArtifactStatus| status.registered.artifact.name.clone();
        let reasons: Vec<_> = statuses.iter().map(|status| (name(status), uses.of_artifact(status))).collect();
        let in_use = reasons.iter().find(|(_, reason)| reason.is_some()).map(|(name, _)| name.clone());
        let Some(in_use) = in_use else {
            let oldest = statuses.iter().map(|status| status.registered_at).min();
            let size = statuses.first().map_or(0, |status| status.registered.artifact.size);
            let artifacts = statuses.iter().map(name).collect();
            collect.push((oldest, Collectable { digest, size, artifacts }));
            continue;
        };
        let same = || Kept::SameBytes { artifact: in_use.clone() };
        kept.extend(reasons.into_iter().map(|(name, reason)| (name, reason.unwrap_or_else(same))));
    }
    collect.sort_by_key(|(oldest, collectable)| (*oldest, collectable.digest));
    let collect = collect.into_iter().map(|(_, collectable)| collectable).collect();
    CollectionPlan { collect, kept, unneeded: BTreeSet::new() }
}
