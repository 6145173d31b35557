//! One seed from its first event to the last check.

use std::time::Duration;

use tokio::task::JoinSet;

use super::check::Violation;
use super::mutant::Mutant;
use super::settings::Settings;
use super::trace::Tally;
use super::world::World;
use super::{chaos, settle};

/// How a run went.
#[derive(Debug)]
pub struct Outcome {
    /// Of what.
    pub settings: Settings,
    /// What did not hold, if anything.
    pub violation: Option<Violation>,
    /// What was met.
    pub tally: Tally,
    /// Of all events.
    pub hash: String,
    /// The last events.
    pub tail: String,
    /// When, after healing, all was done.
    pub settled_after: Option<Duration>,
}

impl Outcome {
    /// What a person needs who looks into a failure.
    pub fn explain(&self) -> String {
        format!(
            "{}{:?}\n{}\nreplay: DEPLOYCORE_SIM_SEED={} cargo test -p deploycore-examples --test simulation replay -- --nocapture",
            self.tail,
            self.settings,
            self.violation.as_ref().map_or("no violation".into(), |v| format!("{}: {}", v.invariant, v.detail)),
            self.settings.seed,
        )
    }
}

/// Runs a world in virtual time on this thread.
pub fn run(settings: Settings, mutant: Option<Mutant>, print: bool) -> Outcome {
    // Ids of connections and the like that nobody seeds.
    fastrand::seed(settings.seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime of timers alone").block_on(live(settings, mutant, print))
}

async fn live(settings: Settings, mutant: Option<Mutant>, print: bool) -> Outcome {
    let world = World::new(settings, mutant, print);
    let checker = world.weather.checker.clone();
    let mut nodes = JoinSet::new();
    for node in &world.nodes {
        nodes.spawn(node.clone().keep());
    }
    let settled_after = tokio::select! {
        biased;
        () = checker.stop.cancelled() => None,
        after = weather_and_settle(&world) => after,
    };
    nodes.shutdown().await;
    let trace = &world.weather.trace;
    Outcome {
        settings: (*world.settings).clone(),
        violation: checker.violation(),
        tally: trace.tally(),
        hash: trace.hash(),
        tail: trace.tail(),
        settled_after,
    }
}

async fn weather_and_settle(world: &World) -> Option<Duration> {
    chaos::storm(world).await;
    chaos::heal(world);
    settle::settle(world).await
}
