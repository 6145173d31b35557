//! Many at once, and the reference beside the store. A failure names its seed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::join_all;

use super::{Changes, Error, Expect, Revision, Store, goal, goal_in, next, other, service};
use crate::model::ServiceName;
use crate::port::goals::{Admission, Stored, admit};

/// Creates of one service with different contents.
pub async fn of_many_creates_one_wins(store: Store) {
    let goals: Vec<_> = (0..16)
        .map(|number| {
            let mut goal = goal("web", 1);
            goal.artifact.size = number;
            goal
        })
        .collect();
    let outcomes = join_all(goals.iter().map(|goal| store.put(goal, Expect::Absent))).await;
    let won: Vec<_> =
        goals.iter().zip(&outcomes).filter_map(|(goal, outcome)| Some((goal, outcome.as_ref().ok()?))).collect();
    let [(winner, revision)] = won[..] else { panic!("not one winner: {outcomes:?}") };
    let stored = store.get(&service("web")).await.unwrap().unwrap();
    assert_eq!((&stored.goal, &stored.revision), (winner, revision));
    for refused in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert!(matches!(refused, Error::Conflict { .. }), "{refused:?}");
    }
    assert_eq!(store.history(&service("web"), 10).await.unwrap(), [stored]);
}

const WRITERS: u64 = 6;
const WRITES: u64 = 12;

/// Writers that read, add one and compare-and-put, over few services, with a watcher and a poller: no write is lost, and both see
/// each service's position strictly grow up to the last.
pub async fn concurrent_writers_lose_no_generation(store: Store) {
    let names = ["a", "b", "c"];
    for seed in 0..4_u64 {
        let start = store.list("").await.unwrap().revision;
        let begun = generations(&store, &names).await;
        let done = AtomicBool::new(false);
        let writers = join_all((0..WRITERS).map(|writer| {
            let (store, mut random) = (store.clone(), fastrand::Rng::with_seed(seed * 1_000 + writer));
            async move {
                let mut revisions = Vec::new();
                for _ in 0..WRITES {
                    let name = names[random.usize(..names.len())];
                    revisions.push(write_next(&store, name, writer, &mut random).await);
                }
                revisions
            }
        }));
        let writers = async {
            let revisions = writers.await;
            done.store(true, Ordering::SeqCst);
            revisions
        };
        let total = begun.values().sum::<u64>() + WRITERS * WRITES;
        let watched = async {
            let (mut watch, mut followed) = (store.watch(start), Followed::new(start, &begun));
            while followed.total() < total {
                followed.take(seed, next(&mut watch).await.unwrap());
            }
            followed
        };
        let polled = async {
            let (mut followed, mut last) = (Followed::new(start, &begun), false);
            while !last {
                last = done.load(Ordering::SeqCst);
                followed.take(seed, store.changes(followed.revision).await.unwrap());
                tokio::task::yield_now().await;
            }
            followed
        };
        let (revisions, watched, polled) = futures::join!(writers, watched, polled);
        let mut revisions: Vec<_> = revisions.into_iter().flatten().collect();
        revisions.sort_unstable();
        revisions.dedup();
        assert_eq!(revisions.len() as u64, WRITERS * WRITES, "seed {seed}: two writes have one revision");
        let ended = generations(&store, &names).await;
        assert_eq!(ended.values().sum::<u64>(), total, "seed {seed}: a write was lost");
        assert_eq!((&watched.newest, &polled.newest), (&ended, &ended), "seed {seed}");
        for (service, generation) in ended {
            let kept = store.history(&service, 100).await.unwrap();
            let wanted: Vec<_> = (1..=generation).rev().take(100).collect();
            let generations: Vec<_> = kept.iter().map(|stored| stored.goal.position.generation.0).collect();
            assert_eq!(generations, wanted, "seed {seed}: the history of {service}");
        }
    }
}

/// Random offers, valid and not, against the rule: the same outcome each time, and positions that never fall.
pub async fn positions_only_grow_whatever_is_offered(store: Store) {
    let mut newest = store.list("").await.unwrap().revision;
    let mut model: BTreeMap<ServiceName, Stored> = BTreeMap::new();
    let mut random = fastrand::Rng::with_seed(7);
    for step in 0..300 {
        let mut offered = goal_in(["a", "b"][random.usize(..2)], random.u64(1..4), random.u64(0..12));
        if random.u8(..4) == 0 {
            offered = other(offered);
        }
        let before = model.get(&offered.service);
        let expect = match random.u8(..4) {
            0 => Expect::Absent,
            1 => Expect::At(Revision(random.u64(..=newest.0 + 1))),
            _ => before.map_or(Expect::Absent, |stored| Expect::At(stored.revision)),
        };
        let wanted = admit(before, &offered, expect);
        let outcome = store.put(&offered, expect).await;
        match (&wanted, &outcome) {
            (Ok(Admission::Repeat(revision)), Ok(given)) => assert_eq!(given, revision, "step {step}"),
            (Ok(Admission::Write), Ok(given)) => {
                assert!(*given > newest, "step {step}: {given} after {newest}");
                assert!(before.is_none_or(|before| before.goal.position < offered.position), "step {step}");
                newest = *given;
                model.insert(offered.service.clone(), Stored { revision: newest, goal: offered.clone() });
            }
            (Err(wanted), Err(given)) => assert_eq!(format!("{given:?}"), format!("{wanted:?}"), "step {step}"),
            _ => panic!("step {step}: {outcome:?} instead of {wanted:?} for {offered:?} with {expect:?}"),
        }
        let stored = store.get(&offered.service).await.unwrap();
        assert_eq!(stored.as_ref(), model.get(&offered.service), "step {step}");
    }
    let list = store.list("").await.unwrap();
    assert_eq!((list.revision, list.goals), (newest, model.into_values().collect()));
}

/// Compare-and-put until it succeeds; only a lost race is met on the way.
async fn write_next(store: &Store, name: &str, writer: u64, random: &mut fastrand::Rng) -> Revision {
    // Each lost race is another's write.
    for _ in 0..=WRITERS * WRITES {
        let stored = store.get(&service(name)).await.unwrap();
        for _ in 0..random.u8(..4) {
            tokio::task::yield_now().await;
        }
        let generation = stored.as_ref().map_or(0, |stored| stored.goal.position.generation.0) + 1;
        let mut offered = goal(name, generation);
        offered.artifact.size = writer;
        let expect = stored.map_or(Expect::Absent, |stored| Expect::At(stored.revision));
        match store.put(&offered, expect).await {
            Ok(revision) => return revision,
            Err(Error::Conflict { .. } | Error::Stale { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    panic!("more races for {name} were lost than there are writes");
}

async fn generations(store: &Store, names: &[&str]) -> BTreeMap<ServiceName, u64> {
    let mut found = BTreeMap::new();
    for name in names {
        if let Some(stored) = store.get(&service(name)).await.unwrap() {
            found.insert(stored.goal.service, stored.goal.position.generation.0);
        }
    }
    found
}

/// What one who follows changes knows.
struct Followed {
    revision: Revision,
    newest: BTreeMap<ServiceName, u64>,
}

impl Followed {
    fn new(revision: Revision, begun: &BTreeMap<ServiceName, u64>) -> Self {
        Self { revision, newest: begun.clone() }
    }

    fn take(&mut self, seed: u64, changes: Changes) {
        assert!(changes.revision >= self.revision, "seed {seed}: the revision fell");
        for stored in changes.goals {
            assert!(stored.revision > self.revision, "seed {seed}: {} was told already", stored.revision);
            let generation = stored.goal.position.generation.0;
            let before = self.newest.insert(stored.goal.service.clone(), generation);
            let grew = before.is_none_or(|before| before < generation);
            assert!(grew, "seed {seed}: {} went from {before:?} to {generation}", stored.goal.service);
        }
        self.revision = changes.revision;
    }

    fn total(&self) -> u64 {
        self.newest.values().sum()
    }
}
