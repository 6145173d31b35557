//! Cases for [`GoalStateStore`].
//!
//! The function makes a fresh, empty store and whatever must live as long as it (a folder, a server; `()` for nothing). The cases wait
//! for changes with time limits: a store that does I/O runs in real time.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use deploycore::memory::Goals;
//! async fn fresh() -> (Arc<Goals>, ()) {
//!     (Arc::new(Goals::new()), ())
//! }
//!
//! deploycore::goals_conformance!(fresh);
//! # fn main() {}
//! ```

pub mod changes;
pub mod history;
pub mod race;
pub mod reads;
pub mod watches;
pub mod writes;

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt};

use crate::model::{
    ArtifactName, ArtifactRef, Digest, Generation, Goal, GoalEpoch, GoalPosition, Origin, Revision, RunSpec, Selector,
    ServiceName, Timestamp,
};
use crate::port::goals::{Changes, Error, Expect, GoalStateStore, Snapshot, Stored};

use super::Case;
use super::case::list_cases;

/// A store under test.
pub type Store = Arc<dyn GoalStateStore>;

/// Every case of [`GoalStateStore`], for a runner of one's own.
pub fn cases() -> Vec<Case<dyn GoalStateStore>> {
    crate::__goals_cases!((list_cases), ())
}

/// Makes one `#[tokio::test]` of each case for the stores that a function makes. See [`conformance::goals`](crate::conformance::goals).
#[macro_export]
macro_rules! goals_conformance {
    ($make:path $(, $($runtime:tt)*)?) => {
        $crate::__goals_cases!(($crate::__conformance_tests), ($make, goals, ($($($runtime)*)?)));
    };
}

/// Hands the list of cases to a macro.
#[doc(hidden)]
#[macro_export]
macro_rules! __goals_cases {
    (($($then:tt)+), $input:tt) => {
        $($then)+! { $input
            reads {
                an_unknown_service_has_no_goal
                a_goal_is_read_back_as_it_was_written
                a_list_holds_the_prefix_in_order
                a_list_and_the_changes_after_it_miss_nothing
            }
            writes {
                each_write_has_a_greater_revision
                a_create_does_not_replace
                a_write_at_another_revision_is_a_conflict
                a_repeat_gives_the_same_revision_and_writes_nothing
                only_the_goal_that_is_stored_now_can_be_repeated
                a_lower_position_is_stale
                an_epoch_outranks_a_generation
                the_same_position_with_other_content_is_an_equivocation
                a_lost_race_is_a_conflict
                a_refused_write_changes_nothing
                services_do_not_meet
                a_goal_past_the_bound_is_refused
                a_span_past_the_bound_is_refused
                a_dropped_write_has_all_of_its_effect_or_none
            }
            history {
                a_history_shows_the_greatest_position_first
                a_history_keeps_what_is_promised
            }
            changes {
                changes_come_after_their_revision
                changes_come_in_bounded_pages
                a_revision_that_never_was_is_answered_as_compacted
                a_compaction_forgets_changes_and_keeps_goals
                a_compaction_stops_at_the_newest_change
            }
            watches {
                a_watch_begins_with_what_it_missed
                a_watch_sees_what_is_written_before_its_first_poll
                a_watch_sees_what_is_written_while_it_waits
                a_watch_repeats_nothing_and_skips_nothing
                a_watch_resumes_where_another_ended
                a_watch_of_what_is_compacted_says_so
                a_watch_that_is_up_to_date_survives_a_compaction
            }
            race {
                of_many_creates_one_wins
                concurrent_writers_lose_no_generation
                positions_only_grow_whatever_is_offered
            }
        }
    };
}

fn service(name: &str) -> ServiceName {
    name.parse().expect("the kit's names are valid")
}

/// A goal in epoch 1.
fn goal(name: &str, generation: u64) -> Goal {
    goal_in(name, 1, generation)
}

fn goal_in(name: &str, epoch: u64, generation: u64) -> Goal {
    let position = GoalPosition { epoch: GoalEpoch(epoch), generation: Generation(generation) };
    let artifact = ArtifactName::new(format!("{name}-{epoch}-{generation}")).expect("the kit's names are valid");
    Goal {
        service: service(name),
        position,
        artifact: ArtifactRef { digest: Digest::of(artifact.as_str().as_bytes()), name: artifact, size: generation },
        run: RunSpec::default(),
        selector: Selector::all(),
        origin: Origin::Deploy,
        created_at: Timestamp::UNIX_EPOCH,
        waivers: Vec::new(),
    }
}

/// The same position with other content.
fn other(mut goal: Goal) -> Goal {
    goal.run.args.push("--other".to_owned());
    goal
}

/// Writes a goal over whatever is there.
async fn write(store: &Store, goal: &Goal) -> Stored {
    let found = store.get(&goal.service).await.expect("get");
    let expect = found.map_or(Expect::Absent, |stored| Expect::At(stored.revision));
    let revision = store.put(goal, expect).await.expect("a greater position at the stored revision is written");
    Stored { revision, goal: goal.clone() }
}

/// What a reader can see of a store; a refused call leaves it as it was.
async fn seen(store: &Store, services: &[&str]) -> (Snapshot, Vec<Vec<Stored>>) {
    let mut histories = Vec::new();
    for name in services {
        histories.push(store.history(&service(name), usize::MAX).await.expect("history"));
    }
    (store.list("").await.expect("list"), histories)
}

/// The next event of a watch. The time limit only turns a watch that never speaks into a failure.
async fn next(watch: &mut BoxStream<'static, Result<Changes, Error>>) -> Result<Changes, Error> {
    let event = tokio::time::timeout(Duration::from_secs(30), watch.next()).await;
    event.expect("the watch tells of a change").expect("the watch has not ended")
}
