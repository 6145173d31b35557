//! Liveness: some time after healing everything is done.

use std::sync::Arc;
use std::time::Duration;

use deploycore::deploy::{DeployRequest, Redeploy};
use deploycore::model::{Goal, GoalPosition, Readiness, RunSpec, Selector};
use tokio::time::{Instant, sleep};

use super::check::{Checker, Invariant};
use super::fault::{Life, Place};
use super::world::World;

/// How long after healing everything must be done.
const PATIENCE: Duration = Duration::from_mins(45);

/// Waits until everything is done that was begun, then deploys once more to see each machine arrive; says how long the first took.
pub async fn settle(world: &World) -> Option<Duration> {
    let healed = Instant::now();
    let checker = &world.weather.checker;
    if !wait(|| is_settled(world)).await {
        complain(world);
        return None;
    }
    let took = healed.elapsed();
    checker.everything_stored();
    let goals = last_deploys(world).await;
    if !wait(|| goals.iter().all(|goal| arrived(world, goal))).await {
        complain(world);
        return None;
    }
    Some(took)
}

async fn wait(done: impl Fn() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if done() {
            return true;
        }
        sleep(Duration::from_secs(5)).await;
    }
    done()
}

/// Whether nothing is left to do.
fn is_settled(world: &World) -> bool {
    let checker = &world.weather.checker;
    world.is_ordered() && checker.unfinished().is_empty() && laggards(world).is_empty() && checker.uncopied().is_empty()
}

fn laggards(world: &World) -> Vec<String> {
    let checker = &world.weather.checker;
    let goals = checker.newest_goals();
    let machines = world.machines.iter();
    machines.flat_map(|machine| goals.iter().filter_map(|goal| Checker::behind(machine, goal))).collect()
}

/// Names what is not done.
fn complain(world: &World) {
    let checker = &world.weather.checker;
    checker.every_job_ended();
    for missing in checker.uncopied() {
        checker.violated(Invariant::NoEarlyDeploy, format!("long after healing, {missing}"));
    }
    for laggard in laggards(world) {
        checker.violated(Invariant::NewestGoalWins, format!("long after healing, {laggard}"));
    }
    if !world.is_ordered() {
        checker.violated(Invariant::EveryJobEnds, "long after healing, people still wait for an answer");
    }
}

/// Deploys something that works of each service, in good weather: no machine has a reason to give it up.
async fn last_deploys(world: &World) -> Vec<Goal> {
    let checker = &world.weather.checker;
    let life = Arc::new(Life::new("closing".into(), Place::Global, 0, world.weather.clone(), Arc::default()));
    let deployer = world.ports.deployer(&life);
    let mut goals = Vec::new();
    let mut done = std::collections::BTreeSet::new();
    for status in checker.backends.ledger.snapshot().into_values() {
        let registered = status.registered;
        let works = checker.truth(&registered.artifact.digest).is_some_and(|built| built.works);
        if !works || !done.insert(registered.service.clone()) {
            continue;
        }
        let run = RunSpec { readiness: Readiness::Alive(Duration::from_secs(3)), ..RunSpec::default() };
        let request = DeployRequest::new(registered.service, registered.artifact.name)
            .with_run(run)
            .with_selector(Selector::all())
            .with_redeploy(Redeploy::Always);
        match deployer.deploy(&request).await {
            Ok(goal) => goals.push(goal),
            Err(error) => checker.violated(Invariant::NewestGoalWins, format!("the last deploy fails: {error:?}")),
        }
    }
    goals
}

/// Whether each machine runs a goal that has no reason to be given up.
fn arrived(world: &World, goal: &Goal) -> bool {
    let checker = &world.weather.checker;
    let rejects = |position: GoalPosition| {
        world
            .machines
            .iter()
            .find(|machine| machine.journal(&goal.service).is_some_and(|journal| journal.rejection(position).is_some()))
    };
    if let Some(machine) = rejects(goal.position) {
        checker
            .violated(Invariant::NewestGoalWins, format!("{} gave up {} in good weather", machine.name, goal.position));
    }
    world.machines.iter().all(|machine| Checker::behind(machine, goal).is_none())
}
