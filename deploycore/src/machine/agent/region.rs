//! The agent's two conversations with its region: goals in, reports out.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Event;
use crate::model::{MachineReport, Revision, ServiceReport};
use crate::pace::{GoalHints, Pace};
use crate::port::goals::{Changes, Stored};
use crate::port::{GoalStateStore, ReportSink, chain};

/// Reads all goals in the rhythm, and takes what the watch says has changed between.
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
                if events.send(goals_event(snapshot.goals)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                pace.note(false);
                tracing::warn!(error = chain(&error), failures = pace.failures(), "the region's goals cannot be read");
            }
        }
        let hint = async {
            match seen.as_mut().filter(|_| watches) {
                Some(seen) => follow(&mut hints, seen, &events).await,
                None => std::future::pending().await,
            }
        };
        pace.wait(hint, &never).await;
    }
}

/// Hands on what the watch brings: a machine does not read all goals for each that changes. Resolves when only a list can tell more. The timer
/// beside it goes on all the while, so that a list comes in any case.
async fn follow(hints: &mut GoalHints, seen: &mut Revision, events: &mpsc::Sender<Event>) {
    // The place comes first: from then on nothing that was received can be lost to the timer.
    while let Ok(place) = events.reserve().await
        && let Some(Changes { revision, goals }) = hints.given(*seen).await
    {
        *seen = revision;
        place.send(goals_event(goals));
    }
}

/// Wherever goals come from, what is old or has two contents is for the services' cores to refuse.
fn goals_event(goals: Vec<Stored>) -> Event {
    Event::Goals(goals.into_iter().map(|stored| stored.goal).collect())
}

/// Sends the newest report when it changed and in the rhythm. How far fetches are is told in the rhythm alone: all machines of a region fetch at once.
pub(super) async fn report(
    sink: Arc<dyn ReportSink>,
    gap: Duration,
    mut pace: Pace,
    mut status: watch::Receiver<MachineReport>,
) {
    let never = CancellationToken::new();
    loop {
        let newest = status.borrow().clone();
        match sink.report(&newest).await {
            Ok(()) => pace.note(true),
            Err(error) => {
                pace.note(false);
                tracing::warn!(error = chain(&error), failures = pace.failures(), "the region takes no report");
            }
        }
        tokio::time::sleep(gap).await;
        let changed = async {
            if status.wait_for(|report| says_more(report, &newest)).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        pace.wait(changed, &never).await;
    }
}

/// Whether a report of a machine differs from an earlier one in more than how far fetches are.
fn says_more(report: &MachineReport, earlier: &MachineReport) -> bool {
    let same = |(service, earlier): (&ServiceReport, &ServiceReport)| {
        ServiceReport { bytes_fetched: earlier.bytes_fetched, ..service.clone() } == *earlier
    };
    report.services.len() != earlier.services.len() || !report.services.iter().zip(&earlier.services).all(same)
}
