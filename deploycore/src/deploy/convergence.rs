//! Which machines run a goal.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::model::{ArtifactRef, Goal, GoalPosition, MachineStanding, RegionName, Standing, Tally, Timestamp};

/// How far the machines are with a goal, counted in their regions: of one size, whatever the number of machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Convergence {
    /// The goal's place.
    pub position: GoalPosition,
    /// What should run.
    pub artifact: ArtifactRef,
    /// The machines of each region whose directory answered.
    pub regions: BTreeMap<RegionName, Tally>,
    /// Regions whose directory did not answer, with the reason: nothing is known of their machines.
    pub unknown: BTreeMap<RegionName, String>,
    /// Regions that the goal was written without, by a waiver that has not expired. Nobody waits for their machines.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub waived: BTreeSet<RegionName>,
}

impl Convergence {
    /// Live and selected machines that run the goal.
    pub fn converged(&self) -> u64 {
        self.sum(|tally| tally.converged)
    }

    /// Live and selected machines on their way, those of waived regions included.
    pub fn behind(&self) -> u64 {
        self.sum(|tally| tally.behind)
    }

    /// Live and selected machines that tried the goal and went back.
    pub fn reverted(&self) -> u64 {
        self.sum(|tally| tally.reverted)
    }

    /// Selected machines that are silent for too long. They block nobody.
    pub fn absent(&self) -> u64 {
        self.sum(|tally| tally.absent)
    }

    /// How many live machines the selector names, those of waived regions included.
    pub fn live(&self) -> u64 {
        self.sum(Tally::live)
    }

    fn sum(&self, of: impl Fn(&Tally) -> u64) -> u64 {
        self.regions.values().map(of).sum()
    }

    /// Regions that have not listened for long enough to know all their live machines: they may have more.
    pub fn settling(&self) -> impl Iterator<Item = &RegionName> {
        self.regions.iter().filter(|(_, tally)| tally.settling).map(|(region, _)| region)
    }

    /// Some of the machines on their way, and some of those that went back. The region is the one that was asked.
    pub fn examples(&self) -> impl Iterator<Item = (&RegionName, &MachineStanding)> {
        self.regions.iter().flat_map(|(region, tally)| tally.examples.iter().map(move |machine| (region, machine)))
    }

    /// A machine that tried the goal and went back, and why, if there is one.
    pub fn first_reverted(&self) -> Option<(&RegionName, &MachineStanding, &str)> {
        self.examples().find_map(|(region, machine)| match &machine.standing {
            Standing::Reverted { message } => Some((region, machine, message.as_deref().unwrap_or("no reason given"))),
            _ => None,
        })
    }

    /// Whether every live machine that the selector names runs the goal, as far as each region has come to know its machines. It holds
    /// for no machines too: who knows how many there must be asks for [that many](Self::is_converged_on).
    pub fn is_converged(&self) -> bool {
        self.is_converged_on(0)
    }

    /// As [`is_converged`](Self::is_converged), for who knows how many `machines` the selector names: as many are live. Then a region that
    /// is still [`settling`](Self::settling) hides none and is not waited for; 0 is for who does not know.
    pub fn is_converged_on(&self, machines: u64) -> bool {
        self.is_settled_on(machines) && self.reverted() == 0
    }

    /// Whether no machine is on its way any more: each runs the goal or has reverted it.
    pub fn is_settled(&self) -> bool {
        self.is_settled_on(0)
    }

    /// As [`is_settled`](Self::is_settled), for who knows how many `machines` the selector names; see
    /// [`is_converged_on`](Self::is_converged_on).
    pub fn is_settled_on(&self, machines: u64) -> bool {
        let is_waived = |region: &RegionName| self.waived.contains(region);
        let is_done = |tally: &Tally| tally.behind == 0 && (machines > 0 || !tally.settling);
        let all_done = self.regions.iter().all(|(region, tally)| is_waived(region) || is_done(tally));
        all_done && self.unknown.keys().all(is_waived) && self.live() >= machines
    }
}

/// What each region's directory answered.
pub(super) type Answers = BTreeMap<RegionName, Result<Tally, String>>;

/// Where machines are with a goal, at an instant.
pub(super) fn convergence(goal: &Goal, now: Timestamp, answers: Answers) -> Convergence {
    let mut found = Convergence {
        position: goal.position,
        artifact: goal.artifact.clone(),
        regions: BTreeMap::new(),
        unknown: BTreeMap::new(),
        waived: goal.waived_at(now),
    };
    for (region, answer) in answers {
        match answer {
            Ok(tally) => drop(found.regions.insert(region, tally)),
            Err(reason) => drop(found.unknown.insert(region, reason)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        ArtifactName, Digest, Generation, Labels, MachineName, MachineReport, Origin, RunSpec, Selector, ServiceName,
        ServicePhase, ServiceReport, Waiver,
    };
    use std::time::Duration;

    /// A report, and whether the machine is live.
    type Report = (MachineReport, bool);

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

    fn machine(name: &str, role: &str, live: bool, at: Option<(u64, ServicePhase)>) -> Report {
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
        (report, live)
    }

    fn settled(machines: &[Report]) -> Tally {
        let mut tally = Tally::default();
        let seen = machines
            .iter()
            .filter_map(|(report, live)| MachineStanding::of_report(&goal(2), report, Duration::ZERO, *live));
        seen.for_each(|machine| tally.add(machine));
        tally
    }

    fn settling(machines: &[Report]) -> Tally {
        Tally { settling: true, ..settled(machines) }
    }

    #[test]
    fn each_machine_is_counted_where_it_belongs() {
        use ServicePhase::{Fetching, Good, Reverted};
        let machines = [
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
        let answers = Answers::from([(r1.clone(), Ok(settled(&machines))), (r2.clone(), Err("timeout".to_owned()))]);
        let found = convergence(&goal(2), Timestamp::UNIX_EPOCH, answers);
        let counts = [found.converged(), found.behind(), found.reverted(), found.absent(), found.live()];
        assert_eq!(counts, [1, 5, 1, 1, 7]);
        let examples: Vec<_> = found.examples().map(|(_, one)| one.key.machine.as_str()).collect();
        assert_eq!(examples, ["good-at-old", "good-at-newer", "fetching", "new", "reverted", "reverted-old"]);
        let (region, machine, reason) = found.first_reverted().unwrap();
        assert_eq!((region, machine.key.machine.as_str(), reason), (&r1, "reverted", "why"));
        assert!(found.unknown.contains_key(&r2) && !found.is_converged() && !found.is_settled());
    }

    #[test]
    fn the_absent_block_nobody_and_the_reverted_do_not_count_as_converged() {
        use ServicePhase::{Good, Reverted};
        let region = RegionName::new("r1").unwrap();
        let find = |machines: &[Report]| {
            convergence(&goal(2), Timestamp::UNIX_EPOCH, [(region.clone(), Ok(settled(machines)))].into())
        };
        let mut machines = vec![machine("a", "front", true, Some((2, Good))), machine("b", "front", false, None)];
        assert!(find(&machines).is_converged());
        machines.push(machine("c", "front", true, Some((2, Reverted))));
        let found = find(&machines);
        assert!(found.is_settled() && !found.is_converged());
    }

    #[test]
    fn a_region_that_is_settling_may_hide_machines_from_who_does_not_know_their_number() {
        use ServicePhase::{Good, Reverted};
        let find = |machines: &[Report]| {
            let region = RegionName::new("r1").unwrap();
            convergence(&goal(2), Timestamp::UNIX_EPOCH, [(region, Ok(settling(machines)))].into())
        };
        let none = find(&[]);
        assert!(!none.is_settled() && !none.is_converged() && !none.is_converged_on(1));
        assert_eq!(none.settling().count(), 1);
        let one = find(&[machine("a", "front", true, Some((2, Good)))]);
        assert!(!one.is_converged() && one.is_converged_on(1) && !one.is_converged_on(2));
        let reverted = find(&[machine("a", "front", true, Some((2, Reverted)))]);
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
            let there = settled(&[machine("a", "front", true, Some((2, Good)))]);
            let waiting = settling(&[machine("b", "front", true, Some((2, Fetching)))]);
            let silent = Err("timeout".to_owned());
            convergence(&goal, now, [(r1.clone(), Ok(there)), (r2.clone(), Ok(waiting)), (r3.clone(), silent)].into())
        };
        let found = find(Timestamp::UNIX_EPOCH);
        assert!(found.is_converged(), "{found:?}");
        assert_eq!((found.behind(), found.unknown.len(), found.live()), (1, 1, 2), "they are shown all the same");
        let found = find(end);
        assert!(!found.is_settled() && found.waived.is_empty());
    }
}
