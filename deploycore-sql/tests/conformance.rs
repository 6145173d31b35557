//! SQLite keeps the contracts of queue and ledger.

use std::sync::Arc;

use deploycore::port::{JobQueue, ReplicationLedger};
use deploycore_sql::Sqlite;

async fn open() -> (Sqlite, tempfile::TempDir) {
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
