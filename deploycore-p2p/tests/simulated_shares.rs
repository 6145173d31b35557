//! How artifacts share the bandwidth of simulated machines.
#![cfg(feature = "sim")]

use std::time::Duration;

use deploycore::port::swarm::Priority;
use deploycore_p2p::sim::{Report, Second, Settings, run};

fn both(mut settings: Settings, from: Duration, priority: Priority) -> (Report, Vec<Second>) {
    (settings.second, settings.second_priority) = (Some(from), priority);
    let report = run(settings);
    let seconds = report.seconds();
    println!(
        "bound {:?}, first {:.3}, second {:?}, {seconds:?}",
        report.bound.time,
        report.ratio_max(),
        report.second.iter().max()
    );
    for times in [&report.completed, &report.second] {
        assert!(times.iter().all(Option::is_some), "one of the two is starved");
    }
    (report, seconds)
}

/// Machines on links of 1 Gbit/s.
fn region(machines: usize, size: u64, seed: u64) -> Settings {
    let mut settings = Settings::equal(machines, size, 125_000_000, seed);
    settings.horizon = Duration::from_mins(10);
    settings
}

/// Each machine takes nearly nothing else from a second after the rollback's start on, as long as that lasts.
fn assert_goes_first(seconds: &[Second], seed: u64) {
    assert!(seconds.len() > 3, "seed {seed}: it lasts: {seconds:?}");
    for (at, second) in seconds.iter().enumerate().skip(1) {
        assert!(second.least >= 0.9, "seed {seed}, second {at}: {second:?}");
    }
}

#[test]
fn a_rollback_goes_first_while_10_gb_are_deployed() {
    for seed in 1..=2 {
        let mut settings = region(40, 10_000_000_000, seed);
        settings.set_max_block(u32::MAX);
        let (report, seconds) = both(settings, Duration::from_secs(40), Priority::Rollback);
        assert_goes_first(&seconds, seed);
        assert!(report.second.iter().flatten().all(|time| *time < report.bound.time.mul_f64(1.2)), "seed {seed}");
        assert!(report.ratio_max() < 2.3, "seed {seed}: the deploy goes on at once");
    }
}

/// Blocks as on a real network: several of them stand with each neighbour when the rollback begins.
#[test]
fn a_rollback_goes_first_where_pieces_have_several_blocks() {
    let settings = region(30, 1_000_000_000, 1);
    let (_, seconds) = both(settings, Duration::from_secs(4), Priority::Rollback);
    assert_goes_first(&seconds, 1);
}

#[test]
fn shares_are_as_the_weights() {
    for (priority, expected) in [(Priority::Normal, 0.5), (Priority::High, 0.8)] {
        let (_, seconds) = both(region(30, 2_000_000_000, 1), Duration::from_secs(4), priority);
        assert!(seconds.len() >= 8, "{seconds:?}");
        for second in &seconds[2..] {
            assert!((second.share - expected).abs() < 0.05, "{priority:?}: {second:?}");
        }
    }
}
