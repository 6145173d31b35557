//! The kit over every way to reach goals in this crate.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use deploycore::memory;
use deploycore::port::GoalStateStore;
use deploycore_kv::RedbGoals;
use tempfile::TempDir;

async fn redb() -> (Arc<RedbGoals>, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let goals = RedbGoals::open(folder.path().join("goals.redb")).await.unwrap();
    (Arc::new(goals), folder)
}

mod redb_file {
    deploycore::goals_conformance!(super::redb);
}

/// Each write is followed by a restart.
mod redb_reopened {
    use super::reopening::Reopening;
    use super::*;

    deploycore::goals_conformance!(async || {
        let folder = tempfile::tempdir().unwrap();
        (Arc::new(Reopening::new(folder.path()).await), folder)
    });
}

#[cfg(feature = "gateway")]
mod over_http {
    use super::*;
    use deploycore_kv::gateway::{Access, Gateway, GatewayClient, GatewayClientSettings, GatewaySettings};
    use tokio::net::TcpListener;
    use tokio_util::sync::{CancellationToken, DropGuard};
    use tokio_util::task::AbortOnDropHandle;

    type Served = (AbortOnDropHandle<()>, DropGuard);

    async fn serve(goals: Arc<dyn GoalStateStore>) -> (Arc<GatewayClient>, Served) {
        let settings = GatewaySettings::default().with_access(Access::Writable);
        let gateway = Gateway::new(settings, goals, None, None, None);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let task = tokio::spawn(async move { gateway.serve(listener, shutdown).await.unwrap() });
        // Short, so that a watch goes through several waits in the longer cases.
        let settings = GatewayClientSettings::default().with_watch_wait(Duration::from_millis(50));
        let client = GatewayClient::with_settings(base, settings).unwrap();
        (Arc::new(client), (AbortOnDropHandle::new(task), stop.drop_guard()))
    }

    mod of_memory {
        use super::*;
        deploycore::goals_conformance!(async || serve(Arc::new(memory::Goals::new())).await);
    }

    mod of_redb {
        use super::*;
        deploycore::goals_conformance!(async || {
            let (goals, folder) = redb().await;
            let (client, served) = serve(goals).await;
            (client, (served, folder))
        });
    }

    /// A region's gateway reads another gateway when it has no store of its own.
    mod of_a_gateway {
        use super::*;
        deploycore::goals_conformance!(async || {
            let (near, far) = serve(Arc::new(memory::Goals::new())).await;
            let (client, served) = serve(near).await;
            (client, (served, far))
        });
    }
}

mod reopening {
    use super::*;
    use async_trait::async_trait;
    use deploycore::model::{Goal, Revision, ServiceName};
    use deploycore::port::goals::{Changes, Error, Expect, Snapshot, Stored};
    use futures::stream::BoxStream;
    use std::path::PathBuf;
    use tokio::sync::Mutex;

    /// A store whose every read is of a file that was opened anew after the last write. Watches go on over one more store.
    #[derive(Debug)]
    pub(super) struct Reopening {
        file: PathBuf,
        open: Mutex<Option<RedbGoals>>,
        /// Written alike, for watches: those end with their process.
        alive: memory::Goals,
    }

    impl Reopening {
        pub(super) async fn new(folder: &Path) -> Self {
            let file = folder.join("goals.redb");
            let open = Mutex::new(Some(RedbGoals::open(&file).await.unwrap()));
            Self { file, open, alive: memory::Goals::new() }
        }

        async fn again(&self, open: &mut Option<RedbGoals>) {
            *open = None;
            *open = Some(RedbGoals::open(&self.file).await.expect("the file is free once its owner is dropped"));
        }
    }

    #[async_trait]
    impl GoalStateStore for Reopening {
        async fn get(&self, service: &ServiceName) -> Result<Option<Stored>, Error> {
            self.open.lock().await.as_ref().unwrap().get(service).await
        }

        async fn list(&self, prefix: &str) -> Result<Snapshot, Error> {
            self.open.lock().await.as_ref().unwrap().list(prefix).await
        }

        async fn put(&self, goal: &Goal, expect: Expect) -> Result<Revision, Error> {
            let mut open = self.open.lock().await;
            if open.is_none() {
                self.again(&mut open).await;
            }
            let outcome = open.as_ref().unwrap().put(goal, expect).await;
            drop(self.alive.put(goal, expect).await);
            outcome
        }

        async fn history(&self, service: &ServiceName, limit: usize) -> Result<Vec<Stored>, Error> {
            self.open.lock().await.as_ref().unwrap().history(service, limit).await
        }

        async fn changes(&self, since: Revision) -> Result<Changes, Error> {
            self.open.lock().await.as_ref().unwrap().changes(since).await
        }

        fn watch(&self, since: Revision) -> BoxStream<'static, Result<Changes, Error>> {
            self.alive.watch(since)
        }

        async fn compact(&self, through: Revision) -> Result<(), Error> {
            let mut open = self.open.lock().await;
            open.as_ref().unwrap().compact(through).await?;
            self.again(&mut open).await;
            self.alive.compact(through).await
        }
    }
}
