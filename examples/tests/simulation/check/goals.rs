//! Goals: no early deploy, no going back, nothing is lost.

use std::collections::BTreeMap;

use deploycore::model::{Goal, GoalPosition, Origin, PinHolder, ServiceName};
use deploycore::port::GoalStateStore;
use futures::FutureExt;

use super::{Checker, Invariant, Met};
use crate::simulation::fault::Place;

/// What the stores acknowledged.
#[derive(Debug, Default)]
pub struct Model {
    /// By store: each goal that was written.
    written: BTreeMap<(Place, ServiceName), BTreeMap<GoalPosition, Goal>>,
}

impl Checker {
    /// A store acknowledged a goal.
    pub fn goal_written(&self, place: &Place, goal: &Goal) {
        self.effect();
        let key = (place.clone(), goal.service.clone());
        let (newest, known) = {
            let mut state = self.lock();
            let written = state.goals.written.entry(key).or_default();
            let newest = written.keys().next_back().copied();
            (newest, written.insert(goal.position, goal.clone()))
        };
        if let Some(known) = known {
            // The reply was lost, and the call was repeated; nothing else may come under a position that was used.
            let repeats = known == *goal && newest == Some(goal.position);
            self.require(Invariant::NoGoingBack, repeats, || {
                format!("{place} took {} {} again, after {newest:?}", goal.service, goal.position)
            });
        } else {
            let rises = newest.is_none_or(|newest| newest < goal.position);
            self.require(Invariant::NoGoingBack, rises, || {
                format!("{place} took {} {} after {newest:?}", goal.service, goal.position)
            });
            self.trace.event("goals", format_args!("{place} has {} at {}", goal.service, goal.position));
            match place {
                Place::Global => self.new_goal(goal),
                Place::Region(_) => self.mirrored(place, goal),
            }
        }
        self.goals_changed();
    }

    fn new_goal(&self, goal: &Goal) {
        self.trace.met(Met::Revisions);
        if let Origin::Rollback { .. } = goal.origin {
            self.trace.met(Met::Rollbacks);
        }
        let ledger = self.backends.ledger.snapshot();
        let Some(status) = ledger.get(&goal.artifact.name) else {
            return self.violated(Invariant::NoEarlyDeploy, format!("{} is not in the ledger", goal.artifact.name));
        };
        let digest = goal.artifact.digest;
        for (region, copy) in &status.copies {
            let there = self.is_whole_in(region, &digest) || self.is_taken(region, &digest);
            self.require(Invariant::NoEarlyDeploy, there, || {
                format!("{} is a goal and is not in {region}: {copy:?}", goal.artifact.name)
            });
        }
        let pinned = status.pins.contains(&PinHolder::goal(&goal.service));
        self.require(Invariant::NoEarlyDeploy, pinned, || {
            format!("{} is a goal and is not pinned", goal.artifact.name)
        });
    }

    fn mirrored(&self, place: &Place, goal: &Goal) {
        let global = (Place::Global, goal.service.clone());
        let original = self.lock().goals.written.get(&global).and_then(|all| all.get(&goal.position)).cloned();
        self.require(Invariant::NoGoingBack, original.as_ref() == Some(goal), || {
            format!("{place} has {} {}, which the global store never had", goal.service, goal.position)
        });
    }

    /// Each store still has what it acknowledged, and its newest is its current one.
    pub fn goals_changed(&self) {
        let written: Vec<_> = self.lock().goals.written.iter().map(|(key, all)| (key.clone(), all.clone())).collect();
        for ((place, service), all) in written {
            let store = self.goals_at(&place);
            let history = store.history(&service, 100).now_or_never().expect("memory never suspends");
            let history: Vec<_> = history.unwrap_or_default().into_iter().map(|stored| stored.goal).collect();
            let kept = all.values().rev().eq(history.iter());
            self.require(Invariant::NothingIsLost, kept, || {
                format!(
                    "{place} acknowledged {:?} of {service} and has {:?}",
                    positions(all.values()),
                    positions(&history)
                )
            });
            let current = store.get(&service).now_or_never().expect("memory never suspends");
            let current = current.ok().flatten().map(|stored| stored.goal.position);
            let newest = all.keys().next_back().copied();
            self.require(Invariant::NoGoingBack, current >= newest, || {
                format!("{place} shows {current:?} of {service} after {newest:?}")
            });
        }
    }

    /// The newest goal of each service, by the global store.
    pub fn newest_goals(&self) -> Vec<Goal> {
        let snapshot = self.backends.goals.list("").now_or_never().expect("memory never suspends");
        snapshot.map(|snapshot| snapshot.goals.into_iter().map(|stored| stored.goal).collect()).unwrap_or_default()
    }

    /// Whether a digest was ever a goal of a service.
    pub fn was_goal(&self, service: &ServiceName, digest: &deploycore::model::Digest) -> bool {
        let state = self.lock();
        let all = state.goals.written.get(&(Place::Global, service.clone()));
        all.is_some_and(|all| all.values().any(|goal| goal.artifact.digest == *digest))
    }

    fn goals_at(&self, place: &Place) -> &deploycore::memory::Goals {
        match place {
            Place::Global => &self.backends.goals,
            Place::Region(region) => &self.backends.regions[region].goals,
        }
    }
}

fn positions<'a>(goals: impl IntoIterator<Item = &'a Goal>) -> Vec<String> {
    goals.into_iter().map(|goal| goal.position.to_string()).collect()
}
