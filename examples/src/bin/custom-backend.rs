//! A backend of one's own, and the conformance kit over it: a goal-state store in one JSON file.
//!
//! It is small because the decisions are shared: `port::goals::Index` admits and orders goals; what is left is to make them durable
//! before they are shown. One process may use a file at a time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use deploycore::conformance;
use deploycore::model::{Goal, Revision, ServiceName};
use deploycore::port::BackendError;
use deploycore::port::goals::{Changes, Error, Expect, GoalStateStore, HISTORY, Index, Snapshot, Stored};
use deploycore_examples::cluster::layout::write_atomic;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

/// What the file holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Contents {
    revision: Revision,
    compacted: Revision,
    history: BTreeMap<ServiceName, Vec<Stored>>,
}

#[derive(Debug)]
struct JsonGoals {
    path: PathBuf,
    contents: Mutex<Contents>,
    index: watch::Sender<Index>,
}

impl JsonGoals {
    fn open(path: PathBuf) -> Result<Self, Error> {
        let contents = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| BackendError::permanent("json", error))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Contents::default(),
            Err(error) => return Err(BackendError::permanent("json", error).into()),
        };
        let mut index = Index::restore(contents.revision, contents.compacted);
        contents.history.values().flatten().for_each(|stored| index.apply(stored.clone()));
        Ok(Self { path, contents: Mutex::new(contents), index: watch::Sender::new(index) })
    }

    /// Makes contents durable; a crash leaves the old or the new file.
    async fn write(&self, contents: &Contents) -> Result<(), Error> {
        let bytes = serde_json::to_vec(contents).map_err(|error| BackendError::permanent("json", error))?;
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || write_atomic(&path, &bytes)).await;
        let written = written.map_err(|error| BackendError::retryable("json", error))?;
        written.map_err(|error| BackendError::retryable("json", error).into())
    }
}

#[async_trait]
impl GoalStateStore for JsonGoals {
    async fn get(&self, service: &ServiceName) -> Result<Option<Stored>, Error> {
        Ok(self.index.borrow().get(service).cloned())
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, Error> {
        Ok(self.index.borrow().list(prefix))
    }

    async fn put(&self, goal: &Goal, expect: Expect) -> Result<Revision, Error> {
        let mut contents = self.contents.lock().await;
        let mut index = self.index.borrow().clone();
        let revision = index.put(goal.clone(), expect)?;
        let mut next = contents.clone();
        next.revision = index.revision();
        let history = next.history.entry(goal.service.clone()).or_default();
        if history.first().is_none_or(|newest| newest.goal.position < goal.position) {
            history.insert(0, Stored { revision, goal: goal.clone() });
            history.truncate(HISTORY);
        }
        // Durable first, visible afterwards: whoever sees the goal may rely on it.
        self.write(&next).await?;
        *contents = next;
        self.index.send_replace(index);
        Ok(revision)
    }

    async fn history(&self, service: &ServiceName, limit: usize) -> Result<Vec<Stored>, Error> {
        let contents = self.contents.lock().await;
        Ok(contents.history.get(service).into_iter().flatten().take(limit).cloned().collect())
    }

    async fn changes(&self, since: Revision) -> Result<Changes, Error> {
        self.index.borrow().changes(since)
    }

    fn watch(&self, since: Revision) -> BoxStream<'static, Result<Changes, Error>> {
        Index::watch(self.index.subscribe(), since, "json")
    }

    async fn compact(&self, through: Revision) -> Result<(), Error> {
        let mut contents = self.contents.lock().await;
        let mut index = self.index.borrow().clone();
        index.compact(through);
        let next = Contents { compacted: index.compacted(), ..contents.clone() };
        self.write(&next).await?;
        *contents = next;
        self.index.send_replace(index);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut failed = 0;
    for (number, case) in conformance::goals::cases().iter().enumerate() {
        let goals = JsonGoals::open(folder.path().join(format!("{number}.json")))?;
        match case.run(Arc::new(goals)).await {
            Ok(()) => println!("ok      {}", case.name),
            Err(reason) => {
                failed += 1;
                println!("FAILED  {}: {reason}", case.name);
            }
        }
    }
    anyhow::ensure!(failed == 0, "{failed} cases failed");
    Ok(())
}
