//! What goes wrong with whole hosts and regions, until the storm is over.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::node::Node;
use super::settings::stream;
use super::world::World;

/// One mishap after the other, each of which ends by itself.
pub async fn storm(world: &World) {
    let mut random = stream(world.settings.seed, "chaos");
    let end = Instant::now() + world.settings.storm;
    world.weather.set_rates(world.settings.rates);
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
        match random.u32(0..10) {
            0..4 => node.crash("at any instruction"),
            4..7 => stall(world, node, span),
            7 => node.shut_down(),
            _ => {
                let region = world.regions[random.usize(0..world.regions.len())].clone();
                let weather = world.weather.clone();
                weather.cut_off(&region);
                world.later(span, move || weather.join(&region));
            }
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
}

fn stall(world: &World, node: Arc<Node>, span: Duration) {
    node.stall();
    world.later(span, move || node.resume());
}
