//! Calls whose caller goes away half-way, and the same calls again.
//!
//! Each call is polled once and dropped, then twice and dropped, and so on until it comes to its end.

use std::time::Duration;

use super::super::case::{MOST_POLLS, PATIENCE, cut};
use super::steps::*;
use crate::model::{ClaimId, CopyState, CopyTask, RegionName};
use crate::port::ReplicationLedgerExt;
use crate::port::ledger::{CopyRetry, Registered};

const REGIONS: [&str; 3] = ["ap", "eu", "us"];

/// With all its copies, or with none and not at all.
pub async fn a_registration_is_whole_or_not_there(ledger: Subject) {
    for polls in 1..=MOST_POLLS {
        let artifact = artifact(&format!("web-{polls}"), &REGIONS);
        let ended = cut(polls, ledger.register(&artifact)).await.is_some();
        if let Some(status) = ledger.status(&artifact.artifact.name).await.expect("a read") {
            assert_eq!(status.copies.len(), REGIONS.len(), "after {polls} polls");
        }
        let again = ledger.register(&artifact).await.expect("the same artifact again");
        assert!(again == Registered::Repeated || !ended, "after {polls} polls: {again:?}");
        let status = ledger.require(&artifact.artifact.name).await.expect("it is registered");
        assert_eq!(status.registered, artifact);
        assert!(status.copies.keys().map(RegionName::as_str).eq(REGIONS), "after {polls} polls");
        if ended {
            return;
        }
    }
    panic!("it has no end");
}

/// Claims so many copies. A server may not know yet that a caller has gone: what that was about to take or change is locked until it does.
async fn claim_in_time(ledger: &Subject, copies: usize) -> Vec<CopyTask> {
    let mut claimed = Vec::new();
    for _ in 0..PATIENCE {
        claimed.extend(claim(ledger, "eu", HOUR).await);
        if claimed.len() >= copies {
            break;
        }
        pass(MOMENT).await;
    }
    assert_eq!(claimed.len(), copies, "a lease that nobody knows: {claimed:?}");
    claimed
}

/// What a claim took nobody heard of: the same claim again gets it. If it took nothing, all is left to others.
pub async fn a_claim_leaves_no_lease_that_nobody_knows(ledger: Subject) {
    for polls in 1..=MOST_POLLS {
        for number in 0..3 {
            register(&ledger, &format!("web-{polls}-{number}"), &["eu"]).await;
        }
        let id = ClaimId::new();
        let ended = cut(polls, ledger.claim(&request(id, "eu", HOUR, 2))).await.is_some();
        let mut claimed = ledger.claim(&request(id, "eu", HOUR, 2)).await.expect("the claim is within all bounds");
        assert!(claimed.len() == 2 || !ended, "after {polls} polls");
        claimed.extend(claim_in_time(&ledger, 3 - claimed.len()).await);
        for task in &claimed {
            assert_eq!(task.lease.epoch.get(), 1, "after {polls} polls");
            ledger.complete(&task.lease).await.expect("the lease is current");
        }
        if ended {
            return;
        }
    }
    panic!("it has no end");
}

/// A failure to try again, and the end of a copy.
pub async fn an_end_counts_once(ledger: Subject) {
    for polls in 1..=MOST_POLLS {
        let text = format!("web-{polls}");
        register(&ledger, &text, &["eu"]).await;
        let (task, retry) = (claim_in_time(&ledger, 1).await.remove(0), CopyRetry::After(Duration::ZERO));
        let mut ended = cut(polls, ledger.fail(&task.lease, "no", retry)).await.is_some();
        ledger.fail(&task.lease, "no", retry).await.expect("the same word again");
        let task = claim_in_time(&ledger, 1).await.remove(0);
        ended &= cut(polls, ledger.complete(&task.lease)).await.is_some();
        ledger.complete(&task.lease).await.expect("the same word again");
        let copy = copy(&ledger, &text, "eu").await;
        assert_eq!((copy.state, copy.epoch.get(), copy.attempts), (CopyState::Complete, 2, 2), "after {polls} polls");
        if ended {
            return;
        }
    }
    panic!("it has no end");
}
