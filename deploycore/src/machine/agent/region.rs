//! The agent's two conversations with its region: goals in, reports out.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Event;
use crate::model::MachineReport;
use crate::pace::{GoalHints, Pace};
use crate::port::{GoalStateStore, ReportSink, chain};

/// Reads all goals in the rhythm, sooner when the watch says that something changed.
pub(super) async fn goals(store: Arc<dyn GoalStateStore>, watches: bool, mut pace: Pace, events: mpsc::Sender<Event>) {
    let never = CancellationToken::new();
    let mut hints = GoalHints::new(Arc::clone(&store), pace.clone());
    // What was read last. There is nothing to watch from before that.
    let mut seen = None;
    loop {
        match store.list("").await {
            Ok(snapshot) => {
                pace.note(true);
                pace.wish(store.next_poll());
                seen = Some(snapshot.revision);
                let goals = snapshot.goals.into_iter().map(|stored| stored.goal).collect();
                if events.send(Event::Goals(goals)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                pace.note(false);
                tracing::warn!(error = chain(&error), failures = pace.failures(), "the region's goals cannot be read");
            }
        }
        let hint = async {
            match seen.filter(|_| watches) {
                Some(seen) => hints.given(seen).await,
                None => std::future::pending().await,
            }
        };
        pace.wait(hint, &never).await;
    }
}

/// Sends the newest report when it changed and in the rhythm.
pub(super) async fn report(
    sink: Arc<dyn ReportSink>,
    gap: Duration,
    mut pace: Pace,
    mut status: watch::Receiver<MachineReport>,
) {
    let never = CancellationToken::new();
    loop {
        let newest = status.borrow_and_update().clone();
        match sink.report(&newest).await {
            Ok(()) => pace.note(true),
            Err(error) => {
                pace.note(false);
                tracing::warn!(error = chain(&error), failures = pace.failures(), "the region takes no report");
            }
        }
        tokio::time::sleep(gap).await;
        let changed = async {
            if status.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        pace.wait(changed, &never).await;
    }
}
