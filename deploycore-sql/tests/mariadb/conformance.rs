//! MariaDB keeps the contracts of queue and ledger.

use std::sync::Arc;

use deploycore::port::{JobQueue, ReplicationLedger};

use crate::bed;

async fn fresh_queue() -> (Arc<dyn JobQueue>, impl Sized) {
    let (mariadb, database) = bed::open().await;
    (mariadb.queue(), database)
}

deploycore::queue_conformance!(fresh_queue, flavor = "multi_thread", worker_threads = 2);

async fn fresh_ledger() -> (Arc<dyn ReplicationLedger>, impl Sized) {
    let (mariadb, database) = bed::open().await;
    (mariadb.ledger(), database)
}

deploycore::ledger_conformance!(fresh_ledger, flavor = "multi_thread", worker_threads = 2);
