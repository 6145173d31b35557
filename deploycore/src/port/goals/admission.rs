//! Which goal a store takes: one rule for every backend.

use std::time::Duration;

use jiff::fmt::friendly::SpanPrinter;

use super::{Error, Expect, MAX_GOAL, MAX_RUN_SPAN, Stored};
use crate::model::{Goal, Readiness, Revision};

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
    check_spans(goal)?;
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

fn check_spans(goal: &Goal) -> Result<(), Error> {
    let run = &goal.run;
    let alive = match run.readiness {
        Readiness::Alive(span) => span,
        _ => Duration::ZERO,
    };
    let spans = [("readiness.alive", alive), ("ready_timeout", run.ready_timeout), ("stop_grace", run.stop_grace)];
    let Some((field, span)) = spans.into_iter().find(|(_, span)| *span > MAX_RUN_SPAN) else { return Ok(()) };
    let [span, most] = [span, MAX_RUN_SPAN].map(|span| SpanPrinter::new().unsigned_duration_to_string(&span));
    Err(Error::Invalid(format!("run.{field} of the goal of {} is {span}; {most} is the most", goal.service)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Index;
    use super::*;
    use crate::model::{GoalEpoch, GoalPosition, RunSpec};

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

    #[test]
    fn a_span_past_the_bound_is_refused_by_name() {
        let alive: fn(Duration) -> RunSpec = |span| RunSpec { readiness: Readiness::Alive(span), ..RunSpec::default() };
        for (field, run) in [
            ("readiness.alive", alive),
            ("ready_timeout", |span| RunSpec { ready_timeout: span, ..RunSpec::default() }),
            ("stop_grace", |span| RunSpec { stop_grace: span, ..RunSpec::default() }),
        ] {
            let put = |span| admit(None, &Goal { run: run(span), ..goal(0, 1, 0) }, Expect::Absent);
            assert_eq!(put(MAX_RUN_SPAN).unwrap(), Admission::Write);
            for span in [MAX_RUN_SPAN + Duration::from_secs(1), Duration::MAX] {
                let refused = put(span).unwrap_err().to_string();
                assert!(refused.contains(&format!("run.{field} of the goal of web is ")), "{refused}");
                assert!(refused.ends_with("; 168h is the most"), "{refused}");
            }
        }
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
