//! Bytes that arrive.

use super::steps::*;
use super::*;
use crate::port::swarm::{Error, Fetch};

/// Sizes around the borders of pieces, the empty artifact included.
pub async fn a_fetch_writes_exactly_the_bytes(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let swarm = site.region.join().await;
    for (seed, len) in (0..).zip([0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 7]) {
        let artifact = site.put(len, seed).await;
        site.fetch_whole(&swarm, &artifact, &format!("{len}")).await;
    }
}

/// Each byte comes from the store, from a peer or from the disk.
pub async fn the_summary_accounts_for_each_byte(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(3 * PIECE + 1, 1).await;
    let (first, second) = (site.region.join().await, site.region.join().await);
    let summary = site.fetch_whole(&first, &artifact, "first").await;
    assert_eq!((summary.from_store, summary.from_peers, summary.resumed), (3 * PIECE + 1, 0, 0));
    let summary = site.fetch_whole(&second, &artifact, "second").await;
    assert_eq!(summary.from_store + summary.from_peers, 3 * PIECE + 1);
    assert_eq!(summary.resumed, 0);
}

/// Pieces and bytes never fall, and the channel closes at the whole.
pub async fn progress_only_grows_and_ends_at_the_whole(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(6 * PIECE + 1, 1).await;
    let swarm = site.region.join().await;
    let Fetch { mut progress, done } = site.fetch(&swarm, &artifact, "file").await;
    let watch = async {
        let mut seen = vec![progress.borrow_and_update().clone()];
        while progress.changed().await.is_ok() {
            seen.push(progress.borrow_and_update().clone());
        }
        seen.push(progress.borrow().clone());
        seen
    };
    let (summary, seen) = tokio::join!(done, watch);
    summary.expect("the fetch ends well");
    assert!(seen.is_sorted_by_key(|progress| (progress.pieces, progress.bytes)), "{seen:?}");
    let last = seen.last().expect("there is one at least");
    assert_eq!((last.pieces, last.bytes), (7, 6 * PIECE + 1));
}

/// What one machine has, the next gets from it.
pub async fn a_second_machine_needs_no_store(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(4 * PIECE, 1).await;
    let (first, second) = (site.region.join().await, site.region.join().await);
    site.fetch_whole(&first, &artifact, "first").await;
    site.tap.close();
    let summary = site.fetch_whole(&second, &artifact, "second").await;
    assert_eq!((summary.from_store, summary.from_peers), (0, 4 * PIECE));
}

/// Two services of a machine may want the same artifact.
pub async fn a_second_fetch_to_the_same_place_joins(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(4 * PIECE, 1).await;
    let swarm = site.region.join().await;
    let first = site.fetch_half(&swarm, &artifact, "file").await;
    let second = site.fetch(&swarm, &artifact, "file").await;
    assert_eq!(swarm.stats().await.expect("stats").fetching, 1);
    site.tap.open();
    let (first, second) = tokio::join!(done(first), done(second));
    assert!(first.is_ok() && second.is_ok(), "{first:?} {second:?}");
    site.holds("file", &artifact);
}

/// Whoever came first may lose interest.
pub async fn a_joined_fetch_outlives_the_first(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(4 * PIECE, 1).await;
    let swarm = site.region.join().await;
    let first = site.fetch_half(&swarm, &artifact, "file").await;
    let second = site.fetch(&swarm, &artifact, "file").await;
    drop(first);
    site.tap.open();
    done(second).await.expect("the fetch ends well");
    site.holds("file", &artifact);
}

/// One file at a time holds the pieces that are served.
pub async fn a_second_fetch_to_another_place_is_a_conflict(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(4 * PIECE, 1).await;
    let swarm = site.region.join().await;
    let first = site.fetch_half(&swarm, &artifact, "here").await;
    let second = swarm.fetch(artifact.request(site.path("there"))).await;
    let here = site.path("here");
    assert!(matches!(&second, Err(Error::Conflict { path, .. }) if *path == here), "{second:?}");
    site.tap.open();
    done(first).await.expect("the first goes on");
    site.holds("here", &artifact);
}

/// A newer build does not wait for an older one.
pub async fn several_artifacts_travel_at_once(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let swarm = site.region.join().await;
    let stuck = site.put(4 * PIECE, 0).await;
    let stuck_fetch = site.fetch_half(&swarm, &stuck, "stuck").await;
    let (one, two) = (site.put(3 * PIECE, 1).await, site.put(2 * PIECE + 5, 2).await);
    site.tap.open();
    let fetches = (site.fetch(&swarm, &one, "one").await, site.fetch(&swarm, &two, "two").await);
    let ends = tokio::join!(done(fetches.0), done(fetches.1), done(stuck_fetch));
    assert!(ends.0.is_ok() && ends.1.is_ok() && ends.2.is_ok(), "{ends:?}");
    for (name, artifact) in [("one", &one), ("two", &two), ("stuck", &stuck)] {
        site.holds(name, artifact);
    }
}

/// A lack of sources is no reason to end.
pub async fn a_fetch_waits_for_a_store_that_fails_and_says_so(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(2 * PIECE, 1).await;
    let swarm = site.region.join().await;
    site.tap.close();
    let mut fetch = site.fetch(&swarm, &artifact, "file").await;
    until(&mut fetch, "it says what it waits for", |progress| progress.waiting_for.is_some()).await;
    site.tap.open();
    done(fetch).await.expect("the fetch ends well");
    site.holds("file", &artifact);
}

/// A store that is damaged is found out, and what it gives later is taken.
pub async fn bytes_that_do_not_verify_are_not_kept(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(3 * PIECE, 1).await;
    let swarm = site.region.join().await;
    site.tap.lie_once();
    site.fetch_whole(&swarm, &artifact, "file").await;
    assert!(site.tap.has_lied(), "the case shows nothing");
}

/// A machine executes what it fetched, which a system refuses for a file that is open for writing.
pub async fn nothing_holds_the_file_open_for_writing(regions: Arc<dyn Regions>) {
    use std::os::unix::fs::PermissionsExt;
    let site = Site::open(regions).await;
    let artifact = site.put_bytes(b"#!/bin/sh\nexit 7\n".to_vec()).await;
    let swarm = site.region.join().await;
    site.fetch_whole(&swarm, &artifact, "script").await;
    let path = site.path("script");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("permissions");
    let status = std::process::Command::new(&path).status();
    assert_eq!(status.expect("the file can be executed").code(), Some(7));
}

/// It is not the swarm's to make folders.
pub async fn a_folder_that_is_not_there_is_an_error_of_the_disk(regions: Arc<dyn Regions>) {
    let site = Site::open(regions).await;
    let artifact = site.put(PIECE, 1).await;
    let swarm = site.region.join().await;
    let outcome = match swarm.fetch(artifact.request(site.path("nowhere/file"))).await {
        Ok(fetch) => done(fetch).await.map(|_| ()),
        Err(error) => Err(error),
    };
    assert!(matches!(outcome, Err(Error::Disk { .. })), "{outcome:?}");
}
