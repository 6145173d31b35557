//! Watches.

use futures::stream::StreamExt;

use super::{Error, Expect, Revision, Store, goal, next, write};

/// The changes between the revision and the watch come first.
pub async fn a_watch_begins_with_what_it_missed(store: Store) {
    let first = write(&store, &goal("web", 1)).await;
    let second = write(&store, &goal("api", 1)).await;
    let mut watch = store.watch(first.revision);
    let event = next(&mut watch).await.unwrap();
    assert_eq!((event.revision, event.goals), (second.revision, vec![second]));
}

/// Between the list and `watch`, and between `watch` and its first poll.
pub async fn a_watch_sees_what_is_written_before_its_first_poll(store: Store) {
    let list = store.list("").await.unwrap();
    let between = write(&store, &goal("a", 1)).await;
    let mut watch = store.watch(list.revision);
    let unpolled = write(&store, &goal("b", 1)).await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(next(&mut watch).await.unwrap().goals);
    }
    assert_eq!(seen, [between, unpolled]);
}

/// The watch waits; the write wakes it, again and again.
pub async fn a_watch_sees_what_is_written_while_it_waits(store: Store) {
    let mut watch = store.watch(store.list("").await.unwrap().revision);
    for generation in 1..=10 {
        let (event, written) = futures::join!(next(&mut watch), async {
            // The watch is polled first, and may or may not have come to rest.
            for _ in 1..generation {
                tokio::task::yield_now().await;
            }
            write(&store, &goal("web", generation)).await
        });
        assert_eq!(event.unwrap().goals, [written]);
    }
}

/// Revisions strictly grow from event to event, each service's newest goal is shown, refusals and repeats are not.
pub async fn a_watch_repeats_nothing_and_skips_nothing(store: Store) {
    const LAST: u64 = 25;
    let start = store.list("").await.unwrap().revision;
    let mut watch = store.watch(start);
    let shared = store.clone();
    let writes = async move {
        let mut last = start;
        for generation in 1..=LAST {
            for name in ["a", "b", "c"] {
                let written = write(&shared, &goal(name, generation)).await;
                let repeat = shared.put(&written.goal, Expect::Absent).await.unwrap();
                assert_eq!(repeat, written.revision);
                assert!(shared.put(&goal(name, 0), Expect::Absent).await.is_err());
                last = written.revision;
                tokio::task::yield_now().await;
            }
        }
        last
    };
    let reads = async {
        let (mut since, mut ended) = (start, 0);
        while ended < 3 {
            let page = next(&mut watch).await.unwrap();
            assert!(!page.goals.is_empty(), "an event without a change");
            for stored in &page.goals {
                assert!(stored.revision > since, "{} after {since}", stored.revision);
                since = stored.revision;
                ended += usize::from(stored.goal.position.generation.0 == LAST);
            }
            assert!(page.revision >= since);
            since = page.revision;
        }
        since
    };
    let (last, seen) = futures::join!(writes, reads);
    assert_eq!(seen, last);
}

/// A new watch from the last revision seen goes on where the first was dropped.
pub async fn a_watch_resumes_where_another_ended(store: Store) {
    let first = write(&store, &goal("web", 1)).await;
    let mut watch = store.watch(Revision(first.revision.0 - 1));
    let seen = next(&mut watch).await.unwrap().revision;
    drop(watch);
    let second = write(&store, &goal("web", 2)).await;
    let mut watch = store.watch(seen);
    assert_eq!(next(&mut watch).await.unwrap().goals, [second]);
    let third = write(&store, &goal("web", 3)).await;
    assert_eq!(next(&mut watch).await.unwrap().goals, [third]);
}

/// The error is the last of the stream; the list's revision is good to go on from.
pub async fn a_watch_of_what_is_compacted_says_so(store: Store) {
    let first = write(&store, &goal("web", 1)).await;
    write(&store, &goal("web", 2)).await;
    let third = write(&store, &goal("web", 3)).await;
    store.compact(third.revision).await.unwrap();
    let mut watch = store.watch(first.revision);
    let event = next(&mut watch).await;
    assert!(matches!(event, Err(Error::Compacted { .. })), "{event:?}");
    assert!(watch.next().await.is_none(), "a stream ends with its error");
    let mut watch = store.watch(store.list("").await.unwrap().revision);
    let fourth = write(&store, &goal("web", 4)).await;
    assert_eq!(next(&mut watch).await.unwrap().goals, [fourth]);
}

/// A compaction of what the watch has told already does not end it.
pub async fn a_watch_that_is_up_to_date_survives_a_compaction(store: Store) {
    let first = write(&store, &goal("web", 1)).await;
    let mut watch = store.watch(Revision(first.revision.0 - 1));
    assert_eq!(next(&mut watch).await.unwrap().revision, first.revision);
    for generation in 2..6 {
        let newest = store.list("").await.unwrap().revision;
        let is_asleep = generation % 2 == 1;
        if !is_asleep {
            store.compact(newest).await.unwrap();
        }
        let (event, written) = futures::join!(next(&mut watch), async {
            tokio::task::yield_now().await;
            if is_asleep {
                store.compact(newest).await.unwrap();
            }
            tokio::task::yield_now().await;
            write(&store, &goal("web", generation)).await
        });
        assert_eq!(event.unwrap().goals, [written]);
    }
}
