//! The earlier goals of a service.

use super::{Store, goal, goal_in, service, write};
use crate::port::goals::{HISTORY, MAX_BATCH};

/// The current goal comes first; the limit cuts at the far end.
pub async fn a_history_shows_the_greatest_position_first(store: Store) {
    let mut written = Vec::new();
    for (epoch, generation) in [(1, 2), (1, 9), (1, 10), (1, 256), (2, 1)] {
        written.insert(0, write(&store, &goal_in("web", epoch, generation)).await);
        write(&store, &goal_in("web2", epoch, generation)).await;
    }
    for limit in [0, 1, 3, 5, MAX_BATCH, usize::MAX] {
        let history = store.history(&service("web"), limit).await.unwrap();
        assert_eq!(history, written[..limit.min(written.len())], "limit {limit}");
    }
}

/// A rollback finds what it goes back to.
pub async fn a_history_keeps_what_is_promised(store: Store) {
    let mut written = Vec::new();
    for generation in 1..=HISTORY as u64 + 5 {
        written.insert(0, write(&store, &goal("web", generation)).await);
    }
    let history = store.history(&service("web"), HISTORY).await.unwrap();
    assert_eq!(history.len(), HISTORY);
    assert_eq!(history, written[..HISTORY]);
}
