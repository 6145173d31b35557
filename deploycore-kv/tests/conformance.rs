//! The kit over every way to reach goals in this crate.

use std::sync::Arc;

use deploycore_kv::RedbGoals;
use tempfile::TempDir;

async fn redb() -> (Arc<RedbGoals>, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let goals = RedbGoals::open(folder.path().join("goals.redb")).await.unwrap();
    (Arc::new(goals), folder)
}

mod redb_file {
    use super::*;

    deploycore::goals_conformance!(redb);
}

/// One process at a time has the file: what one wrote the next finds.
mod redb_file_opened_anew {
    use std::path::Path;
    use std::time::Duration;

    use deploycore::conformance::handles::Handles;
    use deploycore::port::GoalStateStore;
    use deploycore::port::goals::Error;
    use tokio::time::sleep;

    use super::*;

    async fn handles() -> (Arc<dyn GoalStateStore>, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("goals.redb");
        let open = move || {
            let file = file.clone();
            async move { opened(&file).await as Arc<dyn GoalStateStore> }
        };
        (Arc::new(Handles::new(1, open).await), folder)
    }

    /// A write whose caller has gone holds the file until it ends.
    async fn opened(file: &Path) -> Arc<RedbGoals> {
        for _ in 0..1_000 {
            match RedbGoals::open(file).await {
                Ok(goals) => return Arc::new(goals),
                Err(Error::Backend(error)) if error.is_retryable() => sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error}"),
            }
        }
        panic!("{} is busy for good", file.display())
    }

    deploycore::goals_conformance!(handles);
}

#[cfg(feature = "gateway")]
mod over_http {
    use std::time::Duration;

    use super::*;
    use deploycore::memory;
    use deploycore::port::GoalStateStore;
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

        async fn served() -> (Arc<GatewayClient>, Served) {
            serve(Arc::new(memory::Goals::new())).await
        }

        deploycore::goals_conformance!(served);
    }

    mod of_redb {
        use super::*;

        async fn served() -> (Arc<GatewayClient>, (Served, TempDir)) {
            let (goals, folder) = redb().await;
            let (client, served) = serve(goals).await;
            (client, (served, folder))
        }

        deploycore::goals_conformance!(served);
    }

    /// A region's gateway reads another gateway when it has no store of its own.
    mod of_a_gateway {
        use super::*;

        async fn served() -> (Arc<GatewayClient>, (Served, Served)) {
            let (near, far) = serve(Arc::new(memory::Goals::new())).await;
            let (client, served) = serve(near).await;
            (client, (served, far))
        }

        deploycore::goals_conformance!(served);
    }
}

#[cfg(feature = "etcd")]
mod etcd {
    use std::sync::Weak;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use deploycore::conformance::handles::Handles;
    use deploycore::port::GoalStateStore;
    use deploycore::port::goals::Expect;
    use deploycore_kv::etcd::{Goals, Settings};
    use futures::future::try_join_all;
    use servers::etcd::{Etcd, Options};
    use tokio::sync::Mutex;

    /// The server of the cases that run at the moment.
    static SERVER: Mutex<Weak<Etcd>> = Mutex::const_new(Weak::new());
    static STORES: AtomicUsize = AtomicUsize::new(0);

    /// Stores of one server have a prefix each: what others write beside them must not show.
    async fn place() -> (Arc<Etcd>, String) {
        let mut shared = SERVER.lock().await;
        let server = if let Some(server) = shared.upgrade() {
            server
        } else {
            let server = Arc::new(Etcd::start(&Options::default()).unwrap());
            // Cases take small numbers for revisions that never were; where others write too, they must be well past.
            let other = open(&server, "/other").await;
            let goals: Vec<_> = (0..200).map(goal).collect();
            try_join_all(goals.iter().map(|goal| other.put(goal, Expect::Absent))).await.unwrap();
            *shared = Arc::downgrade(&server);
            server
        };
        let number = STORES.fetch_add(1, Ordering::Relaxed);
        (server, format!("/store-{number}"))
    }

    async fn open(server: &Etcd, prefix: &str) -> Goals {
        Goals::open(Settings::new(server.endpoints()).with_prefix(prefix)).await.unwrap()
    }

    fn goal(number: u64) -> deploycore::model::Goal {
        let json = serde_json::json!({
            "service": format!("s{number}"), "epoch": 0, "generation": 1,
            "artifact": {"name": "a", "digest": deploycore::model::Digest::of(b""), "size": 1},
            "run": {}, "selector": {}, "origin": {"kind": "deploy"}, "created_at": "2026-01-01T00:00:00Z",
        });
        serde_json::from_value(json).unwrap()
    }

    /// As two processes have it.
    async fn handles() -> (Arc<dyn GoalStateStore>, Arc<Etcd>) {
        let (server, prefix) = place().await;
        let of = Arc::clone(&server);
        let open = move || {
            let (server, prefix) = (Arc::clone(&of), prefix.clone());
            async move { Arc::new(open(&server, &prefix).await) as Arc<dyn GoalStateStore> }
        };
        (Arc::new(Handles::new(2, open).await), server)
    }

    deploycore::goals_conformance!(handles);
}
