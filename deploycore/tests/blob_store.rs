//! The store on `object_store`: what only it promises, below the port.
#![cfg(feature = "object-store")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytesize::ByteSize;
use deploycore::model::{Digest, Epoch, JobId, LogName};
use deploycore::port::store::{ArtifactStore, ArtifactStoreExt, Deletion, Error};
use deploycore::store::{BlobStore, BlobStoreSettings, Swept};
use futures::TryStreamExt;
use futures::stream::StreamExt;
use url::Url;

fn bytes(len: usize) -> Bytes {
    (0..len).map(|at| (at * 31 % 251) as u8).collect::<Vec<_>>().into()
}

fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn local() -> (tempfile::TempDir, BlobStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = BlobStore::open(&Url::from_directory_path(folder.path()).unwrap()).unwrap();
    // Parts so small that an artifact of a few MiB goes up in several.
    (folder, store.with_settings(BlobStoreSettings::default().with_part_size(ByteSize::mib(1))))
}

#[tokio::test]
async fn a_url_of_an_unknown_kind_is_refused_with_a_hint() {
    let open = |url: &str| BlobStore::open(&Url::parse(url).unwrap()).unwrap_err().to_string();
    assert!(open("s4://bucket/x").contains("s3://bucket/prefix"), "{}", open("s4://bucket/x"));
    assert!(open("redb:///x").contains("file:///"), "{}", open("redb:///x"));
    assert!(open("file://host/x").contains("absolute"), "{}", open("file://host/x"));
    let file = tempfile::NamedTempFile::new().unwrap();
    let inside = format!("file://{}/store", file.path().display());
    assert!(open(&inside).contains("backend failed"));
    BlobStore::open(&Url::parse("memory://").unwrap()).unwrap();
}

#[tokio::test]
async fn another_handle_on_the_same_folder_reads_what_was_put_in_parts() {
    let (folder, store) = local();
    let data = bytes((3 << 20) + 17);
    let manifest = store.put_bytes(data.clone()).await.unwrap();
    let other = BlobStore::open(&Url::from_directory_path(folder.path()).unwrap()).unwrap();
    assert_eq!(other.verify(&Digest::of(&data)).await.unwrap(), manifest);
    let listed: Vec<_> = other.list().try_collect().await.unwrap();
    assert_eq!(listed, [manifest.digest()]);
}

#[tokio::test]
async fn the_second_put_of_the_same_bytes_drops_its_blob() {
    let (folder, store) = local();
    for _ in 0..3 {
        store.put_bytes(bytes(2 << 20)).await.unwrap();
    }
    assert_eq!(files(&folder.path().join("blobs")).len(), 1);
    assert_eq!(files(&folder.path().join("manifests")).len(), 1);
}

#[tokio::test]
async fn a_failed_put_takes_its_parts_back() {
    let (folder, store) = local();
    let chunks = vec![Ok(bytes(3 << 20)), Err(std::io::Error::other("the build's disk is gone"))];
    let error = store.put(futures::stream::iter(chunks).boxed()).await.unwrap_err();
    assert!(matches!(error, Error::Source(_)), "{error:?}");
    assert_eq!(files(&folder.path().join("blobs")), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_put_mends_an_artifact_whose_blob_is_gone_or_cut_or_whose_manifest_is_damaged() {
    let (folder, store) = local();
    let data = bytes(1 << 20);
    let digest = Digest::of(&data);
    store.put_bytes(data.clone()).await.unwrap();
    for damage in ["blob gone", "blob cut", "manifest damaged", "manifest empty"] {
        let blob = files(&folder.path().join("blobs")).pop().unwrap();
        let manifest = folder.path().join("manifests").join(digest.to_string());
        match damage {
            "blob gone" => std::fs::remove_file(&blob).unwrap(),
            "blob cut" => std::fs::write(&blob, b"short").unwrap(),
            "manifest damaged" => std::fs::write(&manifest, b"{\"format\":1}").unwrap(),
            _ => std::fs::write(&manifest, b"").unwrap(),
        }
        assert!(!store.exists(&digest).await.unwrap(), "{damage}");
        let fresh = BlobStore::open(&Url::from_directory_path(folder.path()).unwrap()).unwrap();
        let Err(error) = fresh.read(&digest, 900_000..1_000_000).await else { panic!("{damage}: read") };
        assert!(matches!(error, Error::Corrupt { .. }), "{damage}: {error:?}");
        assert_eq!(store.put_bytes(data.clone()).await.unwrap().digest(), digest, "{damage}");
        assert!(store.exists(&digest).await.unwrap(), "{damage}");
        assert_eq!(store.verify(&digest).await.unwrap().digest(), digest, "{damage}");
    }
}

#[tokio::test]
async fn a_reader_follows_an_artifact_that_was_deleted_and_stored_again() {
    let (folder, store) = local();
    let data = bytes(1000);
    let digest = store.put_bytes(data.clone()).await.unwrap().digest();
    assert_eq!(store.read_all(&digest, 0..10).await.unwrap(), &data[..10]);
    let other = BlobStore::open(&Url::from_directory_path(folder.path()).unwrap()).unwrap();
    other.delete(&digest).await.unwrap();
    assert!(matches!(store.read(&digest, 0..10).await, Err(Error::NotFound { .. })));
    other.put_bytes(data.clone()).await.unwrap();
    assert_eq!(store.read_all(&digest, 990..1000).await.unwrap(), &data[990..]);
}

#[tokio::test]
async fn a_sweep_takes_old_leftovers_and_nothing_that_is_named() {
    let (folder, store) = local();
    let data = bytes(3 << 20);
    let digest = store.put_bytes(data.clone()).await.unwrap().digest();
    let blobs = folder.path().join("blobs");
    std::fs::write(blobs.join(uuid::Uuid::now_v7().to_string()), b"left by a put that died").unwrap();
    std::fs::write(blobs.join("0199a3c0-0000-7000-8000-000000000000#1"), b"an upload that died").unwrap();
    std::fs::write(blobs.join("note"), b"not ours").unwrap();

    assert_eq!(store.sweep(Duration::from_hours(1)).await.unwrap().objects, 0);
    assert_eq!(store.sweep(Duration::ZERO).await.unwrap().objects, 2);
    assert_eq!(store.sweep(Duration::ZERO).await.unwrap().objects, 0);
    store.verify(&digest).await.unwrap();
    assert!(blobs.join("note").exists());
}

#[tokio::test]
async fn a_sweep_removes_nothing_while_a_manifest_does_not_say_what_it_names() {
    let (folder, store) = local();
    let digest = store.put_bytes(bytes(100)).await.unwrap().digest();
    std::fs::write(folder.path().join("manifests").join(digest.to_string()), b"?").unwrap();
    assert!(matches!(store.sweep(Duration::ZERO).await, Err(Error::Corrupt { .. })));
    assert_eq!(files(&folder.path().join("blobs")).len(), 1);
}

#[tokio::test]
async fn a_sweep_of_logs_takes_old_ones_and_nothing_else() {
    const DAY: Duration = Duration::from_hours(24);
    let (folder, store) = local();
    let digest = store.put_bytes(bytes(1000)).await.unwrap().digest();
    let name = |job, epoch| LogName { job, epoch: Epoch::new(epoch) };
    let (first, second) = (JobId::new(), JobId::new());
    // More than are removed at once.
    let old: Vec<_> = (1..40).map(|epoch| name(first, epoch)).chain([name(second, 1)]).collect();
    let young = name(second, 2);
    let at = |log: &LogName| folder.path().join("logs").join(log.to_string());
    for log in old.iter().chain([&young]) {
        store.put_log(log, bytes(10)).await.unwrap();
    }
    for log in &old {
        age(&at(log), 2 * DAY);
    }
    let note = folder.path().join("logs/note");
    std::fs::write(&note, b"not ours").unwrap();
    age(&note, 2 * DAY);

    assert_eq!(store.sweep_logs(3 * DAY).await.unwrap(), Swept::default());
    assert_eq!(store.sweep_logs(DAY).await.unwrap(), Swept { objects: 40, bytes: 400 });
    assert_eq!(store.sweep_logs(DAY).await.unwrap(), Swept::default());
    for log in &old {
        assert_eq!(store.log(log).await.unwrap(), None, "{log}");
    }
    assert_eq!(store.log(&young).await.unwrap(), Some(bytes(10)));
    assert!(note.exists());
    store.verify(&digest).await.unwrap();
}

#[tokio::test]
async fn a_folder_without_logs_goes_once_nobody_has_changed_it_for_long() {
    let (folder, store) = local();
    let log = LogName { job: JobId::new(), epoch: Epoch::new(1) };
    store.put_log(&log, bytes(10)).await.unwrap();
    let job = folder.path().join("logs").join(log.job.to_string());
    assert_eq!(store.sweep_logs(Duration::ZERO).await.unwrap().objects, 1);
    assert!(job.exists(), "another log of the job may just be written");
    let long_ago = std::time::SystemTime::now() - Duration::from_hours(1);
    std::fs::File::open(&job).unwrap().set_modified(long_ago).unwrap();
    store.sweep_logs(Duration::ZERO).await.unwrap();
    assert!(!job.exists());
    store.put_log(&log, bytes(10)).await.unwrap();
    assert_eq!(store.log(&log).await.unwrap(), Some(bytes(10)));
}

#[tokio::test]
async fn a_sweep_of_logs_leaves_those_of_another_prefix() {
    let objects = Arc::new(object_store::memory::InMemory::new());
    let (a, b) = (BlobStore::new(objects.clone(), "a".into()), BlobStore::new(objects, "a/logs".into()));
    let log = LogName { job: JobId::new(), epoch: Epoch::new(1) };
    for store in [&a, &b] {
        store.put_log(&log, bytes(10)).await.unwrap();
    }
    assert_eq!(a.sweep_logs(Duration::ZERO).await.unwrap(), Swept { objects: 1, bytes: 10 });
    assert_eq!(a.log(&log).await.unwrap(), None);
    assert_eq!(b.log(&log).await.unwrap(), Some(bytes(10)));
}

#[tokio::test]
async fn two_stores_below_two_prefixes_of_one_object_store_are_apart() {
    let objects = Arc::new(object_store::memory::InMemory::new());
    let (a, b) = (BlobStore::new(objects.clone(), "a".into()), BlobStore::new(objects, "b/c".into()));
    let digest = a.put_bytes(bytes(10)).await.unwrap().digest();
    assert!(a.exists(&digest).await.unwrap() && !b.exists(&digest).await.unwrap());
    assert_eq!(b.list().count().await, 0);
    assert_eq!(b.sweep(Duration::ZERO).await.unwrap().objects, 0);
    a.verify(&digest).await.unwrap();
}

/// Makes a file look as old as if it was written then.
fn age(path: &std::path::Path, age: Duration) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(std::time::SystemTime::now() - age).unwrap();
}

#[tokio::test]
async fn the_last_put_decides_what_is_idle() {
    const HOUR: Duration = Duration::from_hours(1);
    let (folder, store) = local();
    let digest = store.put_bytes(bytes(1000)).await.unwrap().digest();
    let manifest = folder.path().join("manifests").join(digest.to_string());
    assert_eq!(store.delete_idle(&digest, HOUR).await.unwrap(), Deletion::InUse);
    age(&manifest, 2 * HOUR);
    store.put_bytes(bytes(1000)).await.unwrap();
    assert_eq!(store.delete_idle(&digest, HOUR).await.unwrap(), Deletion::InUse, "it was put again");
    store.verify(&digest).await.unwrap();
    age(&folder.path().join("touches").join(digest.to_string()), 2 * HOUR);
    assert_eq!(store.delete_idle(&digest, HOUR).await.unwrap(), Deletion::Gone);
    for left in ["manifests", "blobs", "touches", "deletions"] {
        assert_eq!(files(&folder.path().join(left)), [] as [std::path::PathBuf; 0], "{left}");
    }
}

#[tokio::test]
async fn nobody_minds_the_mark_of_a_deletion_that_was_killed() {
    let (folder, store) = local();
    let digest = store.put_bytes(bytes(1000)).await.unwrap().digest();
    let marks = folder.path().join("deletions");
    std::fs::create_dir(&marks).unwrap();
    let mark = marks.join(format!("{digest}-0"));
    std::fs::write(&mark, b"").unwrap();
    age(&mark, Duration::from_mins(10));
    let put = tokio::time::timeout(Duration::from_secs(10), store.put_bytes(bytes(1000)));
    put.await.expect("it does not wait").unwrap();
    age(&mark, Duration::from_hours(24));
    assert_eq!(store.sweep(Duration::from_hours(1)).await.unwrap().objects, 1);
    assert!(!mark.exists());
    // One that is younger stays: it may be of a deletion under way.
    std::fs::write(&mark, b"").unwrap();
    assert_eq!(store.sweep(Duration::ZERO).await.unwrap().objects, 0);
    assert!(mark.exists());
}
