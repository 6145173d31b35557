//! Which goal a store takes: one rule for every backend.

use super::{Error, Expect, MAX_GOAL, Stored};
use crate::model::{Goal, Revision};

/// What becomes of an offered goal that is not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is written at the store's next revision.
    Write,
    /// It is stored already, by this revision: nothing is written.
    Repeat(Revision),
}

/// Decides about an offered goal, given what is stored for its service. A backend calls it inside the transaction that writes.
///
/// ```
/// use deploycore::model::{Goal, Revision};
/// use deploycore::port::goals::{Admission, Error, Expect, Stored, admit};
///
/// # let goal: Goal = serde_json::from_str(r#"{"service": "web", "epoch": 0, "generation": 2,
/// #     "artifact": {"name": "web-2", "size": 0,
/// #     "digest": "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"},
/// #     "run": {}, "selector": {}, "origin": {"kind": "deploy"}, "created_at": "2026-01-01T00:00:00Z"}"#)?;
/// assert_eq!(admit(None, &goal, Expect::Absent)?, Admission::Write);
///
/// let stored = Stored { revision: Revision(7), goal: goal.clone() };
/// assert_eq!(admit(Some(&stored), &goal, Expect::Absent)?, Admission::Repeat(Revision(7)));
///
/// let mut other = goal.clone();
/// other.artifact.size = 1;
/// assert!(matches!(admit(Some(&stored), &other, Expect::At(Revision(7))), Err(Error::Equivocation { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Errors, looked for in this order: `Invalid`, `Stale`, `Conflict`, `Equivocation`.
pub fn admit(stored: Option<&Stored>, goal: &Goal, expect: Expect) -> Result<Admission, Error> {
    check_size(goal)?;
    if let Some(stored) = stored {
        if *goal == stored.goal {
            return Ok(Admission::Repeat(stored.revision));
        }
        if goal.position < stored.goal.position {
            let (stored, offered) = (stored.goal.position, goal.position);
            return Err(Error::Stale { service: goal.service.clone(), stored, offered });
        }
    }
    let found = stored.map(|stored| stored.revision);
    let expected = match expect {
        Expect::Absent => None,
        Expect::At(revision) => Some(revision),
    };
    if expected != found {
        return Err(Error::Conflict { service: goal.service.clone(), expected, found });
    }
    if stored.is_some_and(|stored| stored.goal.position == goal.position) {
        return Err(Error::Equivocation { service: goal.service.clone(), position: goal.position });
    }
    Ok(Admission::Write)
}

fn check_size(goal: &Goal) -> Result<(), Error> {
    let size = serde_json::to_vec(goal).map_err(|error| Error::Invalid(error.to_string()))?.len();
    if size > MAX_GOAL {
        return Err(Error::Invalid(format!("the goal of {} has {size} bytes; {MAX_GOAL} are allowed", goal.service)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Index;
    use super::*;
    use crate::model::{GoalEpoch, GoalPosition};

    fn goal(epoch: u64, generation: u64, content: u64) -> Goal {
        let json = serde_json::json!({
            "service": "web", "epoch": epoch, "generation": generation,
            "artifact": {"name": "web-1", "digest": crate::model::Digest::of(b""), "size": content},
            "run": {}, "selector": {}, "origin": {"kind": "deploy"}, "created_at": "2026-01-01T00:00:00Z",
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn an_epoch_outranks_generations() {
        let stored = Stored { revision: Revision(3), goal: goal(1, 1, 0) };
        let refused = admit(Some(&stored), &goal(0, 9, 0), Expect::At(Revision(3)));
        assert!(matches!(refused, Err(Error::Stale { offered, .. }) if offered.epoch == GoalEpoch(0)), "{refused:?}");
        assert_eq!(admit(Some(&stored), &goal(2, 0, 0), Expect::At(Revision(3))).unwrap(), Admission::Write);
    }

    #[test]
    fn a_goal_past_the_bound_is_refused_before_all_else() {
        let mut large = goal(0, 1, 0);
        large.run.args.push("x".repeat(MAX_GOAL));
        assert!(matches!(admit(None, &large, Expect::At(Revision(1))), Err(Error::Invalid(_))));
    }

    proptest! {
        #[test]
        fn a_position_never_falls_and_keeps_its_content(
            offers in prop::collection::vec((0_u64..3, 0_u64..6, 0_u64..2, prop::option::of(0_u64..12)), 1..60)
        ) {
            let mut index = Index::default();
            let mut last: Option<(GoalPosition, Goal)> = None;
            for (epoch, generation, content, at) in offers {
                let offered = goal(epoch, generation, content);
                let expect = at.map_or(Expect::Absent, |revision| Expect::At(Revision(revision)));
                let before = index.get(&offered.service).cloned();
                let outcome = index.put(offered.clone(), expect);
                let now = index.get(&offered.service).cloned();
                if outcome.is_ok() {
                    prop_assert_eq!(&now.as_ref().unwrap().goal, &offered);
                } else {
                    prop_assert_eq!(&now, &before);
                }
                if let (Some((position, content)), Some(now)) = (&last, &now) {
                    prop_assert!(now.goal.position >= *position);
                    prop_assert!(now.goal.position > *position || now.goal == *content);
                }
                last = now.map(|now| (now.goal.position, now.goal));
            }
        }
    }
}
