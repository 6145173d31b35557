//! SQLite keeps the contracts of queue and ledger.

use std::sync::Arc;

use deploycore::port::{JobQueue, ReplicationLedger};
use deploycore_sql::Sqlite;
use tempfile::TempDir;

async fn open() -> (Sqlite, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = Sqlite::open(&format!("sqlite://{}/deploycore.db", folder.path().display())).await.unwrap();
    (sqlite, folder)
}

async fn fresh_queue() -> (Arc<dyn JobQueue>, impl Sized) {
    let (sqlite, folder) = open().await;
    (sqlite.queue(), folder)
}

deploycore::queue_conformance!(fresh_queue, flavor = "multi_thread", worker_threads = 2);

async fn fresh_ledger() -> (Arc<dyn ReplicationLedger>, impl Sized) {
    let (sqlite, folder) = open().await;
    (sqlite.ledger(), folder)
}

deploycore::ledger_conformance!(fresh_ledger, flavor = "multi_thread", worker_threads = 2);

/// As two processes see it.
mod two_handles {
    use deploycore::conformance::handles::Handles;

    use super::*;

    /// Two handles on a new file.
    async fn handles<T: ?Sized + Send + Sync + 'static>(of: fn(&Sqlite) -> Arc<T>) -> (Arc<Handles<T>>, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/deploycore.db", folder.path().display());
        let open = move || {
            let url = url.clone();
            async move { of(&Sqlite::open(&url).await.unwrap()) }
        };
        (Arc::new(Handles::new(2, open).await), folder)
    }

    async fn fresh_queue() -> (Arc<Handles<dyn JobQueue>>, TempDir) {
        handles::<dyn JobQueue>(|sqlite| sqlite.queue()).await
    }

    deploycore::queue_conformance!(fresh_queue, flavor = "multi_thread", worker_threads = 2);

    async fn fresh_ledger() -> (Arc<Handles<dyn ReplicationLedger>>, TempDir) {
        handles::<dyn ReplicationLedger>(|sqlite| sqlite.ledger()).await
    }

    deploycore::ledger_conformance!(fresh_ledger, flavor = "multi_thread", worker_threads = 2);
}
