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
