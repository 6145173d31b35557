//! The ledger in memory keeps the contract.
#![cfg(feature = "conformance")]

use std::sync::Arc;

use deploycore::memory::Ledger;
use deploycore::port::ReplicationLedger;

#[allow(clippy::unused_async, reason = "other backends have to be opened")]
async fn fresh() -> (Arc<dyn ReplicationLedger>, impl Sized) {
    (Arc::new(Ledger::default()), ())
}

deploycore::ledger_conformance!(fresh, start_paused = true);
