//! What is read.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{GoalPosition, Origin, Revision, RunSpec, Selector, Store, goal, goal_in, service, write};
use crate::model::{Generation, GoalEpoch, Port, Readiness};

/// `get` and `history` of a service that nobody wrote.
pub async fn an_unknown_service_has_no_goal(store: Store) {
    write(&store, &goal("web", 1)).await;
    assert_eq!(store.get(&service("we")).await.unwrap(), None);
    assert_eq!(store.history(&service("we"), 10).await.unwrap(), []);
}

/// Every field survives, by every way to read.
pub async fn a_goal_is_read_back_as_it_was_written(store: Store) {
    let mut full = goal_in("web", u64::MAX, u64::MAX - 1);
    full.artifact.size = u64::MAX;
    full.run = RunSpec {
        args: vec![String::new(), "--port={port}".into(), "a b\n\"ü\u{0}\u{1f980}".into()],
        env: BTreeMap::from([("KEY".into(), "väl ue=1".into()), ("EMPTY".into(), String::new())]),
        port: Port::Fixed(u16::MAX),
        readiness: Readiness::Http("/ready?a=b&c=%20".into()),
        ready_timeout: Duration::from_nanos(61_000_000_001),
        stop_grace: Duration::ZERO,
    };
    full.selector = Selector(BTreeMap::from([("zone".into(), "ä/1".into())]));
    full.origin = Origin::Rollback { restores: GoalPosition { epoch: GoalEpoch(0), generation: Generation(u64::MAX) } };
    full.created_at = "2026-11-23T01:02:03.123456789Z".parse().unwrap();
    let mut alive = goal("worker", 1);
    alive.run.readiness = Readiness::Alive(Duration::from_millis(1_500));
    alive.run.port = Port::Free;
    for goal in [full, alive] {
        let written = write(&store, &goal).await;
        assert_eq!(store.get(&goal.service).await.unwrap(), Some(written.clone()));
        assert_eq!(store.list(goal.service.as_str()).await.unwrap().goals, std::slice::from_ref(&written));
        assert_eq!(store.history(&goal.service, 1).await.unwrap(), std::slice::from_ref(&written));
        let before = Revision(written.revision.0 - 1);
        assert_eq!(store.changes(before).await.unwrap().goals, [written]);
    }
}

/// A prefix is of the name's text; the list is by name.
pub async fn a_list_holds_the_prefix_in_order(store: Store) {
    assert_eq!(store.list("").await.unwrap().goals, []);
    for name in ["web.eu", "api", "web-2", "web", "we"] {
        write(&store, &goal(name, 1)).await;
    }
    for (prefix, mut wanted) in [
        ("", vec!["api", "we", "web", "web-2", "web.eu"]),
        ("web", vec!["web", "web-2", "web.eu"]),
        ("web-", vec!["web-2"]),
        ("web-2", vec!["web-2"]),
        ("web-22", vec![]),
        ("eb", vec![]),
        ("WEB", vec![]),
        ("w%", vec![]),
        ("w_", vec![]),
        ("a&b=c d/..", vec![]),
    ] {
        wanted.sort_unstable();
        let list = store.list(prefix).await.unwrap();
        let names: Vec<_> = list.goals.iter().map(|stored| stored.goal.service.as_str()).collect();
        assert_eq!(names, wanted, "prefix {prefix:?}");
        let greatest = list.goals.iter().map(|stored| stored.revision).max().unwrap_or_default();
        assert!(list.revision >= greatest, "the list's revision is at least its goals'");
    }
}

/// The list's revision parts what is in the list from what comes as changes.
pub async fn a_list_and_the_changes_after_it_miss_nothing(store: Store) {
    write(&store, &goal("a", 1)).await;
    write(&store, &goal("b", 1)).await;
    let list = store.list("").await.unwrap();
    assert_eq!(store.changes(list.revision).await.unwrap().goals, []);
    let again = write(&store, &goal("a", 2)).await;
    let new = write(&store, &goal("b", 2)).await;
    assert_eq!(store.changes(list.revision).await.unwrap().goals, [again, new]);
    assert_eq!(list.goals.len(), 2);

    // One writes a, then b, in turn: no list shows them otherwise.
    let shared = store.clone();
    let writes = async move {
        for generation in 3..40 {
            write(&shared, &goal("a", generation)).await;
            tokio::task::yield_now().await;
            write(&shared, &goal("b", generation)).await;
            tokio::task::yield_now().await;
        }
    };
    let reads = async {
        for _ in 0..40 {
            let list = store.list("").await.unwrap();
            let generations: Vec<_> = list.goals.iter().map(|stored| stored.goal.position.generation.0).collect();
            let (a, b) = (generations[0], generations[1]);
            assert!(a == b || a == b + 1, "a at {a} and b at {b} never stood together");
            let newest = list.goals.iter().map(|stored| stored.revision).max();
            assert_eq!(Some(list.revision), newest, "the list has another revision than its newest goal");
            for changed in store.changes(list.revision).await.unwrap().goals {
                assert!(changed.revision > list.revision, "a change after the list is in the list");
            }
            tokio::task::yield_now().await;
        }
    };
    futures::join!(writes, reads);
}
