//! What is written, and what is refused.

use std::time::Duration;

use futures::FutureExt;

use super::{Error, Expect, Revision, Store, goal, goal_in, other, seen, service, write};
use crate::port::goals::{MAX_GOAL, MAX_RUN_SPAN};

/// Revisions are of the store, not of a service.
pub async fn each_write_has_a_greater_revision(store: Store) {
    let mut last = store.list("").await.unwrap().revision;
    for (name, generation) in [("a", 1), ("b", 1), ("a", 2), ("a", 7), ("b", 3)] {
        let written = write(&store, &goal(name, generation)).await;
        assert!(written.revision > last, "{} after {last}", written.revision);
        assert_eq!(store.list("").await.unwrap().revision, written.revision);
        last = written.revision;
    }
}

/// `Expect::Absent` is create-only.
pub async fn a_create_does_not_replace(store: Store) {
    let first = write(&store, &goal("web", 1)).await;
    let refused = store.put(&goal("web", 2), Expect::Absent).await;
    let Err(Error::Conflict { service, expected: None, found }) = refused else { panic!("{refused:?}") };
    assert_eq!((service.as_str(), found), ("web", Some(first.revision)));
    assert_eq!(store.get(&service).await.unwrap(), Some(first));
}

/// `Expect::At` is compare-and-put.
pub async fn a_write_at_another_revision_is_a_conflict(store: Store) {
    let refused = store.put(&goal("web", 1), Expect::At(Revision(1))).await;
    assert!(matches!(refused, Err(Error::Conflict { expected: Some(Revision(1)), found: None, .. })), "{refused:?}");

    let first = write(&store, &goal("web", 1)).await;
    let second = write(&store, &goal("web", 2)).await;
    // Another service's write moves the store, not this service.
    let elsewhere = write(&store, &goal("api", 1)).await;
    for wrong in [first.revision, elsewhere.revision, Revision(0), Revision(u64::MAX)] {
        let refused = store.put(&goal("web", 3), Expect::At(wrong)).await;
        let Err(Error::Conflict { expected, found, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!((expected, found), (Some(wrong), Some(second.revision)));
    }
    let third = store.put(&goal("web", 3), Expect::At(second.revision)).await.unwrap();
    assert!(third > elsewhere.revision);
}

/// A lost reply: the same call gives the same answer.
pub async fn a_repeat_gives_the_same_revision_and_writes_nothing(store: Store) {
    write(&store, &goal("web", 1)).await;
    let second = write(&store, &goal("web", 2)).await;
    write(&store, &goal("api", 1)).await;
    let before = seen(&store, &["web", "api"]).await;
    for expect in [Expect::Absent, Expect::At(Revision(1)), Expect::At(second.revision), Expect::At(Revision(99))] {
        let repeated = store.put(&goal("web", 2), expect).await;
        assert_eq!(repeated.unwrap(), second.revision, "{expect:?}");
    }
    assert_eq!(seen(&store, &["web", "api"]).await, before);
    assert_eq!(store.changes(before.0.revision).await.unwrap().goals, []);
}

/// An earlier goal offered again goes back, even with its own content.
pub async fn only_the_goal_that_is_stored_now_can_be_repeated(store: Store) {
    let first = write(&store, &goal("web", 1)).await;
    write(&store, &goal("web", 2)).await;
    let refused = store.put(&first.goal, Expect::Absent).await;
    assert!(matches!(refused, Err(Error::Stale { .. })), "{refused:?}");
}

/// Whatever is expected, a goal never goes back.
pub async fn a_lower_position_is_stale(store: Store) {
    let stored = write(&store, &goal_in("web", 2, 5)).await;
    for offered in [goal_in("web", 2, 4), goal_in("web", 1, 5), goal_in("web", 1, 9), goal_in("web", 0, 0)] {
        for expect in [Expect::At(stored.revision), Expect::Absent] {
            let refused = store.put(&offered, expect).await;
            let Err(Error::Stale { service, stored: at, offered: than }) = refused else { panic!("{refused:?}") };
            assert_eq!((service.as_str(), at, than), ("web", stored.goal.position, offered.position));
        }
    }
    assert_eq!(store.get(&stored.goal.service).await.unwrap(), Some(stored));
}

/// A new epoch may begin with a low generation; generations may leave gaps.
pub async fn an_epoch_outranks_a_generation(store: Store) {
    for (epoch, generation) in [(1, 8), (1, 20), (2, 0), (7, 1)] {
        write(&store, &goal_in("web", epoch, generation)).await;
    }
    let history = store.history(&service("web"), 10).await.unwrap();
    let positions: Vec<_> = history.iter().map(|stored| stored.goal.position.to_string()).collect();
    assert_eq!(positions, ["7.1", "2.0", "1.20", "1.8"]);
}

/// Writing over a goal that was read, at its own position.
pub async fn the_same_position_with_other_content_is_an_equivocation(store: Store) {
    let stored = write(&store, &goal("web", 3)).await;
    let refused = store.put(&other(goal("web", 3)), Expect::At(stored.revision)).await;
    let Err(Error::Equivocation { service, position }) = refused else { panic!("{refused:?}") };
    assert_eq!((service.as_str(), position), ("web", stored.goal.position));
    assert_eq!(store.get(&service).await.unwrap(), Some(stored));
}

/// Two offer the same next generation: the slower has lost, and nothing is wrong.
pub async fn a_lost_race_is_a_conflict(store: Store) {
    let first = write(&store, &goal("web", 1)).await;
    let winner = write(&store, &goal("web", 2)).await;
    for expect in [Expect::At(first.revision), Expect::Absent] {
        let refused = store.put(&other(goal("web", 2)), expect).await;
        assert!(matches!(refused, Err(Error::Conflict { .. })), "{refused:?}");
    }
    assert_eq!(store.get(&winner.goal.service).await.unwrap(), Some(winner));
}

/// After each refusal: goals, revision, history and changes as before.
pub async fn a_refused_write_changes_nothing(store: Store) {
    write(&store, &goal("web", 1)).await;
    let stored = write(&store, &goal("web", 2)).await;
    let before = seen(&store, &["web", "api"]).await;
    for (offered, expect) in [
        (goal("web", 1), Expect::At(stored.revision)),
        (goal("web", 3), Expect::Absent),
        (goal("web", 3), Expect::At(Revision(77))),
        (other(goal("web", 2)), Expect::At(stored.revision)),
        (goal("api", 1), Expect::At(stored.revision)),
    ] {
        let refused = store.put(&offered, expect).await;
        assert!(refused.is_err(), "{refused:?}");
        assert_eq!(seen(&store, &["web", "api"]).await, before, "after {refused:?}");
        assert_eq!(store.changes(before.0.revision).await.unwrap().goals, []);
    }
}

/// One service's position, revision and content say nothing of another's.
pub async fn services_do_not_meet(store: Store) {
    let web = write(&store, &goal_in("web", 5, 5)).await;
    let api = write(&store, &goal_in("api", 0, 1)).await;
    assert_eq!(store.get(&web.goal.service).await.unwrap(), Some(web));
    assert_eq!(store.get(&api.goal.service).await.unwrap(), Some(api));
}

/// The bound is of the goal as JSON.
pub async fn a_goal_past_the_bound_is_refused(store: Store) {
    let mut large = goal("web", 1);
    let rest = MAX_GOAL - serde_json::to_vec(&large).unwrap().len();
    // The quotes of the only argument are two bytes.
    large.run.args = vec!["x".repeat(rest - 2)];
    assert_eq!(serde_json::to_vec(&large).unwrap().len(), MAX_GOAL);
    let mut larger = large.clone();
    larger.run.args[0].push('x');
    let refused = store.put(&larger, Expect::Absent).await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    assert_eq!(store.get(&large.service).await.unwrap(), None);
    let written = write(&store, &large).await;
    assert_eq!(store.get(&large.service).await.unwrap(), Some(written));
}

/// No machine is told to wait for what never ends.
pub async fn a_span_past_the_bound_is_refused(store: Store) {
    let mut endless = goal("web", 1);
    endless.run.ready_timeout = MAX_RUN_SPAN + Duration::from_secs(1);
    let refused = store.put(&endless, Expect::Absent).await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    assert_eq!(store.get(&endless.service).await.unwrap(), None);
}

/// A future that is dropped after its first steps, and the same call again.
pub async fn a_dropped_write_has_all_of_its_effect_or_none(store: Store) {
    for generation in 1..30_u64 {
        let offered = goal("web", generation);
        let found = store.get(&offered.service).await.unwrap();
        let expect = found.map_or(Expect::Absent, |stored| Expect::At(stored.revision));
        if generation % 2 == 0 {
            drop(store.put(&offered, expect).now_or_never());
        } else {
            drop(tokio::time::timeout(Duration::from_micros(50 * generation), store.put(&offered, expect)).await);
        }
        let revision = store.put(&offered, expect).await.expect("the same call again succeeds");
        let stored = store.get(&offered.service).await.unwrap().unwrap();
        assert_eq!((stored.revision, &stored.goal), (revision, &offered));
        let history = store.history(&offered.service, 2).await.unwrap();
        assert_eq!(history[0], stored);
        assert_eq!(history.get(1).map_or(0, |earlier| earlier.goal.position.generation.0), generation - 1);
    }
}
