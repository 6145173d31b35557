//! Artifacts that are given up.

use super::steps::*;
use super::*;
use crate::port::swarm::Error;

const LEN: u64 = 4 * PIECE + 3;

/// Whoever waits for it is told.
pub async fn leaving_stops_a_fetch(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(LEN, 1).await;
    let swarm = site.region.join().await;
    let fetch = site.fetch_half(&swarm, &artifact, "file").await;
    swarm.leave(&artifact.digest()).await.expect("it leaves");
    let outcome = done(fetch).await;
    assert!(matches!(outcome, Err(Error::Stopped { .. })), "{outcome:?}");
    assert_eq!(swarm.stats().await.expect("stats").fetching, 0);
}

/// The file may be deleted, so nobody is sent there.
pub async fn leaving_stops_serving(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(LEN, 1).await;
    let (seeder, other) = (site.region.join().await, site.region.join().await);
    let file = site.file("seed", &artifact.bytes);
    seeder.seed(Arc::clone(&artifact.manifest), file.clone()).await.expect("the file is whole");
    seeder.leave(&artifact.digest()).await.expect("it leaves");
    std::fs::remove_file(file).expect("the file may be deleted");
    assert_eq!(seeder.stats().await.expect("stats").seeding, 0);
    let summary = site.fetch_whole(&other, &artifact, "file").await;
    assert_eq!((summary.from_store, summary.from_peers), (LEN, 0));
    assert_eq!(seeder.stats().await.expect("stats").uploaded, 0);
}

/// Also for what was never there.
pub async fn leaving_is_idempotent(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(LEN, 1).await;
    let swarm = site.region.join().await;
    swarm.leave(&artifact.digest()).await.expect("an unknown artifact is left");
    site.fetch_whole(&swarm, &artifact, "file").await;
    for _ in 0..2 {
        swarm.leave(&artifact.digest()).await.expect("it leaves");
    }
    site.holds("file", &artifact);
}

/// The file stays, and so does the right to come back.
pub async fn what_was_left_can_be_fetched_anew(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(LEN, 1).await;
    let swarm = site.region.join().await;
    let fetch = site.fetch_half(&swarm, &artifact, "file").await;
    swarm.leave(&artifact.digest()).await.expect("it leaves");
    drop(fetch);
    std::fs::remove_file(site.path("file")).expect("the file may be deleted");
    site.tap.open();
    let summary = site.fetch_whole(&swarm, &artifact, "file").await;
    assert_eq!(summary.resumed, 0, "what was deleted is not believed to be there");
    swarm.leave(&artifact.digest()).await.expect("it leaves");
    let summary = site.fetch_whole(&swarm, &artifact, "file").await;
    assert_eq!(summary.resumed, LEN, "what is there whole is not fetched");
}

/// Down, up, and what is held.
pub async fn what_a_machine_does_is_counted(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(LEN, 1).await;
    let (first, second) = (site.region.join().await, site.region.join().await);
    site.fetch_whole(&first, &artifact, "first").await;
    let stats = first.stats().await.expect("stats");
    assert_eq!((stats.downloaded, stats.uploaded, stats.fetching, stats.seeding), (LEN, 0, 0, 1));
    site.tap.close();
    site.fetch_whole(&second, &artifact, "second").await;
    assert_eq!(first.stats().await.expect("stats").uploaded, LEN);
    assert_eq!(second.stats().await.expect("stats").downloaded, LEN);
}
