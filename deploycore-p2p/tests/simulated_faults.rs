//! Small simulated swarms to which anything happens: whoever is left gets the artifact, and the store is read about once.
#![cfg(feature = "sim")]

use std::collections::BTreeSet;
use std::time::Duration;

use deploycore_p2p::sim::{Partition, Report, Settings, run};
use proptest::prelude::*;

const PIECE: u64 = 256 << 10;
const RATE: u64 = 4 << 20;

/// What a machine goes through.
#[derive(Debug, Clone, PartialEq)]
enum Fate {
    Plain,
    /// Its link is so many times as fast as the others'.
    Slow(f64),
    Late(Duration),
    /// It dies for good.
    Crash(Duration),
    /// It dies, and comes back with what it had.
    Restart(Duration),
    Corrupt,
    /// It reaches only others that are cut off at the same time.
    CutOff,
}

/// Until then something may happen: about twice as long as the artifact takes when nothing does.
fn moment() -> impl Strategy<Value = Duration> {
    (0..6_000_u64).prop_map(Duration::from_millis)
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Plain),
        1 => (0.05..1.0).prop_map(Fate::Slow),
        1 => moment().prop_map(Fate::Late),
        2 => moment().prop_map(Fate::Crash),
        2 => moment().prop_map(Fate::Restart),
        1 => Just(Fate::Corrupt),
        1 => Just(Fate::CutOff),
    ]
}

fn settings() -> impl Strategy<Value = Settings> {
    let restarts = || prop::collection::vec(moment(), 0..3);
    (
        prop::collection::vec(fate(), 1..24),
        1..50 * PIECE,
        prop_oneof![Just(1 << 20), Just(64 << 10)],
        1..25_u64,
        (restarts(), restarts()),
        (moment(), moment()),
        any::<u64>(),
    )
        .prop_map(|(fates, size, max_block, store, (tracker_restarts, gate_restarts), (from, lasts), seed)| {
            let mut settings = Settings::equal(fates.len(), size, RATE, seed);
            settings.store = store * RATE;
            settings.peer.max_block = max_block;
            settings.gate.max_block = max_block;
            (settings.tracker_restarts, settings.gate_restarts) = (tracker_restarts, gate_restarts);
            settings.horizon = Duration::from_mins(10);
            let mut cut = BTreeSet::new();
            for (machine, fate) in fates.into_iter().enumerate() {
                match fate {
                    Fate::Plain => {}
                    Fate::Slow(factor) => drop(settings.links.insert(machine, factor)),
                    Fate::Late(at) => drop(settings.lates.insert(machine, at)),
                    Fate::Crash(at) => drop(settings.crashes.insert(machine, at)),
                    Fate::Restart(at) => drop(settings.restarts.insert(machine, at)),
                    Fate::Corrupt => settings.corrupt.push(machine),
                    Fate::CutOff => drop(cut.insert(machine)),
                }
            }
            if !cut.is_empty() {
                settings.partitions = vec![Partition { machines: cut, from, to: from + lasts }];
            }
            settings
        })
}

fn check(settings: &Settings, report: &Report) -> Result<(), TestCaseError> {
    for machine in (0..settings.machines).filter(|machine| settings.must_complete(*machine)) {
        prop_assert!(report.completed[machine].is_some(), "machine {} is left behind: {:?}", machine, report.stuck);
    }
    let budget = (settings.size * 6 / 5).max(settings.size + 8 * PIECE);
    let usage = report.usage;
    prop_assert!(usage.leased_bytes <= budget, "{:?}", usage);
    prop_assert!(
        report.store_bytes <= usage.leased_bytes + usage.recovery_bytes,
        "{} bytes were read, more than counted: {:?}",
        report.store_bytes,
        usage
    );
    let harmless = settings.crashes.is_empty()
        && settings.restarts.is_empty()
        && settings.gate_restarts.is_empty()
        && settings.corrupt.is_empty()
        && settings.partitions.is_empty();
    if harmless && settings.links.is_empty() {
        prop_assert_eq!(usage.recovery_bytes, 0, "nobody was lost");
    }
    Ok(())
}

/// `PROPTEST_CASES` makes it more of them.
fn cases() -> ProptestConfig {
    let told = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { max_shrink_iters: 2_000, ..ProptestConfig::with_cases(told.unwrap_or(200)) }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn whoever_is_left_completes_and_the_store_is_read_about_once(settings in settings()) {
        let report = run(settings.clone());
        check(&settings, &report)?;
    }
}
