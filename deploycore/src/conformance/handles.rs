//! One backend through several handles, as several processes have it.
//!
//! [`Handles`] implements the traits of queue, ledger and goals over handles on the same data. Its calls go to one handle after the other, so that every case
//! of a kit also asks whether another process sees what was answered and decides as the first would. Each handle is dropped and opened anew now and then, so
//! that the longer cases ask whether an answer outlives the handle that gave it.
//!
//! ```no_run
//! # use std::sync::Arc;
//! use deploycore::conformance::handles::Handles;
//! use deploycore::port::JobQueue;
//!
//! # struct Database;
//! # impl Database {
//! #     fn create() -> Self { Self }
//! #     fn url(&self) -> String { String::new() }
//! # }
//! # async fn connect(_: &str) -> Arc<dyn JobQueue> { Arc::new(deploycore::memory::Queue::default()) }
//! async fn three_processes() -> (Arc<dyn JobQueue>, impl Sized) {
//!     let database = Database::create();
//!     let url = database.url();
//!     let open = move || {
//!         let url = url.clone();
//!         async move { connect(&url).await }
//!     };
//!     (Arc::new(Handles::new(3, open).await), database)
//! }
//!
//! deploycore::queue_conformance!(three_processes);
//! # fn main() {}
//! ```
//!
//! What it cannot show: a process that is killed within a call, and a host whose clock is wrong.

mod goals;
mod ledger;
mod queue;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::Mutex;

/// A handle is opened anew for its fourth call, and again after so many.
const CALLS: usize = 32;
const FIRST: usize = 3;

type Open<T> = Arc<dyn Fn() -> BoxFuture<'static, Arc<T>> + Send + Sync>;
/// `None` until the next call opens it.
type Place<T> = Arc<Mutex<Option<Arc<T>>>>;

/// Handles on the same data, one after the other. See the [module](self).
pub struct Handles<T: ?Sized> {
    open: Open<T>,
    places: Vec<Place<T>>,
    calls: AtomicUsize,
}

impl<T: ?Sized + Send + Sync + 'static> Handles<T> {
    /// So many handles at once, each made by `open`: the first here, the others when their first call comes. Take one where a second cannot be opened
    /// beside the first: that one is dropped before it is opened anew.
    ///
    /// `open` may be dropped half-way and called again, as any call of a case. Where a call whose caller has gone may still hold the data, it waits for the
    /// end of that. It panics when the backend cannot be opened.
    pub async fn new<F, Opening>(handles: usize, open: F) -> Self
    where
        F: Fn() -> Opening + Send + Sync + 'static,
        Opening: Future<Output = Arc<T>> + Send + 'static,
    {
        assert!(handles > 0, "no call could be made");
        let (open, places): (Open<T>, Vec<Place<T>>) =
            (Arc::new(move || open().boxed()), (0..handles).map(|_| Arc::default()).collect());
        opened(&places[0], &open).await;
        Self { open, places, calls: AtomicUsize::new(0) }
    }

    /// The handle of the next call.
    async fn next(&self) -> Arc<T> {
        let (turn, place) = self.turn();
        if turn % CALLS == FIRST {
            let mut handle = place.lock().await;
            // Not while other calls use it: they would lose it half-way. Whoever begins to waits for the lock.
            if handle.as_ref().is_some_and(|handle| Arc::strong_count(handle) == 1) {
                *handle = None;
            }
        }
        opened(place, &self.open).await
    }

    /// Whose turn it is, and how many it had before.
    fn turn(&self) -> (usize, &Place<T>) {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        (call / self.places.len(), &self.places[call % self.places.len()])
    }

    /// What is the same of each handle; true at a moment when none is at hand.
    fn each_is(&self, asked: impl Fn(&T) -> bool) -> bool {
        self.places.iter().find_map(|place| Some(asked(place.try_lock().ok()?.as_deref()?))).unwrap_or(true)
    }
}

/// Whoever opens a handle may be dropped meanwhile: then the next opens it.
async fn opened<T: ?Sized>(place: &Place<T>, open: &Open<T>) -> Arc<T> {
    let mut handle = place.lock().await;
    match &*handle {
        Some(handle) => Arc::clone(handle),
        None => Arc::clone(handle.insert(open().await)),
    }
}

impl<T: ?Sized> fmt::Debug for Handles<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handles").field("handles", &self.places.len()).finish_non_exhaustive()
    }
}
