//! The core on the discrete-event simulator.
#![cfg(feature = "sim")]

use std::time::Duration;

use deploycore_p2p::sim::{Partition, Report, Settings, run};

fn show(name: &str, report: &Report) {
    println!(
        "{name}: bound {:?} ({}), p50 {:.3} p99 {:.3} max {:.3}, store {:.3} F, wasted {} KiB, {} events, {} incomplete {:?}",
        report.bound.time,
        report.bound.term,
        report.ratio(0.5),
        report.ratio(0.99),
        report.ratio_max(),
        report.usage.ratio(),
        report.wasted >> 10,
        report.events,
        report.completed.iter().filter(|time| time.is_none()).count(),
        report.stuck.iter().take(2).collect::<Vec<_>>(),
    );
}

#[test]
fn a_thousand_machines_come_within_1_3_of_the_bound() {
    for seed in 1..=4 {
        let report = run(Settings::equal(1_000, 24 << 20, 10 << 20, seed));
        show(&format!("1,000 machines, seed {seed}"), &report);
        assert!(report.completed.iter().all(Option::is_some));
        assert!(report.ratio_max() <= 1.3, "seed {seed}: {:.3}", report.ratio_max());
        assert!(report.usage.ratio() <= 1.05, "seed {seed}: {:?}", report.usage);
        assert_eq!(report.usage.recovery_bytes, 0, "seed {seed}: nobody was lost");
    }
}

/// The start weighs less the larger the artifact is, and no machine is left behind: with its requests at one neighbour that had
/// become slow, one took 1.5 times the bound when the others were long done.
#[test]
fn the_last_of_a_thousand_comes_right_after_the_others() {
    let report = run(Settings::equal(1_000, 64 << 20, 10 << 20, 1));
    show("1,000 machines, 64 MiB", &report);
    assert!(report.completed.iter().all(Option::is_some));
    assert!(report.ratio_max() <= 1.15, "{:.3}", report.ratio_max());
    assert!(report.ratio_max() <= report.ratio(0.5) + 0.05, "{:.3}", report.ratio_max());
}

/// A piece of several blocks is served as a whole. When a neighbour could become busy in the middle of one, machines were left with more
/// halves than they may keep, threw them away, and took twice the bound.
#[test]
fn pieces_of_several_blocks_cost_nothing() {
    let mut settings = Settings::equal(100, 64 << 20, 10 << 20, 1);
    settings.peer.max_block = 32 << 10;
    settings.gate.max_block = settings.peer.max_block;
    settings.peer.max_begun = 4 << 20;
    let report = run(settings);
    show("blocks of 32 KiB", &report);
    assert!(report.completed.iter().all(Option::is_some));
    assert!(report.ratio_max() <= 1.15, "{:.3}", report.ratio_max());
    let moved = 100 * (64_u64 << 20);
    assert!(report.wasted <= moved / 50, "{} of {moved} bytes", report.wasted);
}

#[test]
fn a_store_no_faster_than_a_machine_is_the_bound_for_a_few() {
    let mut settings = Settings::equal(7, 100 << 20, 12_500_000, 2);
    settings.store = settings.down;
    let report = run(settings);
    show("1 + 7", &report);
    assert!(report.completed.iter().all(Option::is_some));
    assert!(report.ratio_max() <= 1.15, "{:.3}", report.ratio_max());
}

/// What enters a zone from others is told by zone, in sizes of the artifact.
fn copies(report: &Report, settings: &Settings) -> Vec<f64> {
    report.crossed.iter().map(|bytes| *bytes as f64 / settings.size as f64).collect()
}

/// Four zones of 100 machines: each machine by itself would bring three quarters of its pieces from elsewhere, 75 sizes a zone. A quarter
/// comes from the store, and at the start, when nobody knows yet how many share the work, several bring the same.
#[test]
fn an_artifact_comes_into_a_zone_a_few_times_and_goes_on_within_it() {
    for seed in 1..=2 {
        let mut settings = Settings::equal(400, 64 << 20, 10 << 20, seed);
        settings.zones = 4;
        let report = run(settings.clone());
        let copies = copies(&report, &settings);
        show(&format!("4 zones, seed {seed}, {copies:.2?} copies"), &report);
        assert!(report.completed.iter().all(Option::is_some));
        assert!(report.ratio_max() <= 1.15, "{:.3}", report.ratio_max());
        assert!(copies.iter().all(|copies| (0.7..2.0).contains(copies)), "{copies:?}");
        assert!(report.usage.ratio() <= 1.05, "{:?}", report.usage);
    }
}

/// A zone's link as fast as four of its 100 machines: without zones it would have to carry 75 sizes. When what came over it stood in the
/// way of what the zone had, machines waited for it, and the last took 1.4 times the bound.
#[test]
fn a_thin_link_between_zones_is_no_bound() {
    let mut settings = Settings::equal(400, 64 << 20, 10 << 20, 1);
    (settings.zones, settings.between) = (4, Some(4 * settings.down));
    let report = run(settings.clone());
    show(&format!("thin links, {:.2?} copies", copies(&report, &settings)), &report);
    assert!(report.completed.iter().all(Option::is_some));
    assert!(report.ratio_max() <= 1.15, "{:.3}", report.ratio_max());
}

/// Those whose part it is to bring pieces die, and one zone has a single machine.
#[test]
fn a_zone_is_not_left_without_what_a_dead_machine_was_to_bring() {
    let mut settings = Settings::equal(301, 64 << 20, 10 << 20, 1);
    settings.zones = 300;
    show("zones of one", &run(settings.clone()));
    settings.zones = 3;
    settings.crashes = (0..90).map(|at| (at * 3, Duration::from_millis(1_500 + at as u64 * 20))).collect();
    let report = run(settings.clone());
    show(&format!("a zone dies, {:.2?} copies", copies(&report, &settings)), &report);
    let left = (0..301).filter(|machine| settings.must_complete(*machine));
    assert_eq!(left.filter(|machine| report.completed[*machine].is_none()).count(), 0, "{:?}", report.stuck);
    assert!(report.ratio_max() <= 2.0, "{:.3}", report.ratio_max());
}

/// The last announces are still on their way when the run ends.
#[test]
fn the_tracker_tells_how_far_the_region_is() {
    let report = run(Settings::equal(300, 64 << 20, 10 << 20, 1));
    show("300 machines", &report);
    let [standing] = &report.standings[..] else { panic!("{:?}", report.standings) };
    assert_eq!((standing.fetchers, standing.members, standing.bound), (300, 300, Some(report.bound)));
    assert!(standing.complete >= 297 && standing.share > 0.99, "{standing:?}");
    let ratios = standing.ratios.unwrap();
    let close = |told: Option<f64>, measured: f64| (told.unwrap() - measured).abs() < 0.02;
    assert!(close(ratios.p50, report.ratio(0.5)) && close(ratios.p99, report.ratio(0.99)), "{standing:?}");
    assert!(close(ratios.expected, report.ratio_max()), "{standing:?}");
    let moved = 300 * (64_u64 << 20);
    assert!((moved * 99 / 100..=moved).contains(&(standing.from_store + standing.from_peers)), "{standing:?}");
    assert!(standing.from_store >= 64 << 20, "{standing:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let settings = Settings::equal(40, 8 << 20, 10 << 20, 3);
    let (one, two) = (run(settings.clone()), run(settings));
    assert_eq!((one.completed, one.events), (two.completed, two.events));
}

/// How a region is divided among threads changes nothing, whatever happens in it: each member is told the same in the same order.
#[test]
fn any_number_of_threads_gives_the_same_run() {
    let mut settings = Settings::equal(40, 8 << 20, 10 << 20, 3);
    let millis = Duration::from_millis;
    settings.crashes.insert(3, millis(300));
    settings.restarts.extend([(7, millis(200)), (39, millis(500))]);
    settings.lates.insert(20, millis(400));
    settings.links.insert(11, 0.5);
    settings.corrupt = vec![30];
    settings.tracker_restarts = vec![millis(150)];
    settings.gate_restarts = vec![millis(250)];
    settings.partitions.push(Partition { machines: (10..25).collect(), from: millis(350), to: millis(600) });
    settings.second = Some(millis(100));
    let told = |settings: &Settings, threads: usize| {
        let report = run(Settings { threads, ..settings.clone() });
        show(&format!("{threads} threads"), &report);
        format!("{:?}", Report { cpu: Duration::ZERO, ..report })
    };
    let one = told(&settings, 1);
    for threads in [2, 3, 5] {
        assert_eq!(told(&settings, threads), one, "{threads} threads");
    }
    // Little happens among a few, so that steps are far apart.
    for seed in 0..12 {
        let mut few = Settings::equal(3 + seed as usize, 1 << 20, 10 << 20, seed);
        few.restarts.insert(2, millis(100));
        let one = told(&few, 1);
        for threads in [2, 3, 99] {
            assert_eq!(told(&few, threads), one, "{} machines, {threads} threads", few.machines);
        }
    }
}

/// The tracker had taken a machine's connection, and the machine did not know yet when it was cut off. It was left with a connection that
/// nobody held at the other end, and never took part.
#[test]
fn who_is_cut_off_while_it_connects_connects_again() {
    let mut settings = Settings::equal(4, 1 << 20, 10 << 20, 1);
    settings.arrivals = Duration::ZERO;
    let from = settings.latency + settings.latency / 2;
    settings.partitions.push(Partition { machines: [0].into(), from, to: Duration::from_millis(500) });
    let report = run(settings);
    show("cut off at once", &report);
    assert!(report.completed.iter().all(Option::is_some), "{:?}", report.stuck);
}

#[test]
fn crashes_restarts_and_bad_peers_stop_nobody_else() {
    for seed in 0..8 {
        let mut settings = Settings::equal(60, 24 << 20, 10 << 20, seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..18 {
            settings.crashes.insert(rng.usize(..60), Duration::from_millis(rng.u64(100..3_000)));
        }
        settings.corrupt = vec![rng.usize(..60), rng.usize(..60)];
        settings.tracker_restarts = vec![Duration::from_millis(rng.u64(10..2_000))];
        settings.gate_restarts = vec![Duration::from_millis(rng.u64(20..1_500))];
        settings.horizon = Duration::from_mins(2);
        let (crashed, corrupt) = (settings.crashes.clone(), settings.corrupt.clone());
        let report = run(settings);
        show(&format!("seed {seed}"), &report);
        let alive = (0..60).filter(|machine| !crashed.contains_key(machine) && !corrupt.contains(machine));
        for machine in alive {
            assert!(report.completed[machine].is_some(), "machine {machine}, seed {seed}");
        }
        let (size, piece) = (24_u64 << 20, 256_u64 << 10);
        let budget = (size + size / 5).max(size + 8 * piece);
        assert!(report.usage.leased_bytes <= budget, "seed {seed}: {:?}", report.usage);
        assert!(report.store_bytes <= report.usage.leased_bytes + report.usage.recovery_bytes, "seed {seed}");
    }
}
