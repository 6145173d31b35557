//! Cases for a [`ReplicationLedger`]: each sentence of its contract, repeats after lost replies, and concurrency.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use deploycore::port::ReplicationLedger;
//! /// A ledger that is fresh and empty, and whatever must outlive it, for instance the folder of its files.
//! async fn fresh() -> (Arc<dyn ReplicationLedger>, impl Sized) {
//!     (Arc::new(deploycore::memory::Ledger::default()), ())
//! }
//!
//! deploycore::ledger_conformance!(fresh, start_paused = true);
//! # fn main() {}
//! ```
//!
//! What follows the name goes to `#[tokio::test]`, as for [`conformance::queue`](super::queue).

pub mod copy;
pub mod dropped;
pub mod figures;
pub mod journal;
pub mod model;
pub mod pin;
pub mod priority;
pub mod register;
pub mod tombstones;

mod steps;

use super::Case;
use super::case::list_cases;
use crate::port::ReplicationLedger;

/// All cases, for a runner of one's own; [`ledger_conformance!`](crate::ledger_conformance) makes tests of them.
pub fn cases() -> Vec<Case<dyn ReplicationLedger>> {
    crate::__ledger_cases!((list_cases), ())
}

/// Makes one `#[tokio::test]` of each case for the backends that a function makes. See
/// [`conformance::ledger`](crate::conformance::ledger).
#[macro_export]
macro_rules! ledger_conformance {
    ($make:path $(, $($runtime:tt)*)?) => {
        $crate::__ledger_cases!(($crate::__conformance_tests), ($make, ledger, ($($($runtime)*)?)));
    };
}

/// Hands the list of cases to a macro.
#[doc(hidden)]
#[macro_export]
macro_rules! __ledger_cases {
    (($($then:tt)+), $input:tt) => {
        $($then)+! { $input
            register {
                a_new_artifact_is_pending_everywhere
                repeating_changes_nothing
                another_body_is_a_conflict
                regions_out_of_bounds_are_refused
                a_digest_may_stand_under_two_names
                sizes_are_kept_whole
                the_unregistered_are_those_that_are_missing
                an_unknown_artifact_is_none
                concurrent_repeats_register_once
                pages_show_each_artifact_once_newest_first
                filters_narrow_the_list
            }
            copy {
                a_claimed_copy_is_leased
                copies_come_oldest_first
                a_claim_out_of_bounds_is_refused
                repeating_gives_only_copies_whose_lease_holds
                a_lease_that_ran_out_gives_way
                a_lease_that_ran_out_is_good_until_taken_over
                progress_renews_the_lease
                a_complete_copy_stays_complete
                a_failed_attempt_waits_for_its_delay
                attempts_and_epochs_grow
                a_copy_may_be_given_up
                a_forged_lease_is_refused
                claims_at_once_share_no_copy
            }
            journal {
                the_next_claim_finds_the_upload
                parts_add_up
                a_new_upload_takes_the_place_of_the_old
                a_cleared_upload_is_gone
                a_complete_copy_has_no_upload
                a_lost_lease_changes_nothing
                a_journal_has_bounds
            }
            priority {
                the_most_urgent_come_first_then_the_oldest
                a_claim_may_leave_what_is_less_urgent
                a_copy_is_made_more_urgent_and_never_less
                a_raise_keeps_all_else
                a_reopened_copy_is_as_urgent_and_pending_anew
            }
            figures {
                an_idle_region_has_no_figures
                what_is_pending_and_failed_is_counted
                completed_copies_have_a_latency
                a_reopened_copy_counts_anew
            }
            pin {
                a_pin_wants_every_region
                a_pin_may_do_without_waived_regions_but_not_without_all
                pins_are_kept_by_holder
                an_unknown_artifact_has_no_pins
                a_lost_copy_is_reopened
                a_reopening_of_what_moved_on_does_nothing
                failed_copies_are_reopened_together
                concurrent_reopenings_count_once
                a_pin_is_decided_in_one_step
            }
            tombstones {
                a_collected_artifact_is_not_deployed_any_more
                a_collected_artifact_has_nothing_to_raise
                a_mark_may_be_lifted
                what_is_in_use_is_not_collected
                a_pin_makes_young
                nothing_is_copied_under_a_tombstone
                all_artifacts_of_a_digest_are_collected_together
                bytes_that_are_built_anew_are_kept
                unfinished_collections_are_listed
                bytes_that_no_artifact_has_are_told
                a_pin_and_a_mark_exclude_each_other
                a_registration_and_a_mark_do_not_both_stand
                a_registration_and_a_deletion_do_not_both_begin
            }
            dropped {
                a_registration_is_whole_or_not_there
                a_claim_leaves_no_lease_that_nobody_knows
                an_end_counts_once
            }
            model {
                a_random_run_is_as_in_the_reference
            }
        }
    };
}
