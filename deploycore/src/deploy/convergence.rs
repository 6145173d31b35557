//! Which machines run a goal.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::model::{
    ArtifactRef, Goal, GoalPosition, KnownMachine, KnownMachines, MachineName, RegionName, ServicePhase, Standing,
    Timestamp,
};

/// A machine, by its region and its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MachineKey {
    /// The region.
    pub region: RegionName,
    /// The name, unique in the region.
    pub machine: MachineName,
}

/// A machine that is on its way to a goal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BehindMachine {
    /// The machine.
    #[serde(flatten)]
    pub key: MachineKey,
    /// The newest goal of the service that it took up, and where it is with that; `None` when it has not heard of any.
    pub at: Option<(GoalPosition, ServicePhase)>,
    /// What it waits for, in its own words.
    pub message: Option<String>,
}

/// Where the machines are with a goal. Every list stands by region and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Convergence {
    /// The goal's place.
    pub position: GoalPosition,
    /// What should run.
    pub artifact: ArtifactRef,
    /// Live and selected machines that run the goal.
    pub converged: Vec<MachineKey>,
    /// Live and selected machines on their way.
    pub behind: Vec<BehindMachine>,
    /// Live and selected machines that tried the goal and went back, with their reasons.
    pub reverted: Vec<(MachineKey, String)>,
    /// Selected machines that are silent for too long. They block nobody.
    pub absent: Vec<MachineKey>,
    /// Regions whose directory did not answer, with the reason: nothing is known of their machines.
    pub unknown: BTreeMap<RegionName, String>,
    /// Regions that have not listened for long enough to know all their live machines: the lists may lack some.
    #[serde(default)]
    pub settling: BTreeSet<RegionName>,
    /// Regions that the goal was written without, by a waiver that has not expired. Nobody waits for their machines.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub waived: BTreeSet<RegionName>,
}

impl Convergence {
    /// How many live machines the selector names, those of waived regions included.
    pub fn live(&self) -> usize {
        self.converged.len() + self.behind.len() + self.reverted.len()
    }

    /// Whether every live machine that the selector names runs the goal, as far as each region has come to know its machines. It holds
    /// for no machines too: who knows how many there must be asks for [that many](Self::is_converged_on).
    pub fn is_converged(&self) -> bool {
        self.is_converged_on(0)
    }

    /// As [`is_converged`](Self::is_converged), for who knows how many `machines` the selector names: as many are live. Then a region that
    /// is still [`settling`](Self::settling) hides none and is not waited for; 0 is for who does not know.
    pub fn is_converged_on(&self, machines: usize) -> bool {
        self.is_settled_on(machines) && self.reverted.is_empty()
    }

    /// Whether no machine is on its way any more: each runs the goal or has reverted it.
    pub fn is_settled(&self) -> bool {
        self.is_settled_on(0)
    }

    /// As [`is_settled`](Self::is_settled), for who knows how many `machines` the selector names; see
    /// [`is_converged_on`](Self::is_converged_on).
    pub fn is_settled_on(&self, machines: usize) -> bool {
        let all_known = machines > 0 || self.settling.is_subset(&self.waived);
        let is_waived = |region: &RegionName| self.waived.contains(region);
        let none_behind = self.behind.iter().all(|machine| is_waived(&machine.key.region));
        none_behind && self.unknown.keys().all(is_waived) && all_known && self.live() >= machines
    }
}

/// What each region's directory answered.
pub(super) type Directories = BTreeMap<RegionName, Result<KnownMachines, String>>;

/// Compares machines with a goal, at an instant.
pub(super) fn convergence(goal: &Goal, now: Timestamp, directories: Directories) -> Convergence {
    let mut found = Convergence {
        position: goal.position,
        artifact: goal.artifact.clone(),
        converged: Vec::new(),
        behind: Vec::new(),
        reverted: Vec::new(),
        absent: Vec::new(),
        unknown: BTreeMap::new(),
        settling: BTreeSet::new(),
        waived: goal.waived_at(now),
    };
    for (region, answer) in directories {
        match answer {
            Ok(known) => {
                known.machines.iter().for_each(|machine| add(&mut found, goal, &region, machine));
                if known.settling {
                    found.settling.insert(region);
                }
            }
            Err(reason) => {
                found.unknown.insert(region, reason);
            }
        }
    }
    found.converged.sort();
    found.behind.sort_by(|a, b| a.key.cmp(&b.key));
    found.reverted.sort();
    found.absent.sort();
    found
}

fn add(found: &mut Convergence, goal: &Goal, region: &RegionName, machine: &KnownMachine) {
    let report = &machine.report;
    // The directory that was asked decides the region: two regions may have machines of one name.
    let key = MachineKey { region: region.clone(), machine: report.machine.clone() };
    match Standing::of(goal, report, machine.live) {
        Standing::NotSelected => {}
        Standing::Absent => found.absent.push(key),
        Standing::Converged => found.converged.push(key),
        Standing::Reverted(service) => {
            found.reverted.push((key, service.message.clone().unwrap_or_else(|| "no reason given".to_owned())));
        }
        Standing::Behind(service) => {
            let at = service.map(|service| (service.goal, service.phase));
            let message = service.and_then(|service| service.message.clone());
            found.behind.push(BehindMachine { key, at, message });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        ArtifactName, Digest, Generation, Labels, MachineReport, Origin, RunSpec, Selector, ServiceName, ServiceReport,
        Tally, Waiver,
    };
    use std::time::Duration;

    fn goal(generation: u64) -> Goal {
        Goal {
            service: ServiceName::new("web").unwrap(),
            position: GoalPosition { generation: Generation(generation), ..GoalPosition::default() },
            artifact: ArtifactRef { name: ArtifactName::new("web-1").unwrap(), digest: Digest::of(b"x"), size: 1 },
            run: RunSpec::default(),
            selector: Selector([("role".to_owned(), "front".to_owned())].into()),
            origin: Origin::Deploy,
            created_at: Timestamp::UNIX_EPOCH,
            waivers: Vec::new(),
        }
    }

    fn machine(name: &str, role: &str, live: bool, at: Option<(u64, ServicePhase)>) -> KnownMachine {
        let services = at.map(|(generation, phase)| ServiceReport {
            service: ServiceName::new("web").unwrap(),
            goal: goal(generation).position,
            phase,
            current: None,
            pid: None,
            port: None,
            bytes_fetched: 0,
            message: Some("why".to_owned()),
        });
        let report = MachineReport {
            machine: MachineName::new(name).unwrap(),
            region: RegionName::new("r1").unwrap(),
            labels: Labels([("role".to_owned(), role.to_owned())].into()),
            agent_pid: 1,
            services: services.into_iter().collect(),
        };
        KnownMachine { report, silent_for: Duration::ZERO, live }
    }

    fn settled(machines: Vec<KnownMachine>) -> KnownMachines {
        KnownMachines { machines, settling: false }
    }

    fn names(keys: &[MachineKey]) -> Vec<&str> {
        keys.iter().map(|key| key.machine.as_str()).collect()
    }

    #[test]
    fn each_machine_is_counted_where_it_belongs() {
        use ServicePhase::{Fetching, Good, Reverted};
        let machines = vec![
            machine("good", "front", true, Some((2, Good))),
            machine("good-at-old", "front", true, Some((1, Good))),
            machine("good-at-newer", "front", true, Some((3, Good))),
            machine("fetching", "front", true, Some((2, Fetching))),
            machine("new", "front", true, None),
            machine("reverted", "front", true, Some((2, Reverted))),
            machine("reverted-old", "front", true, Some((1, Reverted))),
            machine("dead", "front", false, Some((2, Good))),
            machine("other", "back", true, None),
        ];
        let (r1, r2) = (RegionName::new("r1").unwrap(), RegionName::new("r2").unwrap());
        let tally = Tally::of(&goal(2), &settled(machines.clone()));
        assert_eq!((tally.converged, tally.behind, tally.reverted, tally.absent, tally.live()), (1, 5, 1, 1, 7));
        let examples: Vec<_> = tally.examples.iter().map(|one| one.machine.as_str()).collect();
        assert_eq!(examples, ["good-at-old", "good-at-newer", "fetching", "new", "reverted", "reverted-old"]);
        let answers = Directories::from([(r1, Ok(settled(machines))), (r2.clone(), Err("timeout".to_owned()))]);
        let found = convergence(&goal(2), Timestamp::UNIX_EPOCH, answers);
        assert_eq!(names(&found.converged), ["good"]);
        assert_eq!(names(&found.absent), ["dead"]);
        assert_eq!(found.reverted.len(), 1);
        assert_eq!(found.reverted[0].1, "why");
        let behind: Vec<_> = found.behind.iter().map(|machine| machine.key.machine.as_str()).collect();
        assert_eq!(behind, ["fetching", "good-at-newer", "good-at-old", "new", "reverted-old"]);
        assert_eq!(found.live(), 7);
        assert!(found.unknown.contains_key(&r2) && !found.is_converged() && !found.is_settled());
    }

    #[test]
    fn the_absent_block_nobody_and_the_reverted_do_not_count_as_converged() {
        use ServicePhase::{Good, Reverted};
        let region = RegionName::new("r1").unwrap();
        let mut machines = vec![machine("a", "front", true, Some((2, Good))), machine("b", "front", false, None)];
        let found =
            convergence(&goal(2), Timestamp::UNIX_EPOCH, [(region.clone(), Ok(settled(machines.clone())))].into());
        assert!(found.is_converged());
        machines.push(machine("c", "front", true, Some((2, Reverted))));
        let found = convergence(&goal(2), Timestamp::UNIX_EPOCH, [(region, Ok(settled(machines)))].into());
        assert!(found.is_settled() && !found.is_converged());
    }

    #[test]
    fn a_region_that_is_settling_may_hide_machines_from_who_does_not_know_their_number() {
        use ServicePhase::{Good, Reverted};
        let find = |machines: Vec<KnownMachine>| {
            let region = RegionName::new("r1").unwrap();
            convergence(
                &goal(2),
                Timestamp::UNIX_EPOCH,
                [(region, Ok(KnownMachines { machines, settling: true }))].into(),
            )
        };
        let none = find(Vec::new());
        assert!(!none.is_settled() && !none.is_converged() && !none.is_converged_on(1));
        assert_eq!(none.settling.len(), 1);
        let one = find(vec![machine("a", "front", true, Some((2, Good)))]);
        assert!(!one.is_converged() && one.is_converged_on(1) && !one.is_converged_on(2));
        let reverted = find(vec![machine("a", "front", true, Some((2, Reverted)))]);
        assert!(reverted.is_settled_on(1) && !reverted.is_converged_on(1));
    }

    #[test]
    fn a_waived_region_is_not_waited_for_until_its_waiver_expires() {
        use ServicePhase::{Fetching, Good};
        let [r1, r2, r3] = ["r1", "r2", "r3"].map(|name| RegionName::new(name).unwrap());
        let end = Timestamp::from_second(60).unwrap();
        let waivers = [&r2, &r3].map(|region| Waiver::new(region.clone(), "it burns", end)).into();
        let goal = Goal { waivers, ..goal(2) };
        let find = |now| {
            let there = settled(vec![machine("a", "front", true, Some((2, Good)))]);
            let waiting =
                KnownMachines { machines: vec![machine("b", "front", true, Some((2, Fetching)))], settling: true };
            let silent = Err("timeout".to_owned());
            convergence(&goal, now, [(r1.clone(), Ok(there)), (r2.clone(), Ok(waiting)), (r3.clone(), silent)].into())
        };
        let found = find(Timestamp::UNIX_EPOCH);
        assert!(found.is_converged(), "{found:?}");
        assert_eq!((found.behind.len(), found.unknown.len(), found.live()), (1, 1, 2), "they are shown all the same");
        let found = find(end);
        assert!(!found.is_settled() && found.waived.is_empty());
    }
}
