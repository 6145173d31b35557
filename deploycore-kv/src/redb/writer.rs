//! The thread that owns the database.

use std::path::Path;

use deploycore::model::{Goal, Revision, ServiceName};
use deploycore::port::goals::{Error, Expect, Index, Stored};
use deploycore::port::{BackendError, chain};
use tokio::sync::{mpsc, oneshot, watch};

use super::disk::Disk;
use super::{BACKEND, WAITING};

type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What the thread is asked to do. Nobody may listen for the reply any more: the work is done all the same.
#[derive(Debug)]
pub(super) enum Command {
    Put { goal: Box<Goal>, expect: Expect, reply: Reply<Revision> },
    History { service: ServiceName, limit: usize, reply: Reply<Vec<Stored>> },
    Compact { through: Revision, reply: Reply<()> },
}

/// Serves until every sender is gone.
pub(super) fn run(disk: Disk, index: &watch::Sender<Index>, mut waiting: mpsc::Receiver<Command>) {
    let path = disk.path().to_owned();
    let mut disk = Some(disk);
    while let Some(first) = waiting.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < WAITING
            && let Ok(next) = waiting.try_recv()
        {
            batch.push(next);
        }
        match reopened(&mut disk, &path, index) {
            // After a failed commit redb takes no more writes, and only the file knows whether the commit is in it.
            Ok(open) => {
                if serve(open, index, batch).is_err() {
                    disk = None;
                }
            }
            Err(error) => batch.into_iter().for_each(|command| command.fail(&error)),
        }
    }
}

fn reopened<'a>(
    disk: &'a mut Option<Disk>,
    path: &Path,
    index: &watch::Sender<Index>,
) -> Result<&'a Disk, BackendError> {
    if disk.is_none() {
        let (open, found) = Disk::open(path.to_owned())?;
        index.send_replace(found);
        tracing::info!(file = %path.display(), "opened the goal file again");
        return Ok(disk.insert(open));
    }
    Ok(disk.as_ref().expect("it is some"))
}

/// Decides about each command in turn, commits what they write with one sync, publishes it, and answers.
fn serve(disk: &Disk, index: &watch::Sender<Index>, batch: Vec<Command>) -> Result<(), ()> {
    let mut next = index.borrow().clone();
    let mut written = Vec::new();
    let mut decided = Vec::new();
    let mut asked = Vec::new();
    for command in batch {
        match command {
            Command::Put { goal, expect, reply } => {
                let (before, service) = (next.revision(), goal.service.clone());
                let outcome = next.put(*goal, expect);
                if next.revision() > before {
                    written.extend(next.get(&service).cloned());
                }
                if let Err(error @ Error::Equivocation { .. }) = &outcome {
                    metrics::counter!("deploycore_goal_equivocations_total").increment(1);
                    tracing::error!(%error, "refused a goal");
                }
                decided.push((reply, outcome));
            }
            Command::Compact { through, reply } => {
                next.compact(through);
                asked.push(Command::Compact { through, reply });
            }
            history @ Command::History { .. } => asked.push(history),
        }
    }
    let changed = {
        let now = index.borrow();
        now.revision() != next.revision() || now.compacted() != next.compacted()
    };
    if changed {
        if let Err(error) = disk.write(written.iter(), &next) {
            tracing::error!(error = chain(&error), "goals could not be written");
            for (reply, _) in decided {
                drop(reply.send(Err(again(&error))));
            }
            for command in asked {
                command.fail(&error);
            }
            return Err(());
        }
        // Published before anyone is answered: who has the answer reads what it wrote.
        index.send_replace(next);
    }
    for (reply, outcome) in decided {
        drop(reply.send(outcome));
    }
    for command in asked {
        match command {
            Command::History { service, limit, reply } => {
                drop(reply.send(disk.history(&service, limit).map_err(Error::from)));
            }
            Command::Compact { reply, .. } => drop(reply.send(Ok(()))),
            Command::Put { .. } => unreachable!("puts are decided above"),
        }
    }
    Ok(())
}

impl Command {
    fn fail(self, error: &BackendError) {
        match self {
            Self::Put { reply, .. } => drop(reply.send(Err(again(error)))),
            Self::History { reply, .. } => drop(reply.send(Err(again(error)))),
            Self::Compact { reply, .. } => drop(reply.send(Err(again(error)))),
        }
    }
}

/// One failure for several callers.
fn again(error: &BackendError) -> Error {
    let what = std::error::Error::source(error).map_or_else(|| error.to_string(), chain);
    let make = if error.is_retryable() { BackendError::retryable } else { BackendError::permanent };
    make(BACKEND, what).into()
}
