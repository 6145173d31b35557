//! A goal-state store on the shared index, with one fault.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use deploycore::conformance::goals::cases;
use deploycore::model::{Goal, GoalPosition, Revision, ServiceName};
use deploycore::port::GoalStateStore;
use deploycore::port::goals::{Admission, Changes, Error, Expect, HISTORY, Index, MAX_BATCH, Snapshot, Stored, admit};
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;
use tokio::task::yield_now;

use crate::{assert_all_pass, assert_caught, assert_pass_elsewhere};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    ChecksBeforeItWrites,
    CommitsOutOfOrder,
    GoesBack,
    TakesOtherContent,
    WritesRepeatsAgain,
    RefusesRepeats,
    IgnoresWhatIsExpected,
    TakesAnySize,
    WritesTheHistoryLater,
    HistoryIsShort,
    HistoryIsInOrderOfText,
    PagesAreUnbounded,
    AnswersForTheFuture,
    ForgetsCompactions,
    CompactsTheFuture,
    WatchSubscribesLate,
    WatchEndsWithACompaction,
}

/// Each fault with the cases that must catch it.
const CONTROLS: &[(Fault, &[&str])] = &[
    (Fault::ChecksBeforeItWrites, &["race::of_many_creates_one_wins", "race::concurrent_writers_lose_no_generation"]),
    (Fault::CommitsOutOfOrder, &["race::concurrent_writers_lose_no_generation"]),
    (Fault::GoesBack, &["writes::a_lower_position_is_stale", "race::positions_only_grow_whatever_is_offered"]),
    (
        Fault::TakesOtherContent,
        &[
            "writes::the_same_position_with_other_content_is_an_equivocation",
            "race::positions_only_grow_whatever_is_offered",
        ],
    ),
    (
        Fault::WritesRepeatsAgain,
        &[
            "writes::a_repeat_gives_the_same_revision_and_writes_nothing",
            "watches::a_watch_repeats_nothing_and_skips_nothing",
        ],
    ),
    (
        Fault::RefusesRepeats,
        &[
            "writes::a_repeat_gives_the_same_revision_and_writes_nothing",
            "writes::a_dropped_write_has_all_of_its_effect_or_none",
        ],
    ),
    (
        Fault::IgnoresWhatIsExpected,
        &[
            "writes::a_create_does_not_replace",
            "writes::a_write_at_another_revision_is_a_conflict",
            "race::concurrent_writers_lose_no_generation",
        ],
    ),
    (Fault::TakesAnySize, &["writes::a_goal_past_the_bound_is_refused", "writes::a_span_past_the_bound_is_refused"]),
    (Fault::WritesTheHistoryLater, &["writes::a_dropped_write_has_all_of_its_effect_or_none"]),
    (Fault::HistoryIsShort, &["history::a_history_keeps_what_is_promised"]),
    (Fault::HistoryIsInOrderOfText, &["history::a_history_shows_the_greatest_position_first"]),
    (Fault::PagesAreUnbounded, &["changes::changes_come_in_bounded_pages"]),
    (Fault::AnswersForTheFuture, &["changes::a_revision_that_never_was_is_answered_as_compacted"]),
    (
        Fault::ForgetsCompactions,
        &["changes::a_compaction_forgets_changes_and_keeps_goals", "watches::a_watch_of_what_is_compacted_says_so"],
    ),
    (Fault::CompactsTheFuture, &["changes::a_compaction_stops_at_the_newest_change"]),
    (Fault::WatchSubscribesLate, &["watches::a_watch_sees_what_is_written_while_it_waits"]),
    (Fault::WatchEndsWithACompaction, &["watches::a_watch_that_is_up_to_date_survives_a_compaction"]),
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
        "reads::a_goal_is_read_back_as_it_was_written",
        "writes::each_write_has_a_greater_revision",
        "watches::a_watch_begins_with_what_it_missed",
    ];
    assert_pass_elsewhere(&cases(), CONTROLS, &elsewhere, Broken::make).await;
}

type History = BTreeMap<ServiceName, BTreeMap<GoalPosition, Stored>>;

#[derive(Debug)]
struct Broken {
    fault: Fault,
    index: watch::Sender<Index>,
    history: Mutex<History>,
    /// The newest revision that was given out.
    sequence: AtomicU64,
}

impl Broken {
    fn make(fault: Fault) -> Arc<dyn GoalStateStore> {
        let (index, history) = (watch::Sender::new(Index::default()), Mutex::default());
        Arc::new(Self { fault, index, history, sequence: AtomicU64::new(0) })
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, goal: &Goal, expect: Expect) -> Result<Admission, Error> {
        let stored = self.index.borrow().get(&goal.service).cloned();
        let at = |stored: Option<&Stored>| stored.map_or(Expect::Absent, |stored| Expect::At(stored.revision));
        let expect = if self.is(Fault::IgnoresWhatIsExpected) { at(stored.as_ref()) } else { expect };
        match admit(stored.as_ref(), goal, expect) {
            Ok(Admission::Repeat(_)) if self.is(Fault::WritesRepeatsAgain) => Ok(Admission::Write),
            Ok(Admission::Repeat(revision)) if self.is(Fault::RefusesRepeats) => {
                Err(Error::Conflict { service: goal.service.clone(), expected: None, found: Some(revision) })
            }
            Err(Error::Stale { .. }) if self.is(Fault::GoesBack) && at(stored.as_ref()) == expect => {
                Ok(Admission::Write)
            }
            Err(Error::Equivocation { .. }) if self.is(Fault::TakesOtherContent) => Ok(Admission::Write),
            Err(Error::Invalid(_)) if self.is(Fault::TakesAnySize) => Ok(Admission::Write),
            answer => answer,
        }
    }

    fn commit(&self, stored: Stored) {
        self.index.send_modify(|index| index.apply(stored));
    }

    fn remember(&self, stored: Stored) {
        let mut history = self.history();
        let kept = history.entry(stored.goal.service.clone()).or_default();
        kept.insert(stored.goal.position, stored);
        let most = if self.is(Fault::HistoryIsShort) { 10 } else { HISTORY };
        while kept.len() > most {
            kept.pop_first();
        }
    }
}

#[async_trait]
impl GoalStateStore for Broken {
    async fn get(&self, service: &ServiceName) -> Result<Option<Stored>, Error> {
        Ok(self.index.borrow().get(service).cloned())
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, Error> {
        Ok(self.index.borrow().list(prefix))
    }

    async fn put(&self, goal: &Goal, expect: Expect) -> Result<Revision, Error> {
        if let Admission::Repeat(revision) = self.admit(goal, expect)? {
            return Ok(revision);
        }
        let revision = Revision(self.sequence.fetch_add(1, Ordering::SeqCst) + 1);
        let stored = Stored { revision, goal: goal.clone() };
        if self.is(Fault::ChecksBeforeItWrites) {
            yield_now().await;
        }
        if self.is(Fault::CommitsOutOfOrder) {
            // As transactions that take different times: what is written meanwhile is looked at again, the revision is not.
            for _ in 0..revision.0 % 4 {
                yield_now().await;
            }
            if let Admission::Repeat(revision) = self.admit(goal, expect)? {
                return Ok(revision);
            }
        }
        self.commit(stored.clone());
        if self.is(Fault::WritesTheHistoryLater) {
            yield_now().await;
        }
        self.remember(stored);
        Ok(revision)
    }

    async fn history(&self, service: &ServiceName, limit: usize) -> Result<Vec<Stored>, Error> {
        let mut kept: Vec<_> = self.history().get(service).into_iter().flat_map(BTreeMap::values).cloned().collect();
        kept.reverse();
        if self.is(Fault::HistoryIsInOrderOfText) {
            kept.sort_unstable_by_key(|stored| stored.goal.position.to_string());
            kept.reverse();
        }
        kept.truncate(limit);
        Ok(kept)
    }

    async fn changes(&self, since: Revision) -> Result<Changes, Error> {
        let index = self.index.borrow();
        let mut changes = match index.changes(since) {
            Err(Error::Compacted { .. }) if self.is(Fault::AnswersForTheFuture) && since > index.revision() => {
                return Ok(Changes { revision: since, goals: Vec::new() });
            }
            answer => answer?,
        };
        while self.is(Fault::PagesAreUnbounded)
            && changes.goals.len() >= MAX_BATCH
            && changes.revision < index.revision()
        {
            let more = index.changes(changes.revision)?;
            changes.revision = more.revision;
            changes.goals.extend(more.goals);
        }
        Ok(changes)
    }

    fn watch(&self, since: Revision) -> BoxStream<'static, Result<Changes, Error>> {
        let index = self.index.subscribe();
        if !self.is(Fault::WatchSubscribesLate) && !self.is(Fault::WatchEndsWithACompaction) {
            return Index::watch(index, since, "broken");
        }
        let fault = self.fault;
        let steps = stream::unfold(Some((index, since)), move |state| async move {
            let (mut index, since) = state?;
            let begun = index.borrow().compacted();
            loop {
                let changes = index.borrow().changes(since);
                match changes {
                    Err(error) => return Some((Err(error), None)),
                    Ok(changes) if !changes.goals.is_empty() => {
                        let revision = changes.revision;
                        return Some((Ok(changes), Some((index, revision))));
                    }
                    Ok(_) => {}
                }
                if fault == Fault::WatchSubscribesLate {
                    yield_now().await;
                    index.mark_unchanged();
                }
                index.changed().await.ok()?;
                let oldest = index.borrow().compacted();
                if fault == Fault::WatchEndsWithACompaction && oldest > begun {
                    return Some((Err(Error::Compacted { since, oldest }), None));
                }
            }
        });
        steps.boxed()
    }

    async fn compact(&self, through: Revision) -> Result<(), Error> {
        match self.fault {
            Fault::ForgetsCompactions => {}
            Fault::CompactsTheFuture => self.index.send_modify(|index| {
                let (goals, revision) = (index.list("").goals, index.revision());
                *index = Index::restore(revision, through.max(index.compacted()));
                for stored in goals {
                    index.apply(stored);
                }
            }),
            _ => self.index.send_modify(|index| index.compact(through)),
        }
        Ok(())
    }
}
