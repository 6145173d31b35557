//! The ports with mishaps in front of them: each call goes over a [`Link`](super::fault::Link), and each effect is checked.

pub mod gate;
pub mod goals;
pub mod ledger;
pub mod queue;
pub mod region;
pub mod store;

use std::sync::Arc;

use super::fault::Link;

/// A backend at the far end of a link.
#[derive(Debug)]
pub struct Far<T: ?Sized> {
    inner: Arc<T>,
    link: Link,
}

impl<T: ?Sized> Far<T> {
    /// `inner`, seen over `link`.
    pub fn new(inner: Arc<T>, link: Link) -> Arc<Self> {
        Arc::new(Self { inner, link })
    }
}
