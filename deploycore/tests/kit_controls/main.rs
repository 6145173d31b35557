//! Negative controls: a backend that is broken in one way fails the case that is about it, and the same backend without the fault passes
//! them all.
#![cfg(feature = "conformance")]

mod goals;
mod ledger;
mod queue;
mod store;

use std::fmt::Debug;
use std::sync::{Arc, Once};

use deploycore::conformance::Case;

async fn assert_all_pass<B: ?Sized + 'static>(cases: &[Case<B>], make: impl Fn() -> Arc<B>) {
    let failed = failures(cases, |_| true, make).await;
    assert!(failed.is_empty(), "{failed:?}");
}

/// Each fault fails all the cases that must catch it.
async fn assert_caught<F: Copy + Debug, B: ?Sized + 'static>(
    cases: &[Case<B>],
    controls: &[(F, &[&str])],
    make: impl Fn(F) -> Arc<B>,
) {
    for (fault, wanted) in controls {
        let failed = failures(cases, |name| wanted.contains(&name), || make(*fault)).await;
        assert_eq!(failed.len(), wanted.len(), "{fault:?}: of {wanted:?} only {failed:?} fail");
    }
}

/// A fault is one fault: most of the contract still holds.
async fn assert_pass_elsewhere<F: Copy + Debug, B: ?Sized + 'static>(
    cases: &[Case<B>],
    controls: &[(F, &[&str])],
    elsewhere: &[&str],
    make: impl Fn(F) -> Arc<B>,
) {
    for (fault, _) in controls {
        let failed = failures(cases, |name| elsewhere.contains(&name), || make(*fault)).await;
        assert!(failed.is_empty(), "{fault:?}: {failed:?}");
    }
}

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
