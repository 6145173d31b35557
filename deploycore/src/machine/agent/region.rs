//! The agent's two conversations with its region: goals in, reports out.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Event;
use crate::model::MachineReport;
use crate::pace::Pace;
use crate::port::goals::{Changes, Error};
use crate::port::{GoalStateStore, ReportSink, chain};

type Watch = BoxStream<'static, Result<Changes, Error>>;

/// Reads all goals in the rhythm, sooner when the watch says that something changed.
pub(super) async fn goals(store: Arc<dyn GoalStateStore>, watches: bool, mut pace: Pace, events: mpsc::Sender<Event>) {
    let never = CancellationToken::new();
    let mut hints: Option<Watch> = None;
    loop {
        match store.list("").await {
            Ok(snapshot) => {
                pace.note(true);
                if watches && hints.is_none() {
                    hints = Some(store.watch(snapshot.revision));
                }
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
            let next = match &mut hints {
                Some(watch) => watch.next().await,
                None => std::future::pending().await,
            };
            if !matches!(next, Some(Ok(_))) {
                // It has ended: the poll goes on, and opens another.
                hints = None;
                std::future::pending::<()>().await;
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
