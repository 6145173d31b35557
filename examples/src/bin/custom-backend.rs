//! A backend of one's own, and the conformance kit over it: a goal-state store in one JSON file.
//!
//! It is small because the decisions are shared: `port::goals::Index` admits and orders goals; what is left is to make them durable
//! before they are shown. One process may use a file at a time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use deploycore::conformance;
use deploycore::model::{Goal, Revision, ServiceName};
use deploycore::port::BackendError;
use deploycore::port::goals::{Changes, Error, Expect, GoalStateStore, HISTORY, Index, Snapshot, Stored};
use deploycore_examples::files::write_atomic;
use futures::stream::{BoxStream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// What the file holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Contents {
    revision: Revision,
    compacted: Revision,
    history: BTreeMap<ServiceName, Vec<Stored>>,
}

#[derive(Debug)]
struct JsonGoals(Arc<Inner>);

#[derive(Debug)]
struct Inner {
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
        let (contents, index) = (Mutex::new(contents), watch::Sender::new(index));
        Ok(Self(Arc::new(Inner { path, contents, index })))
    }

    /// Runs one whole step on a thread that may block. A caller that goes away does not stop it half-way.
    async fn step<T: Send + 'static>(
        &self,
        step: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = self.0.clone();
        let done = tokio::task::spawn_blocking(move || step(&inner)).await;
        done.map_err(|error| BackendError::retryable("json", error))?
    }
}

impl Inner {
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, goal: Goal, expect: Expect) -> Result<Revision, Error> {
        let mut contents = self.contents();
        let mut index = self.index.borrow().clone();
        let revision = index.put(goal.clone(), expect)?;
        if index.revision() == contents.revision {
            // A repeat: it is stored already.
            return Ok(revision);
        }
        let mut next = Contents { revision, ..contents.clone() };
        let history = next.history.entry(goal.service.clone()).or_default();
        history.insert(0, Stored { revision, goal });
        history.truncate(HISTORY);
        self.replace(&mut contents, next, index)?;
        Ok(revision)
    }

    fn compact(&self, through: Revision) -> Result<(), Error> {
        let mut contents = self.contents();
        let mut index = self.index.borrow().clone();
        index.compact(through);
        let next = Contents { compacted: index.compacted(), ..contents.clone() };
        self.replace(&mut contents, next, index)
    }

    /// Durable first, visible afterwards: whoever sees a goal may rely on it. A crash leaves the old or the new file.
    fn replace(&self, contents: &mut Contents, next: Contents, index: Index) -> Result<(), Error> {
        let bytes = serde_json::to_vec(&next).map_err(|error| BackendError::permanent("json", error))?;
        write_atomic(&self.path, &bytes).map_err(|error| BackendError::retryable("json", error))?;
        *contents = next;
        self.index.send_replace(index);
        Ok(())
    }
}

#[async_trait]
impl GoalStateStore for JsonGoals {
    async fn get(&self, service: &ServiceName) -> Result<Option<Stored>, Error> {
        Ok(self.0.index.borrow().get(service).cloned())
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, Error> {
        Ok(self.0.index.borrow().list(prefix))
    }

    async fn put(&self, goal: &Goal, expect: Expect) -> Result<Revision, Error> {
        let goal = goal.clone();
        self.step(move |inner| inner.put(goal, expect)).await
    }

    async fn history(&self, service: &ServiceName, limit: usize) -> Result<Vec<Stored>, Error> {
        Ok(self.0.contents().history.get(service).into_iter().flatten().take(limit).cloned().collect())
    }

    async fn changes(&self, since: Revision) -> Result<Changes, Error> {
        self.0.index.borrow().changes(since)
    }

    fn watch(&self, since: Revision) -> BoxStream<'static, Result<Changes, Error>> {
        Index::watch(self.0.index.subscribe(), since, "json")
    }

    async fn compact(&self, through: Revision) -> Result<(), Error> {
        self.step(move |inner| inner.compact(through)).await
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let cases = futures::stream::iter(conformance::goals::cases().into_iter().enumerate());
    let runs = cases.map(|(number, case)| {
        let path = folder.path().join(format!("{number}.json"));
        async move {
            match JsonGoals::open(path) {
                Ok(goals) => (case.name, case.run(Arc::new(goals)).await),
                Err(error) => (case.name, Err(error.to_string())),
            }
        }
    });
    let mut failed = 0;
    let mut runs = runs.buffer_unordered(8);
    while let Some((name, outcome)) = runs.next().await {
        match outcome {
            Ok(()) => println!("ok      {name}"),
            Err(reason) => {
                failed += 1;
                println!("FAILED  {name}: {reason}");
            }
        }
    }
    anyhow::ensure!(failed == 0, "{failed} cases failed");
    Ok(())
}
