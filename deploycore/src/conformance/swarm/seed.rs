//! Files that were there before.

use super::steps::*;
use super::*;
use crate::port::swarm::Error;

const LEN: u64 = 3 * PIECE + 11;

/// After a restart a machine gives what it kept.
pub async fn a_seeded_file_feeds_others(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(LEN, 1).await;
    site.tap.close();
    let (seeder, other) = (site.region.join().await, site.region.join().await);
    let file = site.file("seed", &artifact.bytes);
    seeder.seed(Arc::clone(&artifact.manifest), file).await.expect("the file is whole");
    let summary = site.fetch_whole(&other, &artifact, "file").await;
    assert_eq!((summary.from_store, summary.from_peers), (0, LEN));
}

/// A machine names a verified file as whole by a second name beside the first.
pub async fn a_seeded_file_goes_on_serving_under_another_name_too(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(LEN, 1).await;
    let (first, second) = (site.region.join().await, site.region.join().await);
    site.fetch_whole(&first, &artifact, "file.part").await;
    std::fs::hard_link(site.path("file.part"), site.path("file")).expect("a second name");
    site.tap.close();
    site.fetch_whole(&second, &artifact, "second").await;
    first.seed(Arc::clone(&artifact.manifest), site.path("file")).await.expect("the file is whole");
}

/// It is idempotent.
pub async fn seeding_again_changes_nothing(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(LEN, 1).await;
    let swarm = site.region.join().await;
    let file = site.file("seed", &artifact.bytes);
    for _ in 0..3 {
        swarm.seed(Arc::clone(&artifact.manifest), file.clone()).await.expect("the file is whole");
        assert_eq!(swarm.stats().await.expect("stats").seeding, 1);
    }
}

/// One bit is enough.
pub async fn a_damaged_file_is_refused(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(LEN, 1).await;
    let swarm = site.region.join().await;
    for at in [0, LEN / 2, LEN - 1] {
        let mut bytes = artifact.bytes.clone();
        bytes[at as usize] ^= 1;
        let file = site.file("seed", &bytes);
        let outcome = swarm.seed(Arc::clone(&artifact.manifest), file).await;
        assert!(matches!(outcome, Err(Error::Corrupt { .. })), "byte {at}: {outcome:?}");
    }
    assert_eq!(swarm.stats().await.expect("stats").seeding, 0);
}

/// Neither less nor more.
pub async fn a_file_of_another_length_is_refused(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(LEN, 1).await;
    let swarm = site.region.join().await;
    let mut longer = artifact.bytes.clone();
    longer.push(0);
    for bytes in [&artifact.bytes[1..], &artifact.bytes[..PIECE as usize], &[], &longer[..]] {
        let file = site.file("seed", bytes);
        let outcome = swarm.seed(Arc::clone(&artifact.manifest), file).await;
        assert!(matches!(outcome, Err(Error::Corrupt { .. })), "{} bytes: {outcome:?}", bytes.len());
    }
}

/// Another error than damage: the file may come.
pub async fn a_file_that_is_not_there_is_an_error_of_the_disk(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(LEN, 1).await;
    let swarm = site.region.join().await;
    let outcome = swarm.seed(Arc::clone(&artifact.manifest), site.path("nowhere")).await;
    assert!(matches!(outcome, Err(Error::Disk { .. })), "{outcome:?}");
}

/// No byte leaves a machine before it verified.
pub async fn a_refused_file_feeds_nobody(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(LEN, 1).await;
    let (liar, other) = (site.region.join().await, site.region.join().await);
    let file = site.file("seed", &vec![7; LEN as usize]);
    let _ = liar.seed(Arc::clone(&artifact.manifest), file).await;
    let summary = site.fetch_whole(&other, &artifact, "file").await;
    assert_eq!((summary.from_peers, summary.bad_pieces), (0, 0), "{summary:?}");
    assert_eq!(liar.stats().await.expect("stats").uploaded, 0);
}
