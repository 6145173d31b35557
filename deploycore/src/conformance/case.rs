//! One named check of a backend, and the macros that turn a list of them into tests.

use std::any::Any;
use std::fmt;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

/// How long a case may take before it counts as failed.
pub const CASE_LIMIT: Duration = Duration::from_mins(2);

/// One sentence of a port's contract as a check. It wants a backend that is fresh and its own.
pub struct Case<B: ?Sized + 'static> {
    /// Module and function, for instance `claim::an_empty_queue_gives_no_job`.
    pub name: &'static str,
    check: fn(Arc<B>) -> BoxFuture<'static, ()>,
}

impl<B: ?Sized + 'static> Case<B> {
    /// A case that panics when the backend breaks the contract.
    pub const fn new(name: &'static str, check: fn(Arc<B>) -> BoxFuture<'static, ()>) -> Self {
        Self { name, check }
    }

    /// Runs it and gives the message of the panic, or says that it did not end within [`CASE_LIMIT`].
    pub async fn run(&self, backend: Arc<B>) -> Result<(), String> {
        let check = AssertUnwindSafe((self.check)(backend)).catch_unwind();
        match tokio::time::timeout(CASE_LIMIT, check).await {
            Ok(outcome) => outcome.map_err(|panic| message(panic.as_ref())),
            Err(_) => Err(format!("it did not end within {CASE_LIMIT:?}")),
        }
    }
}

impl<B: ?Sized + 'static> fmt::Debug for Case<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a message").to_owned()
}

/// No call of a backend wants more polls: where calls are dropped after one poll, after two and so on, all come to their end before.
pub(crate) const MOST_POLLS: usize = 1_000;
/// For so many moments a server may hold what a caller that has gone left locked.
pub(crate) const PATIENCE: usize = 500;

/// Polls a call so many times at most, then drops it. `None` when it was dropped.
pub(crate) async fn cut<T>(polls: usize, call: impl Future<Output = T>) -> Option<T> {
    let (mut call, mut left) = (pin!(call), polls);
    poll_fn(|context| {
        left -= 1;
        match call.as_mut().poll(context) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Makes the list of [`Case`]s out of a list of names. Called in the module that holds the cases' modules.
macro_rules! list_cases {
    (() $($module:ident { $($case:ident)* })*) => {
        vec![$($(
            $crate::conformance::Case::new(
                concat!(stringify!($module), "::", stringify!($case)),
                |backend| Box::pin($module::$case(backend)),
            ),
        )*)*]
    };
}
pub(crate) use list_cases;

/// Makes one `#[tokio::test]` of each name of a list.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    (($make:path, $kit:ident, $runtime:tt) $($module:ident { $($case:ident)* })*) => {
        #[allow(unused_imports, clippy::wildcard_imports)]
        mod $kit {
            use super::*;
            $(mod $module {
                use super::*;
                $(
                    #[tokio::test $runtime]
                    async fn $case() {
                        let (backend, _kept) = $make().await;
                        let check = $crate::conformance::$kit::$module::$case(backend);
                        let limit = $crate::conformance::CASE_LIMIT;
                        tokio::time::timeout(limit, check).await.expect("the case ends in time");
                    }
                )*
            })*
        }
    };
}
