//! Goals in a [redb](https://docs.rs/redb) file: the embedded default.
//!
//! One process owns the file, enforced by a lock on it; others reach the goals over HTTP, through the gateway. Within the process
//! one thread owns the database. It takes the writes that have gathered, decides about each, commits them together with one
//! sync, and only then answers. What is current is also kept in memory, so that a read or a watch touches no disk.
//!
//! A crash leaves the last commit: what was acknowledged is there, and of a write that was under way all or nothing. If the thread panics, every call
//! fails from then on, reads too: goals that can no longer change are not shown as if they were current.

mod disk;
#[cfg(test)]
mod power;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use async_trait::async_trait;
use deploycore::model::{Goal, Revision, ServiceName};
use deploycore::port::BackendError;
use deploycore::port::goals::{Changes, Error, Expect, GoalStateStore, Index, MAX_BATCH, Snapshot, Stored};
use futures::stream::BoxStream;
use tokio::sync::{mpsc, oneshot, watch};

use disk::Disk;
use writer::Command;

const BACKEND: &str = "redb";
/// Writes that wait for the thread; more callers wait for a place.
const WAITING: usize = 256;

/// A [`GoalStateStore`] in one file. Clones share it; the file is released when the last is dropped.
///
/// ```
/// use deploycore::model::{Goal, ServiceName};
/// use deploycore::port::goals::{Expect, GoalStateStore};
/// use deploycore_kv::redb::Goals;
///
/// # let folder = tempfile::tempdir()?;
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// # let goal: Goal = serde_json::from_str(r#"{"service": "web", "epoch": 0, "generation": 1,
/// #     "artifact": {"name": "web-1", "size": 0,
/// #     "digest": "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"},
/// #     "run": {}, "selector": {}, "origin": {"kind": "deploy"}, "created_at": "2026-01-01T00:00:00Z"}"#)?;
/// let file = folder.path().join("goals.redb");
/// let goals = Goals::open(&file).await?;
/// goals.put(&goal, Expect::Absent).await?;
/// drop(goals);
///
/// let goals = Goals::open(&file).await?;
/// assert_eq!(goals.get(&ServiceName::new("web")?).await?.unwrap().goal, goal);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Goals {
    index: watch::Receiver<Index>,
    owner: Arc<Owner>,
}

impl Goals {
    /// Opens the file, and creates it where there is none; its folder must exist.
    ///
    /// Errors name the file: it is open elsewhere (retryable: the other may end), it is of another format or damaged, or it cannot
    /// be read or written.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        let opened = tokio::task::spawn_blocking({
            let path = path.clone();
            move || Disk::open(path)
        });
        let (disk, index) = opened.await.map_err(|panic| {
            // redb may panic on a file whose bytes were changed.
            BackendError::permanent(BACKEND, format!("{} could not be opened: {panic}", path.display()))
        })??;
        Self::on(disk, index)
    }

    /// The store on a file that is open; `index` is what it holds.
    fn on(disk: Disk, index: Index) -> Result<Self, Error> {
        let (index, receiver) = watch::channel(index);
        let (commands, waiting) = mpsc::channel(WAITING);
        let thread = std::thread::Builder::new()
            .name("deploycore-goals".to_owned())
            .spawn(move || writer::run(disk, &index, waiting))
            .map_err(|error| BackendError::retryable(BACKEND, error))?;
        let owner = Owner { commands: Some(commands), thread: Some(thread) };
        Ok(Self { index: receiver, owner: Arc::new(owner) })
    }

    /// Opens the file of a URL: `redb:///absolute/path` or `redb://relative/path`.
    pub async fn open_url(url: &str) -> Result<Self, Error> {
        Self::open(path_of(url)?).await
    }

    /// Resolves when the thread that owns the file has panicked: from then on each call fails, and whoever runs the store shall open it anew, best by
    /// ending its process. Cancel safe.
    pub async fn failed(&self) {
        let mut index = self.index.clone();
        while index.changed().await.is_ok() {}
    }

    /// The goals as they are. Without the thread they would stay so for ever, and look well.
    fn now(&self) -> Result<watch::Ref<'_, Index>, Error> {
        match self.index.has_changed() {
            Ok(_) => Ok(self.index.borrow()),
            Err(_) => Err(gone()),
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let commands = self.owner.commands.as_ref().expect("it is taken only when dropped");
        commands.send(command(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// It may pass: a process that starts anew opens the file again, and until then machines turn to another gateway of their region.
fn gone() -> Error {
    BackendError::retryable(BACKEND, "the thread that owns the goal file has ended").into()
}

#[async_trait]
impl GoalStateStore for Goals {
    async fn get(&self, service: &ServiceName) -> Result<Option<Stored>, Error> {
        Ok(self.now()?.get(service).cloned())
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, Error> {
        Ok(self.now()?.list(prefix))
    }

    async fn put(&self, goal: &Goal, expect: Expect) -> Result<Revision, Error> {
        self.ask(|reply| Command::Put { goal: Box::new(goal.clone()), expect, reply }).await
    }

    async fn history(&self, service: &ServiceName, limit: usize) -> Result<Vec<Stored>, Error> {
        let (service, limit) = (service.clone(), limit.min(MAX_BATCH));
        self.ask(|reply| Command::History { service, limit, reply }).await
    }

    async fn changes(&self, since: Revision) -> Result<Changes, Error> {
        self.now()?.changes(since)
    }

    fn watch(&self, since: Revision) -> BoxStream<'static, Result<Changes, Error>> {
        Index::watch(self.index.clone(), since, BACKEND)
    }

    async fn compact(&self, through: Revision) -> Result<(), Error> {
        self.ask(|reply| Command::Compact { through, reply }).await
    }
}

/// Ends the thread, and with it the lock on the file.
#[derive(Debug)]
struct Owner {
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        drop(self.commands.take());
        // At most one commit long. Without it the file would be locked for a moment after the last handle is gone.
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that owned the goal file had panicked");
        }
    }
}

/// The file that a URL names.
fn path_of(url: &str) -> Result<PathBuf, Error> {
    match url.strip_prefix("redb://") {
        Some(path) if !path.is_empty() && !path.contains(['?', '#', '%']) => Ok(PathBuf::from(path)),
        _ => Err(Error::Invalid(format!(
            "{url:?} is not the URL of a goal file: use redb:///absolute/path or redb://relative/path, with no '?', '#' or '%'"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use ::redb::StorageBackend;
    use ::redb::backends::InMemoryBackend;

    use super::*;

    /// A file that panics under its next sync when it is told to.
    #[derive(Debug, Default)]
    struct Fragile {
        bytes: InMemoryBackend,
        breaks: Arc<AtomicBool>,
    }

    impl StorageBackend for Fragile {
        fn len(&self) -> io::Result<u64> {
            self.bytes.len()
        }
        fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
            self.bytes.read(at, out)
        }
        fn set_len(&self, length: u64) -> io::Result<()> {
            self.bytes.set_len(length)
        }
        fn sync_data(&self) -> io::Result<()> {
            assert!(!self.breaks.swap(false, Ordering::SeqCst), "as a test wants it");
            self.bytes.sync_data()
        }
        fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
            self.bytes.write(at, data)
        }
    }

    fn goal(generation: u64) -> Goal {
        serde_json::from_value(serde_json::json!({
            "service": "web", "epoch": 0, "generation": generation,
            "artifact": {"name": "a", "digest": deploycore::model::Digest::of(b""), "size": 1},
            "run": {}, "selector": {}, "origin": {"kind": "deploy"}, "created_at": "2026-01-01T00:00:00Z",
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn goals_whose_thread_has_panicked_are_not_shown_as_if_they_were_current() {
        let breaks = Arc::<AtomicBool>::default();
        let file = Fragile { breaks: breaks.clone(), ..Fragile::default() };
        let (disk, index) = Disk::on("fragile".into(), disk::builder().create_with_backend(file).unwrap()).unwrap();
        let goals = Goals::on(disk, index).unwrap();
        let revision = goals.put(&goal(1), Expect::Absent).await.unwrap();
        assert_eq!(goals.list("").await.unwrap().goals.len(), 1);

        breaks.store(true, Ordering::SeqCst);
        goals.put(&goal(2), Expect::At(revision)).await.unwrap_err();
        tokio::time::timeout(Duration::from_secs(30), goals.failed()).await.expect("nobody hears of it");
        let service = ServiceName::new("web").unwrap();
        for error in [
            goals.get(&service).await.map(drop),
            goals.list("").await.map(drop),
            goals.changes(revision).await.map(drop),
            goals.history(&service, 1).await.map(drop),
        ] {
            // Retryable: a gateway says 503 then, and machines turn to another.
            assert!(error.unwrap_err().is_retryable());
        }
    }
}
