//! The whole pipeline in virtual time, with everything that goes wrong, from seeds.
//!
//! `DEPLOYCORE_SIM_SEEDS` sets how many seeds run (1,000 by default). `DEPLOYCORE_SIM_SEED` names one to replay with all its events.

#![allow(unreachable_pub, reason = "the modules are of one test")]

mod simulation {
    pub mod builder;
    pub mod chaos;
    pub mod check;
    pub mod fault;
    pub mod machine;
    pub mod mutant;
    pub mod node;
    pub mod operator;
    pub mod port;
    pub mod region;
    pub mod roles;
    pub mod run;
    pub mod settings;
    pub mod settle;
    pub mod swarm;
    pub mod trace;
    pub mod world;
}

use std::env;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use simulation::mutant::Mutant;
use simulation::run::{Outcome, run};
use simulation::settings::Settings;
use simulation::trace::{Met, Tally};

/// Within so many seeds each mutant must be caught. The rarest, a node that trusts its peers, shows in 3 of 100.
const MUTANT_SEEDS: u64 = 400;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text:?}")))
}

/// Every seed keeps every invariant, and all seeds together meet everything that can go wrong.
#[test]
fn seeds_keep_every_invariant() {
    let seeds = number("DEPLOYCORE_SIM_SEEDS").unwrap_or(1_000);
    let (next, tally, failed) = (AtomicU64::new(0), Mutex::new(Tally::default()), Mutex::new(None::<Outcome>));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while failed.lock().expect("no run panics").is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let outcome = run(Settings::of(seed), None, false);
                    tally.lock().expect("no run panics").add(&outcome.tally);
                    if outcome.violation.is_some() || outcome.settled_after.is_none() {
                        failed.lock().expect("no run panics").get_or_insert(outcome);
                    }
                }
            });
        }
    });
    if let Some(outcome) = failed.into_inner().expect("no run panics") {
        panic!("seed {} fails\n{}", outcome.settings.seed, outcome.explain());
    }
    let tally = tally.into_inner().expect("no run panics");
    // Past the test harness, which shows only what failing tests print.
    writeln!(std::io::stderr(), "{seeds} seeds: {tally}").expect("standard error takes a line");
    if seeds >= 100 {
        let unmet: Vec<_> = Met::ALL.into_iter().filter(|met| tally.get(*met) < seeds / 50).collect();
        assert!(unmet.is_empty(), "an idle simulation: {unmet:?} were hardly ever met: {tally}");
    }
}

/// Shows one seed, named by `DEPLOYCORE_SIM_SEED`, event by event, with what services log under `RUST_LOG`; does nothing without it.
#[test]
fn replay() {
    let Some(seed) = number("DEPLOYCORE_SIM_SEED") else { return };
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).init();
    let outcome = run(Settings::of(seed), None, true);
    println!("{}\n{}", outcome.explain(), outcome.tally);
    assert!(outcome.violation.is_none() && outcome.settled_after.is_some());
}

/// The same seed gives the same events.
#[test]
fn a_seed_repeats() {
    for seed in 0..10 {
        let hash = || run(Settings::of(seed), None, false).hash;
        assert_eq!(hash(), hash(), "seed {seed}");
    }
}

/// The mutant is caught by the check that it was made for, which says `what`.
fn caught(mutant: Mutant, what: &str) {
    for seed in 0..MUTANT_SEEDS {
        let outcome = run(Settings::of(seed), Some(mutant), false);
        if let Some(violation) = &outcome.violation {
            let rightly = violation.invariant == mutant.breaks() && violation.detail.contains(what);
            assert!(rightly, "{mutant:?} at {}", outcome.explain());
            return;
        }
    }
    panic!("{mutant:?} was not caught in {MUTANT_SEEDS} seeds");
}

#[test]
fn a_queue_that_hears_zombies_is_caught() {
    caught(Mutant::ZombiesComplete, "which is not the current lease");
}

#[test]
fn a_store_that_stores_later_is_caught() {
    caught(Mutant::StoresLater, "which is not stored whole");
}

#[test]
fn a_reaper_that_rescues_nothing_is_caught() {
    caught(Mutant::NothingIsRescued, "the rescue left it");
}

#[test]
fn a_queue_that_forgets_a_job_is_caught() {
    caught(Mutant::EnqueueIsLost, "was acknowledged and is gone");
}

#[test]
fn a_global_store_that_forgets_a_goal_is_caught() {
    caught(Mutant::GoalIsLost, "acknowledged");
}

#[test]
fn a_ledger_that_pins_anything_is_caught() {
    caught(Mutant::PinsAnything, "is a goal and is not in");
}

#[test]
fn a_ledger_that_pins_nothing_is_caught() {
    caught(Mutant::PinsNothing, "is a goal and is not pinned");
}

#[test]
fn a_mirror_that_goes_back_is_caught() {
    caught(Mutant::MirrorGoesBack, " after ");
}

#[test]
fn a_disk_that_stages_unverified_is_caught() {
    caught(Mutant::StagesUnverified, "which nobody built");
}

#[test]
fn a_disk_that_switches_early_is_caught() {
    caught(Mutant::SwitchesEarly, "which is not whole");
}

#[test]
fn an_agent_that_ignores_new_goals_is_caught() {
    caught(Mutant::IgnoresNewGoals, "long after healing");
}

#[test]
fn a_gate_that_forgets_what_it_granted_is_caught() {
    caught(Mutant::GateForgets, "bytes of an artifact of");
}

#[test]
fn a_node_that_trusts_its_peers_is_caught() {
    caught(Mutant::TrustsPeers, "are shared and are something else");
}
