//! Faults that one handle does not show, and the cases that catch them over several.

use std::sync::Arc;

use deploycore::conformance::handles::Handles;
use deploycore::conformance::queue::cases;
use deploycore::port::JobQueue;

use super::{Broken, Fault};
use crate::failures;

/// Each fault with how many handles show it, and the cases that must catch it.
const CONTROLS: &[(Fault, usize, &[&str])] = &[
    (
        Fault::LocksItsProcess,
        3,
        &[
            "enqueue::concurrent_jobs_with_one_dedup_key_add_one",
            "concurrency::claims_at_once_share_no_job",
            "concurrency::a_busy_queue_keeps_its_invariants",
        ],
    ),
    (Fault::PausesItsProcess, 3, &["claim::a_pause_stops_claims_and_nothing_else"]),
    // The last answer of a handle is lost with it.
    (
        Fault::WritesLater,
        1,
        &[
            "claim::a_pause_stops_claims_and_nothing_else",
            "concurrency::claims_at_once_share_no_job",
            "model::a_random_run_is_as_in_the_reference",
        ],
    ),
];

#[tokio::test(start_paused = true)]
async fn without_a_fault_every_case_passes_over_any_number_of_handles() {
    for handles in [1, 3] {
        let failed = failures_over(handles, Fault::None, |_| true).await;
        assert!(failed.is_empty(), "{failed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn several_handles_show_what_one_does_not() {
    for (fault, handles, wanted) in CONTROLS {
        let alone = failures(&cases(), |_| true, || Broken::make(*fault)).await;
        assert!(alone.is_empty(), "{fault:?}: one handle shows {alone:?}");
        let failed = failures_over(*handles, *fault, |name| wanted.contains(&name)).await;
        assert_eq!(failed.len(), wanted.len(), "{fault:?}: of {wanted:?} only {failed:?} fail");
    }
}

/// Runs the chosen cases over several handles on one queue each.
async fn failures_over(handles: usize, fault: Fault, wanted: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut failed = Vec::new();
    for case in cases().iter().filter(|case| wanted(case.name)) {
        let first = Broken::new(fault);
        let open = move || {
            let another: Arc<dyn JobQueue> = Arc::new(first.another());
            async move { another }
        };
        let queue: Arc<dyn JobQueue> = Arc::new(Handles::new(handles, open).await);
        failed.extend(failures(std::slice::from_ref(case), |_| true, || Arc::clone(&queue)).await);
    }
    failed
}
