//! Priorities and limits that change while an artifact is here.

use super::steps::*;
use super::*;
use crate::port::swarm::{Error, Limits, Priority};

const LEN: u64 = 4 * PIECE + 3;

/// Far more than the kit moves.
const AMPLE: Limits = Limits { ingress: Some(1 << 30), egress: Some(1 << 30), disk: Some(1 << 30) };

/// Nor can what was left, or was never fetched.
pub async fn what_is_not_here_cannot_be_adjusted(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(LEN, 1).await;
    let swarm = site.region.join().await;
    for _ in 0..2 {
        let outcome = swarm.adjust(&artifact.digest(), Priority::High, AMPLE).await;
        assert!(matches!(outcome, Err(Error::NotFound { digest }) if digest == artifact.digest()), "{outcome:?}");
        site.fetch_whole(&swarm, &artifact, "file").await;
        swarm.leave(&artifact.digest()).await.expect("it leaves");
    }
}

/// Whatever it becomes, it becomes whole.
pub async fn a_fetch_under_way_is_adjusted_and_ends_well(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(LEN, 1).await;
    let swarm = site.region.join().await;
    let fetch = site.fetch_half(&swarm, &artifact, "file").await;
    for priority in [Priority::Rollback, Priority::Rollback, Priority::Normal, Priority::High] {
        swarm.adjust(&artifact.digest(), priority, AMPLE).await.expect("it is here");
    }
    site.tap.open();
    done(fetch).await.expect("the fetch ends well");
    site.holds("file", &artifact);
}

/// What a machine gives may be limited after its own fetch.
pub async fn what_is_offered_is_adjusted_and_still_offered(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(LEN, 1).await;
    let (seeder, other) = (site.region.join().await, site.region.join().await);
    let file = site.file("seed", &artifact.bytes);
    seeder.seed(Arc::clone(&artifact.manifest), file).await.expect("the file is whole");
    seeder.adjust(&artifact.digest(), Priority::Normal, AMPLE).await.expect("it is here");
    seeder.limit(AMPLE).await.expect("it is limited");
    let summary = site.fetch_whole(&other, &artifact, "file").await;
    assert_eq!(summary.from_store + summary.from_peers, LEN);
}
