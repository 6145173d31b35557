use proptest::prelude::*;

use super::*;
use crate::model::{Generation, Selector, ServicePhase};

mod world;

use world::{Behaviour, Crash, SECOND, World, artifact, goal, http};

const SERVES: Behaviour = Behaviour::Serves;

fn good_with(builds: &[&str]) -> World {
    let all = ["a", "b", "c", "d", "e"].map(|name| (name, SERVES));
    let mut world = World::new(&all);
    for (generation, name) in (1..).zip(builds) {
        world.offer(&goal(generation, name, http()));
        world.run_for(10 * SECOND);
        assert_eq!(world.phase(), ServicePhase::Good, "{name}");
    }
    world
}

fn runs(world: &World, name: &str) -> bool {
    world.running().is_some_and(|build| build.artifact == artifact(name))
}

#[test]
fn the_phases_of_a_first_goal_come_in_order() {
    let mut world = World::new(&[("a", SERVES)]);
    world.offer(&goal(1, "a", http()));
    let mut phases = vec![world.phase()];
    while world.step() {
        if phases.last() != Some(&world.phase()) {
            phases.push(world.phase());
        }
    }
    let names: Vec<_> = phases.iter().map(|phase| format!("{phase:?}")).collect();
    assert_eq!(names, ["Fetching", "Staged", "Switching", "Running", "Good"]);
    let report = world.core.report().unwrap();
    assert_eq!((report.bytes_fetched, report.port, report.message), (100, Some(80), None));
}

#[test]
fn the_old_build_runs_while_the_new_one_travels() {
    let mut world = good_with(&["a"]);
    world.offer(&goal(2, "b", http()));
    world.run_for(2 * SECOND);
    assert_eq!(world.phase(), ServicePhase::Fetching);
    assert!(runs(&world, "a"));
    world.run_for(10 * SECOND);
    assert!(runs(&world, "b"));
}

#[test]
fn what_is_kept_is_not_fetched_and_no_more_is_kept_than_wanted() {
    let mut world = good_with(&["a", "b", "c", "d"]);
    assert_eq!(world.links.previous, Some(artifact("c").digest));
    let kept: BTreeSet<_> = ["b", "c", "d"].map(|name| artifact(name).digest).into();
    assert_eq!(world.blobs, kept, "two besides the current one");
    let before = world.fetches.len();
    world.offer(&goal(5, "b", http()));
    world.run_for(10 * SECOND);
    assert!(runs(&world, "b"));
    assert_eq!(world.fetches.len(), before);
    assert_eq!(world.core.report().unwrap().bytes_fetched, 0);
    world.offer(&goal(6, "a", http()));
    world.run_for(10 * SECOND);
    assert_eq!(world.fetches.len(), before + 1);
}

#[test]
fn a_newer_goal_wins_in_every_state() {
    // However far the older one has come, the newer one is reached.
    for steps in 0..60 {
        let mut world = good_with(&["a"]);
        world.offer(&goal(2, "b", http()));
        for _ in 0..steps {
            world.step();
        }
        world.offer(&goal(3, "c", http()));
        world.offer(&goal(2, "b", http()));
        world.run_for(20 * SECOND);
        assert!(runs(&world, "c"), "after {steps} steps");
        assert_eq!(world.phase(), ServicePhase::Good);
        assert_eq!(world.core.report().unwrap().goal.generation, Generation(3));
    }
}

#[test]
fn a_fetch_of_the_same_bytes_goes_on_under_a_newer_goal() {
    let mut world = good_with(&["a"]);
    world.offer(&goal(2, "b", http()));
    world.run_for(SECOND);
    world.offer(&goal(3, "b", http()));
    world.run_for(SECOND);
    assert_eq!(world.fetches.len(), 2, "one for each artifact");
    world.offer(&goal(4, "a", http()));
    world.run_for(10 * SECOND);
    assert_eq!(world.fetches.len(), 2);
    assert!(!world.blobs.contains(&artifact("b").digest), "it was cancelled");
}

#[test]
fn the_same_build_under_a_newer_goal_is_not_restarted() {
    let mut world = good_with(&["a"]);
    let pid = world.core.report().unwrap().pid;
    world.offer(&goal(2, "a", http()));
    world.run_for(SECOND / 10);
    let report = world.core.report().unwrap();
    assert_eq!((report.pid, report.phase), (pid, ServicePhase::Good));
    assert_eq!(report.current.unwrap().0.generation, Generation(2));
    let mut other = goal(3, "a", http());
    other.run.args = vec!["--verbose".to_owned()];
    world.offer(&other);
    world.run_for(10 * SECOND);
    assert_ne!(world.core.report().unwrap().pid, pid, "other arguments are another build");
}

#[test]
fn a_start_that_the_system_refuses_says_nothing_about_the_build() {
    let mut world = good_with(&["a"]);
    let mut patient = goal(2, "b", http());
    patient.run.ready_timeout = 60 * SECOND;
    world.offer(&patient);
    world.refuses = true;
    world.run_for(30 * SECOND);
    let report = world.core.report().unwrap();
    assert_eq!(report.message.as_deref(), Some("no process can be made"));
    assert_eq!(world.journal.rejected, []);
    world.refuses = false;
    world.run_for(10 * SECOND);
    assert!(runs(&world, "b"));
    assert_eq!(world.phase(), ServicePhase::Good);

    // One that was proven is started whenever that can be done again.
    world.refuses = true;
    world.kill();
    world.run_for(300 * SECOND);
    world.refuses = false;
    world.run_for(10 * SECOND);
    assert!(runs(&world, "b"));
    assert_eq!((world.phase(), world.journal.rejected.len()), (ServicePhase::Good, 0));
}

#[test]
fn a_trial_that_the_system_does_not_let_start_ends_in_time() {
    let mut world = good_with(&["a"]);
    world.offer(&goal(2, "b", http()));
    world.run_for(4 * SECOND);
    world.refuses = true;
    world.kill();
    world.run_for(SECOND);
    assert_eq!(world.journal.rejected, []);
    world.run_for(20 * SECOND);
    let reason = &world.journal.rejected[0].reason;
    assert!(reason.contains("not ready after 5s") && reason.contains("no process can be made"), "{reason}");
    world.refuses = false;
    world.run_for(10 * SECOND);
    assert!(runs(&world, "a"));
}

#[test]
fn a_build_that_cannot_be_started_is_reverted_after_its_attempts() {
    let mut world = World::new(&[("a", SERVES), ("b", Behaviour::Unstartable)]);
    for (generation, name) in [(1, "a"), (2, "b")] {
        let mut goal = goal(generation, name, http());
        goal.run.ready_timeout = 600 * SECOND;
        world.offer(&goal);
        world.run_for(30 * SECOND);
    }
    assert!(runs(&world, "a"));
    assert_eq!(world.phase(), ServicePhase::Reverted);
    assert!(world.journal.rejected[0].reason.contains("3 starts failed"));
}

#[test]
fn a_build_that_is_not_ready_is_reverted_once_and_for_its_goal_only() {
    let cases =
        [(Behaviour::Hangs, "not ready"), (Behaviour::Ends(1), "exit code 1"), (Behaviour::Ends(0), "exit code 0")];
    for (behaviour, reason) in cases {
        let mut world = World::new(&[("a", SERVES), ("bad", behaviour)]);
        world.offer(&goal(1, "a", http()));
        world.run_for(10 * SECOND);
        world.offer(&goal(2, "bad", http()));
        world.run_for(30 * SECOND);
        assert_eq!(world.phase(), ServicePhase::Reverted);
        assert!(runs(&world, "a"));
        let message = world.core.report().unwrap().message.unwrap();
        assert!(message.contains(reason), "{message}");
        // The world asserts that a rejected goal is not started again, also by the next agent.
        world.crash(Crash::Reboot);
        world.run_for(30 * SECOND);
        assert_eq!(world.phase(), ServicePhase::Reverted);
        assert!(runs(&world, "a"));
        world.offer(&goal(3, "bad", http()));
        world.run_for(4 * SECOND);
        assert!(runs(&world, "bad"), "a new generation is tried");
    }
}

#[test]
fn a_first_build_that_fails_leaves_nothing_running() {
    let mut world = World::new(&[("bad", Behaviour::Hangs)]);
    world.offer(&goal(1, "bad", http()));
    world.run_for(30 * SECOND);
    assert_eq!(world.phase(), ServicePhase::Reverted);
    assert_eq!((world.running(), world.links), (None, Links::default()));
}

#[test]
fn a_good_service_that_ends_is_started_again_with_growing_pauses() {
    let mut world = good_with(&["a"]);
    let mut pauses = Vec::new();
    for _ in 0..5 {
        world.kill();
        let down = world.now;
        assert_eq!(world.phase(), ServicePhase::Running);
        assert!(world.core.report().unwrap().message.unwrap().contains("exit code 137"));
        while world.running().is_none() {
            assert!(world.step());
        }
        pauses.push(world.now.saturating_sub(down).as_millis() / 500 * 500);
    }
    assert_eq!(pauses, [500, 1000, 2000, 4000, 4000]);
    world.run_for(10 * SECOND);
    assert_eq!(world.phase(), ServicePhase::Good);
    assert_eq!(world.core.report().unwrap().message, None);
    // It has lived long enough to be trusted again.
    world.kill();
    world.run_for(SECOND);
    assert!(runs(&world, "a"));
}

#[test]
fn a_goal_for_other_machines_retires_the_service_and_one_for_this_brings_it_back() {
    let mut world = good_with(&["a", "b"]);
    let mut elsewhere = goal(3, "b", http());
    elsewhere.selector = Selector([("zone".to_owned(), "far".to_owned())].into());
    world.offer(&elsewhere);
    world.run_for(10 * SECOND);
    assert_eq!(world.phase(), ServicePhase::Retired);
    assert_eq!((world.running(), world.links, world.blobs.len()), (None, Links::default(), 0));
    world.offer(&goal(4, "a", http()));
    world.run_for(10 * SECOND);
    assert!(runs(&world, "a"));

    let mut stranger = World::new(&[]);
    stranger.offer(&elsewhere);
    stranger.run_for(SECOND);
    assert_eq!(stranger.core.report(), None, "what never ran here is not reported");
    assert_eq!(stranger.journal.goal, Some(elsewhere), "but its position is remembered");
}

#[test]
fn each_kind_of_readiness_has_its_own_end() {
    let kinds = [
        (Readiness::Installed, Behaviour::Hangs, ServicePhase::Good, false),
        (Readiness::Exit, Behaviour::Ends(0), ServicePhase::Good, false),
        (Readiness::Exit, Behaviour::Ends(1), ServicePhase::Reverted, false),
        (Readiness::Exit, Behaviour::Hangs, ServicePhase::Reverted, false),
        (Readiness::Alive(2 * SECOND), Behaviour::Hangs, ServicePhase::Good, true),
        (Readiness::Alive(2 * SECOND), Behaviour::Ends(0), ServicePhase::Reverted, false),
        (Readiness::Alive(20 * SECOND), Behaviour::Serves, ServicePhase::Good, true),
        (http(), Behaviour::Serves, ServicePhase::Good, true),
    ];
    for (readiness, behaviour, phase, running) in kinds {
        let mut world = World::new(&[("a", behaviour)]);
        world.offer(&goal(1, "a", readiness.clone()));
        world.run_for(60 * SECOND);
        assert_eq!((world.phase(), world.running().is_some()), (phase, running), "{readiness:?} {behaviour:?}");
        world.crash(Crash::Agent);
        world.run_for(60 * SECOND);
        assert_eq!((world.phase(), world.running().is_some()), (phase, running), "{readiness:?} {behaviour:?} again");
    }
}

/// Goals that an earlier program took may say so.
#[test]
fn a_span_without_end_is_waited_for_until_the_next_goal() {
    let mut world = World::new(&[("hangs", Behaviour::Hangs), ("b", SERVES)]);
    for (generation, readiness) in [(2, Readiness::Alive(Duration::MAX)), (3, Readiness::Exit), (4, http())] {
        let mut endless = goal(generation, "hangs", readiness);
        endless.run.ready_timeout = Duration::MAX;
        world.offer(&endless);
        world.run_for(10 * SECOND);
        assert_eq!((world.phase(), runs(&world, "hangs")), (ServicePhase::Running, true));
        world.crash(Crash::Agent);
    }
    world.offer(&goal(5, "b", http()));
    world.run_for(10 * SECOND);
    assert_eq!((world.phase(), runs(&world, "b")), (ServicePhase::Good, true));
}

#[test]
fn one_generation_with_two_contents_keeps_the_first_and_says_so() {
    let mut world = good_with(&["a"]);
    world.offer(&goal(1, "b", http()));
    world.run_for(10 * SECOND);
    assert!(runs(&world, "a"));
    assert!(world.core.report().unwrap().message.unwrap().contains("written twice"));
}

#[test]
fn a_lost_blob_is_fetched_again_without_a_stop() {
    let mut world = good_with(&["a"]);
    let (pid, digest) = (world.core.report().unwrap().pid, artifact("a").digest);
    world.input(Input::Lost(digest));
    world.run_for(10 * SECOND);
    assert_eq!(world.fetches, [digest, digest]);
    assert_eq!((world.core.report().unwrap().pid, world.phase()), (pid, ServicePhase::Good));
}

/// From one build to another, lost at each step in each way, and lost again on the way back.
#[test]
fn a_crash_at_any_step_ends_on_the_goal_and_on_one_build_at_a_time() {
    let mut crashes = 0;
    for next in ["b", "bad"] {
        for first in 0..45 {
            for crash in [Crash::Agent, Crash::HalfSwitch, Crash::Reboot] {
                for second in [None, Some(0), Some(1), Some(2), Some(3), Some(5), Some(8), Some(13)] {
                    let mut world = World::new(&[("a", SERVES), ("b", SERVES), ("bad", Behaviour::Ends(1))]);
                    world.offer(&goal(1, "a", http()));
                    world.run_for(10 * SECOND);
                    world.offer(&goal(2, next, http()));
                    for steps in [Some(first), second].into_iter().flatten() {
                        for _ in 0..steps {
                            world.step();
                        }
                        world.crash(crash);
                        crashes += 1;
                        // The goal may have been lost with the agent; the region still has it.
                        world.offer(&goal(2, next, http()));
                    }
                    world.run_for(60 * SECOND);
                    let (phase, name) =
                        if next == "b" { (ServicePhase::Good, "b") } else { (ServicePhase::Reverted, "a") };
                    assert_eq!(world.phase(), phase, "{next}: {crash:?} after {first} and {second:?} steps");
                    assert!(runs(&world, name));
                }
            }
        }
    }
    assert!(crashes > 3_000);
}

#[derive(Debug, Clone)]
enum Move {
    Steps(u8),
    Offer(u8),
    Crash(Crash),
    Fail(u8),
    Wait(u8),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        4 => (1..12_u8).prop_map(Move::Steps),
        2 => (0..8_u8).prop_map(Move::Offer),
        2 => prop_oneof![Just(Crash::Agent), Just(Crash::HalfSwitch), Just(Crash::Reboot)].prop_map(Move::Crash),
        1 => (1..4_u8).prop_map(Move::Fail),
        1 => (1..10_u8).prop_map(Move::Wait),
    ];
    prop::collection::vec(one, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Goals old and new in any order, failing disks and crashes; at the end the newest goal is met, or reverted to one that was good.
    #[test]
    fn whatever_happens_the_newest_goal_wins(moves in moves(), last in 0_usize..6) {
        let names = ["a", "b", "hangs", "ends", "a", "once", "b", "bytes"];
        let readiness = |name: &str| match name {
            "once" => Readiness::Exit,
            "bytes" => Readiness::Installed,
            "b" => Readiness::Alive(2 * SECOND),
            _ => http(),
        };
        let behaviours = [
            ("a", SERVES), ("b", SERVES), ("hangs", Behaviour::Hangs), ("ends", Behaviour::Ends(2)),
            ("once", Behaviour::Ends(0)), ("bytes", Behaviour::Hangs),
        ];
        let mut world = World::new(&behaviours);
        for step in moves {
            match step {
                Move::Steps(count) => { (0..count).for_each(|_| { world.step(); }); }
                Move::Offer(index) => {
                    let name = names[usize::from(index)];
                    world.offer(&goal(u64::from(index) + 1, name, readiness(name)));
                }
                Move::Crash(crash) => world.crash(crash),
                Move::Fail(count) => world.failures += u32::from(count),
                Move::Wait(seconds) => world.run_for(u32::from(seconds) * SECOND),
            }
        }
        world.failures = 0;
        let name = behaviours[last].0;
        world.offer(&goal(100, name, readiness(name)));
        world.run_for(200 * SECOND);
        let failing = matches!(name, "hangs" | "ends");
        prop_assert_eq!(world.phase(), if failing { ServicePhase::Reverted } else { ServicePhase::Good });
        if matches!(name, "a" | "b") {
            prop_assert!(runs(&world, name));
        } else if let Some(build) = world.running() {
            prop_assert!(failing && ["a", "b"].map(artifact).contains(&build.artifact));
        }
    }
}
