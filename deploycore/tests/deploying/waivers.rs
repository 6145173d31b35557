//! Goals that do without a region.

use super::*;
use deploycore::deploy::WaiverError;
use deploycore::model::{Waiver, later};
use deploycore::port::ReplicationLedgerExt;

/// The yard's goals are dated at the epoch.
fn waiver(name: &str) -> Waiver {
    Waiver::new(region(name), "its datacentre burns", later(Timestamp::UNIX_EPOCH, secs(7200))).with_by("ann")
}

async fn give_up(yard: &Yard, name: &ArtifactName, place: &str) {
    let claim = ClaimRequest {
        claim: ClaimId::new(),
        region: region(place),
        lease: secs(60),
        limit: 100,
        least: CopyPriority::Normal,
    };
    let tasks = yard.ledger.claim(&claim).await.unwrap();
    let task = tasks.iter().find(|task| task.artifact.name == *name).unwrap();
    yard.ledger.fail(&task.lease, "no such host", CopyRetry::GiveUp).await.unwrap();
}

async fn state(yard: &Yard, name: &ArtifactName, place: &str) -> CopyState {
    yard.ledger.require(name).await.unwrap().copies[&region(place)].state
}

#[tokio::test(start_paused = true)]
async fn a_deploy_may_do_without_a_dead_region_and_the_goal_says_so() {
    let yard = Yard::new();
    let artifact = yard.artifact(1, &["r1"]).await;
    let request = DeployRequest::new(web(), artifact.clone());
    yard.deployer.deploy(&request).await.unwrap_err();
    let request = request.with_waivers(vec![waiver("r2")]);
    let goal = yard.deployer.deploy(&request).await.unwrap();
    assert_eq!((goal.position, &goal.waivers), (at(1), &vec![waiver("r2")]));
    assert_eq!(yard.deployer.deploy(&request).await.unwrap(), goal, "a repeated request is the same request");
    assert_eq!(yard.pins().await, ["web-1"]);
    assert_eq!(yard.deployer.history(&web()).await.unwrap()[0].goal, goal, "it is on the record");

    // The next goal requires every region again, and the record stays.
    let next = yard.artifact(2, &["r1"]).await;
    let error = yard.deployer.deploy(&DeployRequest::new(web(), next.clone())).await.unwrap_err();
    assert!(matches!(error, Error::Ledger(ledger::Error::NotDeployable { .. })), "{error}");
    yard.copy(&next, &["r2"]).await;
    let goal = yard.deployer.deploy(&DeployRequest::new(web(), next)).await.unwrap();
    assert!(goal.waivers.is_empty());
    assert_eq!(yard.deployer.history(&web()).await.unwrap()[1].goal.waivers, [waiver("r2")]);
}

#[tokio::test(start_paused = true)]
async fn a_waived_region_is_the_only_one_that_may_lack_the_artifact() {
    let yard = Yard::new();
    let artifact = yard.artifact(1, &[]).await;
    let deploy = async |waivers| {
        let request = DeployRequest::new(web(), artifact.clone()).with_waivers(waivers);
        yard.deployer.deploy(&request).await.unwrap_err()
    };
    let error = deploy(vec![waiver("r2")]).await;
    let Error::Ledger(ledger::Error::NotDeployable { missing, .. }) = &error else { panic!("{error:?}") };
    assert_eq!(*missing, BTreeMap::from([(region("r1"), CopyState::Pending)]));
    yard.copy(&artifact, &["r1"]).await;
    let refused = async |waivers| match deploy(waivers).await {
        Error::Waiver(refused) => refused,
        other => panic!("{other:?}"),
    };
    assert!(matches!(refused(vec![waiver("r1"), waiver("r2")]).await, WaiverError::All { .. }));
    assert!(matches!(refused(vec![waiver("mars")]).await, WaiverError::NotRequired { .. }));
    let expires_at = Timestamp::UNIX_EPOCH;
    assert!(matches!(refused(vec![Waiver { expires_at, ..waiver("r2") }]).await, WaiverError::Expired { .. }));
    assert!(!deploy(vec![waiver("mars")]).await.is_retryable());
    assert!(yard.deployer.current(&web()).await.unwrap().is_none() && yard.pins().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_rollback_during_the_outage_may_do_without_the_region_too() {
    let yard = Yard::new();
    yard.deployed(1..=2).await;
    let lost = ArtifactName::new("web-1").unwrap();
    let epoch = yard.ledger.status(&lost).await.unwrap().unwrap().copies[&region("r2")].epoch;
    yard.ledger.reopen(&lost, &region("r2"), epoch, "gone").await.unwrap();
    yard.deployer.rollback(&web(), None).await.unwrap_err();
    let error = yard.deployer.rollback_without(&web(), None, &[waiver("mars")]).await.unwrap_err();
    assert!(matches!(error, Error::Waiver(WaiverError::NotRequired { .. })), "{error}");
    let goal = yard.deployer.rollback_without(&web(), None, &[waiver("r2")]).await.unwrap();
    assert_eq!((goal.position, goal.origin), (at(3), Origin::Rollback { restores: at(1) }));
    assert_eq!(goal.waivers, [waiver("r2")]);
}

#[tokio::test(start_paused = true)]
async fn a_waived_region_gets_its_copy_in_the_end() {
    let yard = Yard::new();
    let artifact = yard.artifact(1, &["r1"]).await;
    give_up(&yard, &artifact, "r2").await;
    yard.deployer.deploy(&DeployRequest::new(web(), artifact.clone()).with_waivers(vec![waiver("r2")])).await.unwrap();
    // What the lane gave up is tried again for as long as the goal stands, and its pin is kept meanwhile.
    for _ in 0..2 {
        assert_eq!(state(&yard, &artifact, "r2").await, CopyState::Failed);
        yard.ledger.unpin(&artifact, &PinHolder::goal(&web())).await.unwrap();
        yard.deployer.tick().await.unwrap();
        assert_eq!(state(&yard, &artifact, "r2").await, CopyState::Pending);
        assert_eq!(yard.pins().await, ["web-1"]);
        give_up(&yard, &artifact, "r2").await;
    }
    yard.deployer.tick().await.unwrap();
    yard.copy(&artifact, &["r2"]).await;
    yard.deployer.tick().await.unwrap();
    assert_eq!(state(&yard, &artifact, "r2").await, CopyState::Complete);

    // No service reopens what no waiver is about.
    let other = yard.artifact(2, &["r1", "r2"]).await;
    yard.deployer.deploy(&DeployRequest::new(web(), other.clone())).await.unwrap();
    let epoch = yard.ledger.status(&other).await.unwrap().unwrap().copies[&region("r2")].epoch;
    yard.ledger.reopen(&other, &region("r2"), epoch, "gone").await.unwrap();
    give_up(&yard, &other, "r2").await;
    yard.deployer.tick().await.unwrap();
    assert_eq!(state(&yard, &other, "r2").await, CopyState::Failed);
}
