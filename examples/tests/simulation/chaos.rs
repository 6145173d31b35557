//! What goes wrong with whole hosts and regions, until the storm is over.

use std::sync::Arc;
use std::time::Duration;

use deploycore::model::CopyState;
use deploycore::port::ArtifactStore;
use futures::FutureExt;
use tokio::time::{Instant, sleep};

use super::node::Node;
use super::settings::stream;
use super::world::World;

/// One mishap after the other, each of which ends by itself.
pub async fn storm(world: &World) {
    let mut random = stream(world.settings.seed, "chaos");
    let end = Instant::now() + world.settings.storm;
    world.weather.turn_bad(&world.settings);
    loop {
        let pause = world.settings.calm.mul_f64(2.0 * random.f64());
        if Instant::now() + pause >= end {
            tokio::time::sleep_until(end).await;
            return;
        }
        sleep(pause).await;
        // Long enough, now and then, for a lease to be lost.
        let span = Duration::from_secs(if random.bool() { random.u64(1..20) } else { random.u64(100..300) });
        let node = pick(world, &mut random);
        match random.u32(0..18) {
            0..5 => node.crash("at any instruction"),
            5..8 => stall(world, node, span),
            8 => node.shut_down(),
            9 | 10 => cut_off(world, &mut random, span),
            11 | 12 => kill_service(world, &mut random),
            13 => fail_power(world, &mut random),
            14 | 15 => cut_wire(world, &mut random, span),
            _ => lose_copy(world, &mut random),
        }
    }
}

/// Any node, or a worker in the middle of a build: leases are lost with them.
fn pick(world: &World, random: &mut fastrand::Rng) -> Arc<Node> {
    let any = &world.nodes[random.usize(0..world.nodes.len())];
    let snapshot = world.weather.checker.backends.queue.snapshot();
    let busy = snapshot.jobs.values().find_map(|(job, _)| job.running.as_ref());
    let builds = |node: &&Arc<Node>| busy.is_some_and(|running| running.worker.as_str() == &*node.name);
    world.nodes.iter().find(builds).filter(|_| random.bool()).unwrap_or(any).clone()
}

/// Nothing goes wrong any more, and everyone is back soon.
pub fn heal(world: &World) {
    world.weather.heal();
    world.nodes.iter().for_each(|node| node.resume());
    world.ports.regions.values().for_each(|region| region.swarm.network.heal());
}

fn stall(world: &World, node: Arc<Node>, span: Duration) {
    node.stall();
    world.later(span, move || node.resume());
}

fn cut_off(world: &World, random: &mut fastrand::Rng, span: Duration) {
    let regions = world.regions();
    let region = regions[random.usize(0..regions.len())].clone();
    let weather = world.weather.clone();
    weather.cut_off(&region);
    world.later(span, move || weather.join(&region));
}

/// Two hosts of a region do not reach each other.
fn cut_wire(world: &World, random: &mut fastrand::Rng, span: Duration) {
    let regions = world.regions();
    let region = &regions[random.usize(0..regions.len())];
    let mut hosts = vec![format!("gate-{region}"), format!("tracker-{region}")];
    let agents = world.machines.iter().filter(|machine| machine.region == *region);
    hosts.extend(agents.map(|machine| format!("agent-{}", machine.name)));
    random.shuffle(&mut hosts);
    let network = world.ports.regions[region].swarm.network.clone();
    world.weather.trace.event("chaos", format_args!("cuts {} from {}", hosts[0], hosts[1]));
    network.cut(&hosts[0], &hosts[1]);
    world.later(span, move || network.heal());
}

/// A service's process dies under its agent.
fn kill_service(world: &World, random: &mut fastrand::Rng) {
    let machine = &world.machines[random.usize(0..world.machines.len())];
    if let Some(process) = machine.all_running().first() {
        world.weather.trace.event("chaos", format_args!("kills {} on {}", process.service, machine.name));
        process.end(None);
    }
}

/// A machine loses power: its agent and all its processes are gone at once.
fn fail_power(world: &World, random: &mut fastrand::Rng) {
    let machine = &world.machines[random.usize(0..world.machines.len())];
    let agent = format!("agent-{}", machine.name);
    world.nodes.iter().filter(|node| *node.name == *agent).for_each(|node| node.crash("the power fails"));
    machine.reboot();
}

/// A copy disappears from a region. Nobody relies on it: no goal has pinned it.
fn lose_copy(world: &World, random: &mut fastrand::Rng) {
    let checker = &world.weather.checker;
    let free = checker.backends.ledger.snapshot().into_values().filter(|status| status.pins.is_empty());
    let copies: Vec<_> = free
        .flat_map(|status| {
            let digest = status.registered.artifact.digest;
            let complete = status.copies.into_iter().filter(|(_, copy)| copy.state == CopyState::Complete);
            complete.map(move |(region, _)| (region, digest))
        })
        .collect();
    if let Some((region, digest)) = random.choice(&copies) {
        world.weather.trace.event("chaos", format_args!("{region} loses {digest:?}"));
        checker.taken(region, digest);
        let store = &checker.backends.regions[region].store;
        store.delete(digest).now_or_never().expect("memory never suspends").expect("memory never fails");
    }
}
