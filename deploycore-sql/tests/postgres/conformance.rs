//! PostgreSQL keeps the contracts of queue and ledger, as two processes see it.

use std::sync::Arc;

use deploycore::conformance::handles::Handles;
use deploycore::port::{JobQueue, ReplicationLedger};
use servers::postgres::Database;

use crate::bed;

/// Two handles on an empty database.
async fn handles<T: ?Sized + Send + Sync + 'static>(
    of: fn(&bed::Sql) -> Arc<T>,
) -> (Arc<Handles<T>>, Database<'static>) {
    let database = bed::empty();
    let url = database.url();
    let open = move || {
        let url = url.clone();
        async move { of(&bed::open_at(&url).await) }
    };
    (Arc::new(Handles::new(2, open).await), database)
}

async fn fresh_queue() -> (Arc<Handles<dyn JobQueue>>, Database<'static>) {
    handles::<dyn JobQueue>(|sql| sql.queue()).await
}

deploycore::queue_conformance!(fresh_queue, flavor = "multi_thread", worker_threads = 2);

async fn fresh_ledger() -> (Arc<Handles<dyn ReplicationLedger>>, Database<'static>) {
    handles::<dyn ReplicationLedger>(|sql| sql.ledger()).await
}

deploycore::ledger_conformance!(fresh_ledger, flavor = "multi_thread", worker_threads = 2);
