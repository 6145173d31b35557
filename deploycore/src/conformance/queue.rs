//! Cases for a [`JobQueue`]: each sentence of its contract, repeats after lost replies, and seeded concurrency.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use deploycore::port::JobQueue;
//! /// A queue that is fresh and empty, and whatever must outlive it, for instance the folder of its files.
//! async fn fresh() -> (Arc<dyn JobQueue>, impl Sized) {
//!     (Arc::new(deploycore::memory::Queue::default()), ())
//! }
//!
//! deploycore::queue_conformance!(fresh, start_paused = true);
//! # fn main() {}
//! ```
//!
//! What follows the name goes to `#[tokio::test]`. A backend that follows tokio's clock runs under paused time; one with a clock of
//! its own runs in real time, and no case waits long.

pub mod cancel;
pub mod claim;
pub mod complete;
pub mod complete_batch;
pub mod concurrency;
pub mod dropped;
pub mod enqueue;
pub mod heartbeat;
pub mod limits;
pub mod list;
pub mod model;
pub mod order;
pub mod release;
pub mod rescue;
pub mod supersede;
pub mod upkeep;

mod steps;

use super::Case;
use super::case::list_cases;
use crate::port::JobQueue;

/// All cases, for a runner of one's own; [`queue_conformance!`](crate::queue_conformance) makes tests of them.
pub fn cases() -> Vec<Case<dyn JobQueue>> {
    crate::__queue_cases!((list_cases), ())
}

/// Makes one `#[tokio::test]` of each case for the backends that a function makes. See [`conformance::queue`](crate::conformance::queue).
#[macro_export]
macro_rules! queue_conformance {
    ($make:path $(, $($runtime:tt)*)?) => {
        $crate::__queue_cases!(($crate::__conformance_tests), ($make, queue, ($($($runtime)*)?)));
    };
}

/// Hands the list of cases to a macro.
#[doc(hidden)]
#[macro_export]
macro_rules! __queue_cases {
    (($($then:tt)+), $input:tt) => {
        $($then)+! { $input
            enqueue {
                a_new_job_is_queued_as_it_was_asked_for
                an_earliest_start_in_the_past_is_the_present
                a_batch_is_answered_in_its_order
                a_batch_has_a_bound
                repeating_adds_nothing_at_any_stage
                another_body_under_the_same_id_is_a_conflict
                a_conflict_refuses_the_whole_batch
                an_id_twice_in_a_batch_is_a_repeat_or_a_conflict
                a_dedup_key_is_unique_among_unfinished_jobs
                a_finished_job_frees_its_dedup_key
                a_dedup_key_twice_in_a_batch_adds_the_first
                a_known_id_is_looked_at_before_the_dedup_key
                a_job_past_the_bounds_is_refused
                concurrent_repeats_create_a_job_once
                concurrent_jobs_with_one_dedup_key_add_one
            }
            claim {
                an_empty_queue_gives_no_job
                a_claimed_job_runs_under_its_lease
                a_running_job_is_not_claimable
                jobs_come_in_order
                a_claim_takes_at_most_its_limit
                a_limit_out_of_bounds_is_refused
                an_earliest_start_is_kept
                repeating_gives_the_same_jobs
                repeating_gives_no_further_jobs
                repeating_gives_only_jobs_whose_lease_holds
                concurrent_repeats_share_their_jobs
                a_pause_stops_claims_and_nothing_else
                the_epoch_grows_with_each_claim
                a_job_that_comes_back_keeps_its_place
            }
            order {
                the_oldest_job_goes_first_by_default
                a_burst_of_one_service_holds_up_no_other
                services_that_wait_take_turns
                the_first_of_a_service_waits_for_two_of_each_other
                an_idle_service_saves_nothing_up
                a_service_keeps_the_order_of_its_jobs
                one_job_at_a_time_is_in_order_of_age
                a_job_that_comes_back_keeps_its_turn
                a_job_after_another_waits_its_turn
                an_earliest_start_that_passes_takes_a_turn
                what_is_not_added_takes_no_turn
                a_job_in_the_place_of_others_has_their_turn
                each_priority_has_turns_of_its_own
                jobs_with_a_key_take_turns
                another_order_is_for_what_comes_after
            }
            limits {
                one_job_of_a_key_runs_by_default
                a_full_key_does_not_hide_the_jobs_behind_it
                a_set_limit_is_kept
                lowering_a_limit_ends_no_running_job
                each_end_of_an_attempt_makes_room
                a_retry_waits_for_room
            }
            heartbeat {
                a_heartbeat_moves_no_deadline
                the_answers_stand_in_order
                a_batch_has_a_bound
                a_heartbeat_tells_of_a_requested_cancel
                a_lease_that_is_not_the_current_one_is_lost
                past_the_deadline_no_time_is_left
                a_heartbeat_keeps_a_lease_from_being_lost
            }
            complete {
                a_success_is_kept
                a_failure_for_good_ends_the_job
                a_failure_to_retry_queues_the_job_again
                the_last_attempt_ends_the_job
                a_retry_may_succeed
                repeating_changes_nothing
                a_late_repeat_leaves_the_next_run_alone
                a_forged_lease_is_refused
                a_lease_from_nowhere_is_refused
                a_rescued_lease_is_void
                a_lease_that_was_given_back_is_void
                a_cancelled_build_ends_the_job
                cancelled_is_refused_where_nobody_asked
                a_requested_cancel_stops_only_further_attempts
                a_success_after_the_deadline_counts_until_a_rescue
                long_messages_and_delays_are_cut
            }
            complete_batch {
                each_attempt_ends_by_its_own_word
                a_refused_end_leaves_the_others_alone
                repeating_changes_nothing
                a_lease_twice_in_a_batch_ends_once
                a_batch_has_a_bound
                batches_at_once_end_each_attempt_once
            }
            release {
                a_released_job_burns_no_attempt
                releases_and_attempts_are_counted_apart
                releases_are_bounded
                repeating_changes_nothing
                a_requested_cancel_takes_effect
                long_reasons_and_delays_are_cut
            }
            cancel {
                a_queued_job_is_cancelled_at_once
                a_waiting_retry_is_cancelled_at_once
                a_running_job_is_only_marked
                repeating_changes_nothing
                a_finished_job_stays_as_it_is
                an_unknown_job_is_not_found
            }
            rescue {
                the_first_rescue_queues_the_job_at_once
                a_live_lease_is_left_alone
                later_rescues_back_off
                a_lost_last_attempt_fails_the_job
                a_passed_deadline_fails_the_job_although_it_heartbeats
                a_deadline_outranks_a_lost_lease
                each_attempt_has_the_whole_time
                a_requested_cancel_takes_effect
                a_rescue_takes_at_most_its_limit
                a_small_rescue_finds_the_one_among_many_that_live
                a_limit_out_of_bounds_is_refused
                concurrent_reapers_rescue_each_lease_once
                a_completion_and_a_rescue_do_not_both_win
            }
            supersede {
                a_newer_job_cancels_what_is_queued_of_its_service
                what_runs_is_left_alone_until_it_is_queued_again
                all_else_stays_as_it_is
                a_repeated_or_deduplicated_job_cancels_nothing
                in_a_batch_each_counts_after_those_before_it
            }
            list {
                an_empty_queue_has_one_empty_page
                pages_show_each_job_once_newest_first
                a_walk_is_stable_while_the_queue_changes
                filters_narrow_the_list
                a_page_out_of_bounds_is_refused
                an_unknown_job_is_none
            }
            upkeep {
                each_status_is_counted
                the_age_is_of_the_longest_eligible_job
                a_prune_deletes_finished_jobs_with_their_attempts
                a_prune_keeps_young_jobs
                a_prune_takes_first_what_finished_first
                a_prune_out_of_bounds_is_refused
                a_pruned_id_is_free_again
            }
            dropped {
                an_enqueue_adds_all_or_none
                a_claim_leaves_no_lease_that_nobody_knows
                an_end_counts_once
                the_ends_of_a_batch_count_once
                a_rescue_takes_each_job_back_once
            }
            concurrency {
                claims_at_once_share_no_job
                claims_at_once_pass_no_limit
                a_busy_queue_keeps_its_invariants
            }
            model {
                a_random_run_is_as_in_the_reference
            }
        }
    };
}
