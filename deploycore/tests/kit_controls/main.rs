//! Negative controls: a backend that is broken in one way fails the case that is about it, and the same backend without the fault passes
//! them all.
#![cfg(feature = "conformance")]

mod goals;
mod ledger;
mod queue;
mod store;

use std::sync::{Arc, Once};

use deploycore::conformance::Case;

/// The names of the cases that a backend fails, out of those that `wanted` chooses.
async fn failures<B: ?Sized + 'static>(
    cases: &[Case<B>],
    wanted: impl Fn(&str) -> bool,
    make: impl Fn() -> Arc<B>,
) -> Vec<&'static str> {
    // A case that fails is the aim here: its message is enough, and a backtrace of each would take most of the time.
    static HOOK: Once = Once::new();
    HOOK.call_once(|| std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))));
    let mut failed = Vec::new();
    for case in cases.iter().filter(|case| wanted(case.name)) {
        if case.run(make()).await.is_err() {
            failed.push(case.name);
        }
    }
    failed
}
