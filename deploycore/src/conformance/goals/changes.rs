//! What changed since a revision.

use std::collections::BTreeSet;

use futures::future::try_join_all;

use super::{Error, Expect, Revision, Store, goal, service, write};
use crate::port::goals::{GoalStateStoreExt, MAX_BATCH};

/// In the order of the revisions, newest content, nothing from before.
pub async fn changes_come_after_their_revision(store: Store) {
    let start = store.list("").await.unwrap().revision;
    let first = write(&store, &goal("b", 1)).await;
    let second = write(&store, &goal("a", 1)).await;
    let third = write(&store, &goal("b", 2)).await;

    let all = store.changes(start).await.unwrap();
    assert_eq!(all.revision, third.revision);
    assert!(all.goals.is_sorted_by_key(|stored| stored.revision));
    // The first write of b may be shown, the second must be.
    let newest: Vec<_> = all.goals.iter().filter(|stored| **stored != first).cloned().collect();
    assert_eq!(newest, [second.clone(), third.clone()]);

    assert_eq!(store.changes(second.revision).await.unwrap().goals, std::slice::from_ref(&third));
    let none = store.changes(third.revision).await.unwrap();
    assert_eq!((none.revision, none.goals), (third.revision, vec![]));
}

/// More services than a page holds: the pages together are all of it.
pub async fn changes_come_in_bounded_pages(store: Store) {
    let start = store.list("").await.unwrap().revision;
    let goals: Vec<_> = (0..=MAX_BATCH).map(|number| goal(&format!("s{number}"), 1)).collect();
    for some in goals.chunks(100) {
        try_join_all(some.iter().map(|goal| store.put(goal, Expect::Absent))).await.unwrap();
    }
    let (mut since, mut services, mut pages) = (start, BTreeSet::new(), 0);
    loop {
        let page = store.changes(since).await.unwrap();
        assert!(page.goals.len() <= MAX_BATCH, "{} goals in a page", page.goals.len());
        if page.goals.is_empty() {
            break;
        }
        assert!(page.revision > since);
        assert!(page.goals.iter().all(|stored| since < stored.revision && stored.revision <= page.revision));
        services.extend(page.goals.into_iter().map(|stored| stored.goal.service));
        (since, pages) = (page.revision, pages + 1);
    }
    assert_eq!(services.len(), goals.len());
    assert!(pages >= 2);
    assert_eq!(store.list("").await.unwrap().goals.len(), goals.len());
}

/// A store that was restored, or another store behind the same address: the caller must list again.
pub async fn a_revision_that_never_was_is_answered_as_compacted(store: Store) {
    let newest = write(&store, &goal("web", 1)).await.revision;
    for ahead in [Revision(newest.0 + 1), Revision(newest.0 + 1_000)] {
        let answer = store.changes(ahead).await;
        let Err(Error::Compacted { since, oldest }) = answer else { panic!("{answer:?}") };
        assert_eq!(since, ahead);
        assert!(oldest <= newest);
    }
}

/// A compaction can be repeated, and one that reaches less far has no effect.
pub async fn a_compaction_forgets_changes_and_keeps_goals(store: Store) {
    let mut written = Vec::new();
    for generation in 1..=3 {
        written.push(write(&store, &goal("web", generation)).await);
    }
    let through = written[1].revision;
    for again in [through, through, written[0].revision, Revision(0)] {
        store.compact(again).await.unwrap();
        let answer = store.changes(written[0].revision).await;
        let Err(Error::Compacted { since, oldest }) = answer else { panic!("{answer:?}") };
        assert_eq!((since, oldest), (written[0].revision, through));
        assert_eq!(store.changes(oldest).await.unwrap().goals, [written[2].clone()]);
    }
    assert_eq!(store.get(&service("web")).await.unwrap(), Some(written[2].clone()));
    assert_eq!(store.history(&service("web"), 10).await.unwrap().len(), 3);
    let all = store.changes_or_all(written[0].revision).await.unwrap();
    assert_eq!((all.revision, all.goals), (written[2].revision, vec![written[2].clone()]));
    let next = write(&store, &goal("web", 4)).await;
    assert_eq!(store.changes(all.revision).await.unwrap().goals, [next]);
}

/// A compaction through a revision that is still to come leaves the list's revision good to ask from.
pub async fn a_compaction_stops_at_the_newest_change(store: Store) {
    let first = write(&store, &goal("web", 1)).await;
    store.compact(Revision(first.revision.0 + 1_000)).await.unwrap();
    let list = store.list("").await.unwrap();
    assert_eq!(store.changes(list.revision).await.unwrap().goals, []);
    let second = write(&store, &goal("web", 2)).await;
    assert_eq!(store.changes(list.revision).await.unwrap().goals, [second]);
}
