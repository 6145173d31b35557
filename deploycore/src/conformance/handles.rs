//! One backend through several handles, as several processes have it.
//!
//! [`Handles`] implements the traits of queue, ledger and goals over handles on the same data. Its calls go to one handle after the other, and each
//! handle is dropped and opened anew after some of them, so that every case of a kit also asks whether another process sees what was answered, whether it decides
//! as the first would, and whether the answer outlives the handle that gave it.
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
//!     (Arc::new(Handles::new(3, open)), database)
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
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

/// A handle serves so many calls before it is opened anew.
const CALLS: usize = 32;

type Open<T> = Arc<dyn Fn() -> BoxFuture<'static, Arc<T>> + Send + Sync>;
/// `None` until the next call opens it anew.
type Place<T> = Arc<RwLock<Option<Arc<T>>>>;
/// A handle that is not dropped while a call uses it.
type Held<T> = OwnedRwLockReadGuard<Option<Arc<T>>, T>;

/// Handles on the same data, one after the other. See the [module](self).
pub struct Handles<T: ?Sized> {
    open: Open<T>,
    places: Vec<Place<T>>,
    calls: AtomicUsize,
}

impl<T: ?Sized + Send + Sync + 'static> Handles<T> {
    /// So many handles at once, each made by `open` when its first call comes. Take one where a second cannot be opened beside the first: that one is dropped before it is opened
    /// anew.
    pub fn new<F, Opening>(handles: usize, open: F) -> Self
    where
        F: Fn() -> Opening + Send + Sync + 'static,
        Opening: Future<Output = Arc<T>> + Send + 'static,
    {
        assert!(handles > 0, "no call could be made");
        let places = (0..handles).map(|_| Arc::default()).collect();
        Self { open: Arc::new(move || open().boxed()), places, calls: AtomicUsize::new(0) }
    }

    /// The handle of the next call.
    async fn next(&self) -> Held<T> {
        let (turn, place) = self.turn();
        // Not while other calls use it: they would lose it half-way.
        if turn % CALLS == CALLS - 1
            && let Ok(mut place) = place.try_write()
        {
            *place = None;
        }
        hold(place.clone(), self.open.clone()).await
    }

    /// Whose turn it is, and how many it had before.
    fn turn(&self) -> (usize, &Place<T>) {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        (call / self.places.len(), &self.places[call % self.places.len()])
    }

    /// What is the same of each handle; true while none is open.
    fn each_is(&self, asked: impl Fn(&T) -> bool) -> bool {
        let at_hand = self.places.iter().find_map(|place| place.try_read().ok()?.clone());
        at_hand.is_none_or(|handle| asked(&handle))
    }
}

/// Whoever opens a handle may be dropped meanwhile: then the next opens it.
async fn hold<T: ?Sized>(place: Place<T>, open: Open<T>) -> Held<T> {
    loop {
        let held = place.clone().read_owned().await;
        if let Ok(held) = OwnedRwLockReadGuard::try_map(held, Option::as_deref) {
            return held;
        }
        let mut place = place.write().await;
        if place.is_none() {
            *place = Some(open().await);
        }
    }
}

impl<T: ?Sized> fmt::Debug for Handles<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handles").field("handles", &self.places.len()).finish_non_exhaustive()
    }
}
