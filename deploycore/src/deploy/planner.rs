//! The decisions of deployer and mirror, as pure functions: state in, plan out.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::Error;
use crate::model::{
    ArtifactName, ArtifactRef, Generation, Goal, GoalEpoch, GoalPosition, Origin, RegionName, RunSpec, Selector,
    ServiceName, Timestamp, Waiver,
};
use crate::port::goals::{Expect, Stored};

/// What a goal says apart from its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) service: ServiceName,
    pub(super) artifact: ArtifactRef,
    pub(super) run: RunSpec,
    pub(super) selector: Selector,
}

impl Content {
    pub(super) fn of(goal: &Goal) -> Self {
        let Goal { service, artifact, run, selector, .. } = goal.clone();
        Self { service, artifact, run, selector }
    }
}

/// A conditional write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) goal: Goal,
    pub(super) expect: Expect,
}

/// The next goal of a service: one generation after the stored one, in its epoch or in `epoch` if that is greater.
pub(super) fn next_goal(
    current: Option<&Stored>,
    content: Content,
    origin: Origin,
    epoch: GoalEpoch,
    waivers: &[Waiver],
    now: Timestamp,
) -> Write {
    let stored = current.map_or(GoalPosition::default(), |stored| stored.goal.position);
    let position =
        GoalPosition { epoch: stored.epoch.max(epoch), generation: Generation(stored.generation.0.saturating_add(1)) };
    let Content { service, artifact, run, selector } = content;
    let goal = Goal { service, position, artifact, run, selector, origin, created_at: now, waivers: waivers.to_vec() };
    Write { goal, expect: current.map_or(Expect::Absent, |stored| Expect::At(stored.revision)) }
}

/// The deploy whose content a goal has: itself, or what it restores.
pub(super) fn root(goal: &Goal) -> GoalPosition {
    match goal.origin {
        Origin::Rollback { restores } => restores,
        Origin::Deploy => goal.position,
    }
}

/// What a rollback restores: content and the deploy that it comes from. `history` stands greatest position first, the current goal included.
///
/// Without a name it is what ran before the current content was deployed, however often that was deployed in a row. So a second rollback
/// goes further back, and never back to what the first one left.
pub(super) fn rollback_target<'a>(
    service: &ServiceName,
    history: &'a [Stored],
    wanted: Option<Generation>,
) -> Result<(&'a Goal, GoalPosition), Error> {
    let (Some(newest), Some(oldest)) = (history.first(), history.last()) else {
        return Err(Error::NeverDeployed { service: service.clone() });
    };
    let current = root(&newest.goal);
    let mut goals = history.iter().map(|stored| &stored.goal);
    let found = match wanted {
        None => before_current(history, &newest.goal),
        Some(wanted) => goals.find(|goal| goal.position.generation == wanted),
    };
    match (found, wanted) {
        (Some(goal), _) => Ok((goal, root(goal))),
        (None, None) => Err(Error::NothingToRollBackTo { service: service.clone(), current }),
        (None, Some(wanted)) => Err(Error::UnknownGeneration {
            service: service.clone(),
            wanted,
            oldest: oldest.goal.position,
            newest: newest.goal.position,
        }),
    }
}

/// The goal that ran before the current content came. One of the same content in between is a repeated deploy: what ran before that is
/// found from the deploy that it stands for, so that a repeated deploy of what a rollback restored leads not back to what it left.
fn before_current<'a>(history: &'a [Stored], current: &Goal) -> Option<&'a Goal> {
    let (content, mut came_at) = (Content::of(current), root(current));
    for goal in history.iter().map(|stored| &stored.goal) {
        if goal.position >= came_at {
            continue;
        }
        if Content::of(goal) != content {
            return Some(goal);
        }
        came_at = root(goal);
    }
    None
}

/// Which artifacts must be pinned: those that a goal in the history names, as a rollback to any of them must find it. With the regions that
/// such a goal was written without.
pub(super) fn needed_pins(history: &[Stored]) -> BTreeMap<ArtifactName, BTreeSet<RegionName>> {
    let mut needed: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for Stored { goal, .. } in history {
        needed.entry(goal.artifact.name.clone()).or_default().extend(goal.waived());
    }
    needed
}

/// What the mirror does with a goal of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copy {
    /// The target has it.
    Same,
    /// The target is behind: write it.
    Write(Expect),
    /// The target is ahead: the source is older, for instance restored from a backup. The target stays.
    Stale(GoalPosition),
    /// The target has the same position with other content. The target stays and someone must look.
    Equivocation,
}

/// Compares a goal of the source with what the target has for that service.
pub(super) fn copy_of(goal: &Goal, target: Option<&Stored>) -> Copy {
    let Some(target) = target else {
        return Copy::Write(Expect::Absent);
    };
    match goal.position.cmp(&target.goal.position) {
        Ordering::Greater => Copy::Write(Expect::At(target.revision)),
        Ordering::Less => Copy::Stale(target.goal.position),
        Ordering::Equal if *goal == target.goal => Copy::Same,
        Ordering::Equal => Copy::Equivocation,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Digest, Revision};
    use proptest::prelude::*;

    fn content(artifact: u8) -> Content {
        let service = ServiceName::new("web").unwrap();
        let name = ArtifactName::new(format!("web-{artifact}")).unwrap();
        let artifact = ArtifactRef { name, digest: Digest::of(&[artifact]), size: 1 };
        Content { service, artifact, run: RunSpec::default(), selector: Selector::all() }
    }

    fn artifact_of(goal: &Goal) -> u8 {
        goal.artifact.name.as_str()[4..].parse().unwrap()
    }

    fn deploy(history: &mut Vec<Stored>, artifact: u8) {
        let write =
            next_goal(history.first(), content(artifact), Origin::Deploy, GoalEpoch(0), &[], Timestamp::UNIX_EPOCH);
        push(history, write);
    }

    fn roll_back(history: &mut Vec<Stored>, wanted: Option<u64>) -> Result<u8, Error> {
        let service = ServiceName::new("web").unwrap();
        let (goal, restores) = rollback_target(&service, history, wanted.map(Generation))?;
        let (content, origin) = (Content::of(goal), Origin::Rollback { restores });
        let write = next_goal(history.first(), content, origin, GoalEpoch(0), &[], Timestamp::UNIX_EPOCH);
        push(history, write);
        Ok(artifact_of(&history[0].goal))
    }

    fn push(history: &mut Vec<Stored>, write: Write) {
        let expected = history.first().map_or(Expect::Absent, |stored| Expect::At(stored.revision));
        assert_eq!(write.expect, expected);
        let revision = Revision(history.len() as u64 + 1);
        history.insert(0, Stored { revision, goal: write.goal });
    }

    #[test]
    fn a_second_rollback_goes_further_back() {
        let mut history = Vec::new();
        (1..=3).for_each(|artifact| deploy(&mut history, artifact));
        assert_eq!(roll_back(&mut history, None).unwrap(), 2);
        assert_eq!(roll_back(&mut history, None).unwrap(), 1);
        let error = roll_back(&mut history, None).unwrap_err();
        assert!(matches!(error, Error::NothingToRollBackTo { .. }), "{error}");
        assert_eq!(history[0].goal.position.generation, Generation(5));
    }

    #[test]
    fn a_repeated_deploy_is_nothing_to_roll_back_to() {
        let mut history = Vec::new();
        for artifact in [1, 2, 2, 2] {
            deploy(&mut history, artifact);
        }
        assert_eq!(roll_back(&mut history, None).unwrap(), 1);
        deploy(&mut history, 1);
        let error = roll_back(&mut history, None).unwrap_err();
        assert!(matches!(error, Error::NothingToRollBackTo { .. }), "2 was left by a rollback: {error}");
    }

    #[test]
    fn a_rollback_after_a_deploy_after_a_rollback_restores_what_ran_before() {
        let mut history = Vec::new();
        (1..=3).for_each(|artifact| deploy(&mut history, artifact));
        assert_eq!(roll_back(&mut history, Some(1)).unwrap(), 1);
        deploy(&mut history, 4);
        assert_eq!(roll_back(&mut history, None).unwrap(), 1, "4 replaced the restored 1, not 3");
        assert_eq!(history[0].goal.origin, Origin::Rollback { restores: GoalPosition::default().at(1) });
        // Generation 4 is a rollback itself: what it restored is restored.
        assert_eq!(roll_back(&mut history, Some(4)).unwrap(), 1);
        assert_eq!(history[0].goal.origin, Origin::Rollback { restores: GoalPosition::default().at(1) });
    }

    impl GoalPosition {
        fn at(mut self, generation: u64) -> Self {
            self.generation = Generation(generation);
            self
        }
    }

    #[test]
    fn a_generation_that_is_not_kept_is_named_with_those_that_are() {
        let mut history = Vec::new();
        assert!(matches!(roll_back(&mut history, None), Err(Error::NeverDeployed { .. })));
        (1..=2).for_each(|artifact| deploy(&mut history, artifact));
        let error = roll_back(&mut history, Some(7)).unwrap_err().to_string();
        assert_eq!(error, "web has no generation 7 in its history, which goes from 0.1 to 0.2");
    }

    #[test]
    fn a_greater_epoch_outranks_whatever_was_there() {
        let write =
            |current| next_goal(current, content(1), Origin::Deploy, GoalEpoch(2), &[], Timestamp::UNIX_EPOCH).goal;
        let first = write(None);
        assert_eq!(first.position.to_string(), "2.1");
        let later = Goal { position: GoalPosition { epoch: GoalEpoch(5), ..first.position }, ..first };
        assert_eq!(write(Some(&Stored { revision: Revision(1), goal: later })).position.to_string(), "5.2");
    }

    #[test]
    fn the_mirror_never_copies_backwards() {
        let mut history = Vec::new();
        (1..=2).for_each(|artifact| deploy(&mut history, artifact));
        let (new, old) = (&history[0], &history[1]);
        assert_eq!(copy_of(&new.goal, None), Copy::Write(Expect::Absent));
        assert_eq!(copy_of(&new.goal, Some(old)), Copy::Write(Expect::At(old.revision)));
        assert_eq!(copy_of(&new.goal, Some(new)), Copy::Same);
        assert_eq!(copy_of(&old.goal, Some(new)), Copy::Stale(new.goal.position));
        let other = Goal { selector: Selector([("a".to_owned(), "b".to_owned())].into()), ..new.goal.clone() };
        assert_eq!(copy_of(&other, Some(new)), Copy::Equivocation);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Deploy(u8),
        /// What runs already, as with [`Redeploy::Always`](crate::deploy::Redeploy::Always).
        Again,
        Back,
        BackTo(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0_u8..5).prop_map(Step::Deploy),
            Just(Step::Again),
            Just(Step::Back),
            (0_u64..40).prop_map(Step::BackTo)
        ]
    }

    proptest! {
        #[test]
        fn generations_only_grow_and_rollbacks_restore_what_was_deployed(steps in prop::collection::vec(step(), 1..40)) {
            let mut history: Vec<Stored> = Vec::new();
            // What a person would keep on paper: what runs, and what ran before it, as a stack per deploy. What runs already is not
            // written down again.
            let mut paper: Vec<Vec<u8>> = vec![vec![]];
            for step in steps {
                let (before, length) = (history.first().map(|stored| stored.goal.position), history.len());
                let now = paper.last().unwrap().clone();
                match step {
                    Step::Deploy(artifact) if now.last() != Some(&artifact) => {
                        deploy(&mut history, artifact);
                        paper.push([&now[..], &[artifact]].concat());
                    }
                    Step::Deploy(_) | Step::Again => {
                        if let Some(artifact) = now.last() {
                            deploy(&mut history, *artifact);
                            paper.push(now);
                        }
                    }
                    Step::Back => match roll_back(&mut history, None) {
                        Ok(artifact) => {
                            let rest = &now[..now.len() - 1];
                            prop_assert_eq!(Some(&artifact), rest.last());
                            paper.push(rest.to_vec());
                        }
                        Err(_) => prop_assert!(now.len() < 2),
                    },
                    Step::BackTo(generation) => match roll_back(&mut history, Some(generation)) {
                        Ok(artifact) => {
                            let then = &paper[generation as usize];
                            prop_assert_eq!(Some(&artifact), then.last());
                            paper.push(then.clone());
                        }
                        Err(_) => prop_assert!(generation == 0 || generation as usize >= paper.len()),
                    },
                }
                if history.len() > length {
                    let goal = &history[0].goal;
                    prop_assert!(Some(goal.position) > before);
                    let source = history.iter().find(|stored| stored.goal.position == root(goal)).unwrap();
                    prop_assert_eq!(source.goal.origin, Origin::Deploy);
                    prop_assert_eq!(Content::of(&source.goal), Content::of(goal));
                }
            }
        }

        #[test]
        fn each_deploy_in_the_history_needs_its_pin(deployed in prop::collection::vec(0_u8..9, 1..20)) {
            let mut history = Vec::new();
            for artifact in &deployed {
                deploy(&mut history, *artifact);
            }
            let wanted: BTreeSet<_> = deployed.iter().map(|artifact| content(*artifact).artifact.name).collect();
            prop_assert_eq!(needed_pins(&history).into_keys().collect::<BTreeSet<_>>(), wanted);
        }
    }
}
