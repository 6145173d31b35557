//! The queue in memory keeps the contract.
#![cfg(feature = "conformance")]

use std::sync::Arc;

use deploycore::memory::Queue;
use deploycore::port::JobQueue;

#[allow(clippy::unused_async, reason = "other backends have to be opened")]
async fn fresh() -> (Arc<dyn JobQueue>, impl Sized) {
    (Arc::new(Queue::default()), ())
}

deploycore::queue_conformance!(fresh, start_paused = true);
