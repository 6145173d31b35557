//! Broken goal stores, each of which a named case of the kit must catch.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use deploycore::conformance::goals::cases;
use deploycore::memory::Goals;
use deploycore::model::{Goal, Revision, ServiceName};
use deploycore::port::GoalStateStore;
use deploycore::port::goals::{Changes, Error, Expect, Snapshot, Stored};
use futures::stream::{BoxStream, StreamExt};

/// How a store is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// None: the wrapper itself passes.
    None,
    /// A greater or lower position is taken alike.
    TakesLowerPositions,
    /// Whoever writes last wins.
    IgnoresExpect,
    /// The same position may change its content.
    AllowsEquivocation,
    /// A repeat is a conflict with itself.
    RefusesRepeats,
    /// A repeat is a write of its own.
    CountsRepeats,
    /// A watch begins with the changes after its first poll.
    WatchesFromNow,
    /// A watch tells each change twice.
    WatchRepeats,
    /// A watch that is asked for compacted changes begins with the oldest kept.
    WatchHidesCompaction,
    /// A watch forgets every third change.
    WatchSkips,
    /// A compaction ends every watch, also one that lacks nothing.
    CompactionEndsWatches,
    /// A prefix is taken as part of the name.
    ListContains,
    /// A list is read goal by goal.
    ListIsTorn,
    /// A page of changes may be cut without saying so.
    ChangesLosePages,
    /// The history begins with the oldest.
    HistoryIsReversed,
    /// Only the current goal and a few before it are kept.
    HistoryIsShort,
    /// A compaction is not.
    NeverCompacts,
    /// A revision from elsewhere is answered as if nothing had changed.
    TrustsAnyRevision,
}

/// The memory store with a flaw.
#[derive(Debug)]
struct Broken {
    flaw: Flaw,
    goals: Goals,
    /// Where the flaw needs writes that the memory store would refuse: those, newest last.
    forced: std::sync::Mutex<Vec<Stored>>,
    repeats: AtomicU64,
    compactions: Arc<AtomicU64>,
}

impl Broken {
    fn new(flaw: Flaw) -> Self {
        let (forced, repeats, compactions) = Default::default();
        Self { flaw, goals: Goals::new(), forced, repeats, compactions }
    }

    fn forced(&self, service: &ServiceName) -> Option<Stored> {
        self.forced.lock().unwrap().iter().rev().find(|stored| stored.goal.service == *service).cloned()
    }
}

#[async_trait]
impl GoalStateStore for Broken {
    async fn get(&self, service: &ServiceName) -> Result<Option<Stored>, Error> {
        match self.forced(service) {
            Some(stored) => Ok(Some(stored)),
            None => self.goals.get(service).await,
        }
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, Error> {
        match self.flaw {
            Flaw::ListContains => {
                let mut list = self.goals.list("").await?;
                list.goals.retain(|stored| stored.goal.service.as_str().contains(prefix));
                Ok(list)
            }
            Flaw::ListIsTorn => {
                let Snapshot { revision, goals } = self.goals.list(prefix).await?;
                let mut torn = Vec::new();
                for stored in goals {
                    torn.extend(self.goals.get(&stored.goal.service).await?);
                    for _ in 0..3 {
                        tokio::task::yield_now().await;
                    }
                }
                Ok(Snapshot { revision, goals: torn })
            }
            _ => self.goals.list(prefix).await,
        }
    }

    async fn put(&self, goal: &Goal, expect: Expect) -> Result<Revision, Error> {
        let stored = self.get(&goal.service).await?;
        match self.flaw {
            Flaw::IgnoresExpect => {
                let stands = stored.map_or(Expect::Absent, |stored| Expect::At(stored.revision));
                self.goals.put(goal, stands).await
            }
            Flaw::RefusesRepeats if stored.as_ref().is_some_and(|stored| stored.goal == *goal) => {
                let found = stored.map(|stored| stored.revision);
                Err(Error::Conflict { service: goal.service.clone(), expected: None, found })
            }
            Flaw::CountsRepeats if stored.is_some_and(|stored| stored.goal == *goal) => {
                let repeats = self.repeats.fetch_add(1, Ordering::SeqCst) + 1;
                Ok(Revision(self.goals.list("").await?.revision.0 + repeats))
            }
            Flaw::TakesLowerPositions | Flaw::AllowsEquivocation => match self.goals.put(goal, expect).await {
                Err(Error::Stale { .. }) if self.flaw == Flaw::TakesLowerPositions => self.force(goal).await,
                Err(Error::Equivocation { .. }) if self.flaw == Flaw::AllowsEquivocation => self.force(goal).await,
                outcome => outcome,
            },
            _ => self.goals.put(goal, expect).await,
        }
    }

    async fn history(&self, service: &ServiceName, limit: usize) -> Result<Vec<Stored>, Error> {
        let mut history = self.goals.history(service, limit).await?;
        match self.flaw {
            Flaw::HistoryIsReversed => history.reverse(),
            Flaw::HistoryIsShort => history.truncate(20),
            _ => {}
        }
        Ok(history)
    }

    async fn changes(&self, since: Revision) -> Result<Changes, Error> {
        let outcome = self.goals.changes(since).await;
        match (self.flaw, outcome) {
            (Flaw::NeverCompacts, Err(Error::Compacted { .. })) => {
                let Snapshot { revision, goals } = self.goals.list("").await?;
                Ok(Changes { revision, goals })
            }
            (Flaw::TrustsAnyRevision, Err(Error::Compacted { since, oldest })) if since > oldest => {
                Ok(Changes { revision: since, goals: Vec::new() })
            }
            (Flaw::ChangesLosePages, Ok(page)) => Ok(Changes { revision: self.goals.list("").await?.revision, ..page }),
            (_, outcome) => outcome,
        }
    }

    fn watch(&self, since: Revision) -> BoxStream<'static, Result<Changes, Error>> {
        let goals = self.goals.clone();
        match self.flaw {
            Flaw::WatchesFromNow => futures::stream::once(async move {
                let now = goals.list("").await.unwrap().revision;
                goals.watch(now)
            })
            .flatten()
            .boxed(),
            Flaw::WatchRepeats => goals
                .watch(since)
                .flat_map(|event| {
                    let again = event.as_ref().ok().cloned().map(Ok);
                    futures::stream::iter([event].into_iter().chain(again))
                })
                .boxed(),
            Flaw::WatchSkips => {
                let third = |(number, event)| async move { (number % 3 != 2).then_some(event) };
                goals.watch(since).enumerate().filter_map(third).boxed()
            }
            Flaw::CompactionEndsWatches => {
                let compactions = Arc::clone(&self.compactions);
                let opened_at = compactions.load(Ordering::SeqCst);
                let is_over = move || compactions.load(Ordering::SeqCst) != opened_at;
                goals
                    .watch(since)
                    .map(move |event| if is_over() { Err(Error::Compacted { since, oldest: since }) } else { event })
                    .boxed()
            }
            Flaw::WatchHidesCompaction => futures::stream::once(async move {
                match goals.changes(since).await {
                    Err(Error::Compacted { oldest, .. }) => goals.watch(oldest),
                    _ => goals.watch(since),
                }
            })
            .flatten()
            .boxed(),
            _ => goals.watch(since),
        }
    }

    async fn compact(&self, through: Revision) -> Result<(), Error> {
        self.compactions.fetch_add(1, Ordering::SeqCst);
        self.goals.compact(through).await
    }
}

impl Broken {
    async fn force(&self, goal: &Goal) -> Result<Revision, Error> {
        let revision = Revision(self.goals.list("").await?.revision.0 + 1);
        self.forced.lock().unwrap().push(Stored { revision, goal: goal.clone() });
        Ok(revision)
    }
}

/// The cases that a store fails. One that hangs, because its watch never speaks, fails in virtual time.
async fn failed(flaw: Flaw) -> BTreeSet<&'static str> {
    let mut failed = BTreeSet::new();
    for case in cases() {
        if case.run(Arc::new(Broken::new(flaw))).await.is_err() {
            failed.insert(case.name);
        }
    }
    failed
}

#[tokio::test(start_paused = true)]
async fn the_kit_passes_the_store_without_a_flaw() {
    assert_eq!(failed(Flaw::None).await, BTreeSet::new());
}

macro_rules! caught {
    ($($test:ident: $flaw:ident by $($case:literal),+;)*) => {$(
        #[tokio::test(start_paused = true)]
        async fn $test() {
            let failed = failed(Flaw::$flaw).await;
            for case in [$($case),+] {
                assert!(failed.contains(case), "{case} passes; failed: {failed:?}");
            }
        }
    )*};
}

caught! {
    a_store_that_takes_lower_positions: TakesLowerPositions by
        "writes::a_lower_position_is_stale", "race::positions_only_grow_whatever_is_offered", "writes::only_the_goal_that_is_stored_now_can_be_repeated";
    a_store_that_ignores_what_is_expected: IgnoresExpect by
        "writes::a_create_does_not_replace", "writes::a_write_at_another_revision_is_a_conflict", "race::of_many_creates_one_wins";
    a_store_that_allows_equivocation: AllowsEquivocation by
        "writes::the_same_position_with_other_content_is_an_equivocation", "race::positions_only_grow_whatever_is_offered";
    a_store_that_refuses_repeats: RefusesRepeats by
        "writes::a_repeat_gives_the_same_revision_and_writes_nothing", "writes::a_dropped_write_has_all_of_its_effect_or_none";
    a_store_that_counts_repeats: CountsRepeats by "writes::a_repeat_gives_the_same_revision_and_writes_nothing";
    a_watch_from_now: WatchesFromNow by
        "watches::a_watch_begins_with_what_it_missed", "watches::a_watch_sees_what_is_written_before_its_first_poll";
    a_watch_that_repeats: WatchRepeats by
        "watches::a_watch_repeats_nothing_and_skips_nothing", "race::concurrent_writers_lose_no_generation";
    a_watch_that_skips: WatchSkips by "watches::a_watch_sees_what_is_written_while_it_waits";
    a_watch_that_ends_with_any_compaction: CompactionEndsWatches by
        "watches::a_watch_that_is_up_to_date_survives_a_compaction";
    a_watch_that_hides_a_compaction: WatchHidesCompaction by "watches::a_watch_of_what_is_compacted_says_so";
    a_list_by_any_part_of_the_name: ListContains by "reads::a_list_holds_the_prefix_in_order";
    a_torn_list: ListIsTorn by "reads::a_list_and_the_changes_after_it_miss_nothing";
    changes_that_lose_pages: ChangesLosePages by "changes::changes_come_in_bounded_pages";
    a_reversed_history: HistoryIsReversed by "history::a_history_shows_the_greatest_position_first";
    a_short_history: HistoryIsShort by "history::a_history_keeps_what_is_promised";
    a_store_that_never_compacts: NeverCompacts by "changes::a_compaction_forgets_changes_and_keeps_goals";
    a_store_that_trusts_any_revision: TrustsAnyRevision by "changes::a_revision_that_never_was_is_answered_as_compacted";
}
