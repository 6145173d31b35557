//! Faults of queues, and the cases that must catch them.

mod broken;
mod handles;
mod misplaced;

use deploycore::conformance::queue::cases;

use crate::{assert_all_pass, assert_caught, assert_pass_elsewhere};
use broken::Broken;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    EnqueueOverwrites,
    EnqueueIsNoTransaction,
    EnqueueRaces,
    EnqueueStopsHalfway,
    DedupSeesOnlyQueuedJobs,
    ClaimTrustsWhatItRead,
    ClaimCountsBeforeItTakes,
    ClaimIsNotIdempotent,
    ClaimIsRecordedLater,
    ClaimForgetsEndedJobs,
    ClaimIgnoresPriority,
    ClaimIgnoresTurns,
    NewJobsGoBehindAll,
    IdleServicesSaveUp,
    LinesAdvanceAsOne,
    NextJobsDoNotWait,
    PrioritiesShareTurns,
    DelayedJobsStandInLine,
    ReplacementsGoToTheEnd,
    VainEnqueuesTakeTurns,
    ReturnedJobsLoseTheirTurn,
    OrderIsForAllThatWaits,
    FairShareByDefault,
    PauseIsForgotten,
    NoEpochGuard,
    NoClaimGuard,
    StateOnlyGuard,
    RepeatIsRefused,
    ReaperKeepsTheEpoch,
    RescueTrustsWhatItRead,
    RescueSparesWhatHeartbeats,
    RescueNeverBacksOff,
    RescueLooksAtTheFirst,
    HeartbeatMovesTheDeadline,
    ReleaseBurnsAnAttempt,
    ReleaseIsUnbounded,
    AttemptsAreUnbounded,
    BatchEndsWithTheFirstRefusal,
    BatchAnswersInOrderOfJobs,
    BatchRepeatIsRefused,
    CancelEndsRunningJobs,
    EndsInTwoSteps,
    NewerCancelsRunningJobs,
    RepeatCancelsWhatCameAfter,
    CursorIsAnInstant,
    // Of these one handle shows nothing.
    LocksItsProcess,
    PausesItsProcess,
    WritesLater,
}

/// Each fault with the cases that must catch it.
const CONTROLS: &[(Fault, &[&str])] = &[
    (
        Fault::EnqueueOverwrites,
        &["enqueue::repeating_adds_nothing_at_any_stage", "enqueue::concurrent_repeats_create_a_job_once"],
    ),
    (Fault::EnqueueIsNoTransaction, &["enqueue::a_conflict_refuses_the_whole_batch"]),
    (Fault::EnqueueRaces, &["enqueue::concurrent_jobs_with_one_dedup_key_add_one"]),
    (Fault::EnqueueStopsHalfway, &["dropped::an_enqueue_adds_all_or_none"]),
    (Fault::ClaimIsRecordedLater, &["dropped::a_claim_leaves_no_lease_that_nobody_knows"]),
    (Fault::DedupSeesOnlyQueuedJobs, &["enqueue::a_dedup_key_is_unique_among_unfinished_jobs"]),
    (
        Fault::ClaimTrustsWhatItRead,
        &["concurrency::claims_at_once_share_no_job", "concurrency::a_busy_queue_keeps_its_invariants"],
    ),
    (Fault::ClaimCountsBeforeItTakes, &["concurrency::claims_at_once_pass_no_limit"]),
    (Fault::ClaimIsNotIdempotent, &["claim::repeating_gives_the_same_jobs", "claim::repeating_gives_no_further_jobs"]),
    (Fault::ClaimForgetsEndedJobs, &["claim::repeating_gives_only_jobs_whose_lease_holds"]),
    (Fault::ClaimIgnoresPriority, &["claim::jobs_come_in_order"]),
    (
        Fault::ClaimIgnoresTurns,
        &[
            "order::a_burst_of_one_service_holds_up_no_other",
            "order::services_that_wait_take_turns",
            "order::the_first_of_a_service_waits_for_two_of_each_other",
            "order::jobs_with_a_key_take_turns",
        ],
    ),
    (Fault::NewJobsGoBehindAll, &["order::a_burst_of_one_service_holds_up_no_other"]),
    (
        Fault::IdleServicesSaveUp,
        &[
            "order::an_idle_service_saves_nothing_up",
            "order::one_job_at_a_time_is_in_order_of_age",
            "order::the_first_of_a_service_waits_for_two_of_each_other",
        ],
    ),
    (
        Fault::LinesAdvanceAsOne,
        &["order::services_that_wait_take_turns", "order::a_service_keeps_the_order_of_its_jobs"],
    ),
    (Fault::NextJobsDoNotWait, &["order::a_job_after_another_waits_its_turn"]),
    (Fault::PrioritiesShareTurns, &["order::each_priority_has_turns_of_its_own"]),
    (Fault::DelayedJobsStandInLine, &["order::an_earliest_start_that_passes_takes_a_turn"]),
    (Fault::ReplacementsGoToTheEnd, &["order::a_job_in_the_place_of_others_has_their_turn"]),
    (Fault::VainEnqueuesTakeTurns, &["order::what_is_not_added_takes_no_turn"]),
    (Fault::ReturnedJobsLoseTheirTurn, &["order::a_job_that_comes_back_keeps_its_turn"]),
    (Fault::OrderIsForAllThatWaits, &["order::another_order_is_for_what_comes_after"]),
    (Fault::FairShareByDefault, &["order::the_oldest_job_goes_first_by_default"]),
    (Fault::PauseIsForgotten, &["claim::a_pause_stops_claims_and_nothing_else"]),
    (
        Fault::NoEpochGuard,
        &["complete::a_forged_lease_is_refused", "heartbeat::a_lease_that_is_not_the_current_one_is_lost"],
    ),
    (
        Fault::NoClaimGuard,
        &["complete::a_forged_lease_is_refused", "heartbeat::a_lease_that_is_not_the_current_one_is_lost"],
    ),
    (
        Fault::StateOnlyGuard,
        &[
            "complete::a_rescued_lease_is_void",
            "complete::a_late_repeat_leaves_the_next_run_alone",
            "concurrency::a_busy_queue_keeps_its_invariants",
        ],
    ),
    (Fault::RepeatIsRefused, &["complete::repeating_changes_nothing", "release::repeating_changes_nothing"]),
    (
        Fault::ReaperKeepsTheEpoch,
        &["claim::the_epoch_grows_with_each_claim", "rescue::the_first_rescue_queues_the_job_at_once"],
    ),
    (
        Fault::RescueTrustsWhatItRead,
        &["rescue::concurrent_reapers_rescue_each_lease_once", "rescue::a_completion_and_a_rescue_do_not_both_win"],
    ),
    (Fault::RescueSparesWhatHeartbeats, &["rescue::a_passed_deadline_fails_the_job_although_it_heartbeats"]),
    (Fault::RescueNeverBacksOff, &["rescue::later_rescues_back_off"]),
    (Fault::RescueLooksAtTheFirst, &["rescue::a_small_rescue_finds_the_one_among_many_that_live"]),
    (Fault::HeartbeatMovesTheDeadline, &["heartbeat::a_heartbeat_moves_no_deadline"]),
    (Fault::ReleaseBurnsAnAttempt, &["release::a_released_job_burns_no_attempt"]),
    (Fault::ReleaseIsUnbounded, &["release::releases_are_bounded"]),
    (
        Fault::AttemptsAreUnbounded,
        &["rescue::a_lost_last_attempt_fails_the_job", "complete::the_last_attempt_ends_the_job"],
    ),
    (Fault::BatchEndsWithTheFirstRefusal, &["complete_batch::a_refused_end_leaves_the_others_alone"]),
    (Fault::BatchAnswersInOrderOfJobs, &["complete_batch::each_attempt_ends_by_its_own_word"]),
    (
        Fault::BatchRepeatIsRefused,
        &["complete_batch::repeating_changes_nothing", "complete_batch::a_lease_twice_in_a_batch_ends_once"],
    ),
    (
        Fault::EndsInTwoSteps,
        &[
            "dropped::an_end_counts_once",
            "dropped::the_ends_of_a_batch_count_once",
            "dropped::a_rescue_takes_each_job_back_once",
        ],
    ),
    (Fault::CancelEndsRunningJobs, &["cancel::a_running_job_is_only_marked"]),
    (Fault::NewerCancelsRunningJobs, &["supersede::what_runs_is_left_alone_until_it_is_queued_again"]),
    (Fault::RepeatCancelsWhatCameAfter, &["supersede::a_repeated_or_deduplicated_job_cancels_nothing"]),
    (Fault::CursorIsAnInstant, &["list::pages_show_each_job_once_newest_first"]),
];

#[tokio::test(start_paused = true)]
async fn without_a_fault_every_case_passes() {
    assert_all_pass(&cases(), || Broken::make(Fault::None)).await;
}

#[tokio::test(start_paused = true)]
async fn each_fault_fails_the_cases_that_are_about_it() {
    assert_caught(&cases(), CONTROLS, Broken::make).await;
}

#[tokio::test(start_paused = true)]
async fn each_fault_passes_what_is_about_something_else() {
    let elsewhere = [
        "enqueue::a_new_job_is_queued_as_it_was_asked_for",
        "complete::a_success_is_kept",
        "upkeep::each_status_is_counted",
    ];
    assert_pass_elsewhere(&cases(), CONTROLS, &elsewhere, Broken::make).await;
}
