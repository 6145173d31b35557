//! The data folder of a machine.

#![cfg(feature = "process")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use bytesize::ByteSize;
use deploycore::machine::disk::Error;
use deploycore::machine::journal::{Build, Launched, Links};
use deploycore::machine::{Disk, Instance, Journal, LocalDisk, LocalDiskSettings, journaled_processes};
use deploycore::model::{ArtifactName, ArtifactRef, Goal, Manifest, ServiceName};
use futures::FutureExt;

fn open(data: &Path) -> Result<LocalDisk, Error> {
    LocalDisk::open(data, LocalDiskSettings::default())
}

fn service() -> ServiceName {
    ServiceName::new("web").unwrap()
}

fn artifact(size: u64, manifest: &Manifest) -> ArtifactRef {
    ArtifactRef { name: ArtifactName::new("web-1").unwrap(), digest: manifest.digest(), size }
}

async fn stage(disk: &LocalDisk, bytes: &[u8]) -> Manifest {
    let manifest = Manifest::of(bytes);
    let room = disk.reserve(&artifact(manifest.size(), &manifest)).await.unwrap();
    fs::write(&room.part, bytes).unwrap();
    disk.stage(&manifest).await.unwrap();
    manifest
}

#[test]
fn a_folder_has_one_agent_and_one_version() {
    let data = tempfile::tempdir().unwrap();
    let disk = open(data.path()).unwrap();
    assert!(matches!(open(data.path()), Err(Error::InUse { .. })));
    drop(disk);
    fs::write(data.path().join("version"), "7\n").unwrap();
    let error = open(data.path()).unwrap_err();
    assert!(matches!(&error, Error::Version { found, wanted: 1, .. } if found == "7"), "{error}");
    assert!(error.to_string().contains(data.path().to_str().unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_that_stage_the_same_bytes_do_not_hinder_each_other() {
    let data = tempfile::tempdir().unwrap();
    let disk = Arc::new(open(data.path()).unwrap());
    for round in 0..50_u32 {
        let bytes = round.to_le_bytes();
        let manifest = Arc::new(Manifest::of(&bytes));
        let room = disk.reserve(&artifact(4, &manifest)).await.unwrap();
        fs::write(&room.part, bytes).unwrap();
        let staged = (0..4).map(|_| {
            let (disk, manifest) = (Arc::clone(&disk), Arc::clone(&manifest));
            tokio::spawn(async move { disk.stage(&manifest).await })
        });
        for staged in staged.collect::<Vec<_>>() {
            staged.await.unwrap().unwrap();
        }
        assert_eq!(disk.manifest(&manifest.digest()).await.unwrap().as_ref(), Some(&*manifest));
    }
}

#[tokio::test]
async fn a_blob_is_named_only_when_its_bytes_are_the_artifact() {
    let data = tempfile::tempdir().unwrap();
    let disk = open(data.path()).unwrap();
    let manifest = Manifest::of(b"good bytes");
    let digest = manifest.digest();
    assert!(matches!(disk.stage(&manifest).await, Err(Error::Missing { .. })));
    for bad in [&b"good byteS"[..], b"good bytes and more", b""] {
        let room = disk.reserve(&artifact(10, &manifest)).await.unwrap();
        fs::write(&room.part, bad).unwrap();
        assert!(matches!(disk.stage(&manifest).await, Err(Error::Corrupt { .. })));
        assert!(!disk.holds(&digest).await.unwrap());
    }
    stage(&disk, b"good bytes").await;
    assert!(disk.holds(&digest).await.unwrap());
    assert_eq!(fs::metadata(disk.blob(&digest)).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(disk.manifest(&digest).await.unwrap(), Some(manifest));
    fs::write(data.path().join(format!("blobs/{digest}.part.pieces")), "the swarm's own").unwrap();
    disk.remove(&digest).await.unwrap();
    disk.remove(&digest).await.unwrap();
    assert_eq!(fs::read_dir(data.path().join("blobs")).unwrap().count(), 0);
}

#[tokio::test]
async fn the_next_agent_finds_journal_links_and_blobs() {
    let data = tempfile::tempdir().unwrap();
    let disk = open(data.path()).unwrap();
    let (one, two) = (stage(&disk, b"one").await.digest(), stage(&disk, b"two").await.digest());
    let journal = Journal { bytes_fetched: 5, ..Journal::new(service()) };
    disk.write_journal(&journal).await.unwrap();
    let absent = Links { current: Some(Manifest::of(b"three").digest()), previous: None };
    assert!(matches!(disk.switch(&service(), absent).await, Err(Error::Missing { .. })));
    for links in [Links { current: Some(one), previous: None }, Links { current: Some(two), previous: Some(one) }] {
        disk.switch(&service(), links).await.unwrap();
    }
    assert_eq!(fs::read(disk.folder(&service()).join("current")).unwrap(), b"two");
    assert_eq!(fs::read(disk.folder(&service()).join("previous")).unwrap(), b"one");
    // A crash between the making of a service's folder and its journal, and within a write.
    fs::create_dir(data.path().join("services/new")).unwrap();
    fs::write(disk.folder(&service()).join("journal.new"), "{").unwrap();
    drop(disk);

    let disk = open(data.path()).unwrap();
    let loaded = disk.load().await.unwrap();
    assert_eq!(loaded.services, [(journal, Links { current: Some(two), previous: Some(one) })]);
    assert_eq!(loaded.blobs, [one, two].into());
    disk.switch(&service(), Links::default()).await.unwrap();
    assert_eq!(disk.load().await.unwrap().services[0].1, Links::default());

    fs::write(disk.folder(&service()).join("journal"), r#"{"version": 9}"#).unwrap();
    let error = disk.load().await.unwrap_err();
    assert!(error.to_string().contains("services/web/journal") && error.to_string().contains("version 9"), "{error}");
}

/// How many bytes can be promised.
async fn free(data: &Path) -> u64 {
    let disk = LocalDisk::open(data, LocalDiskSettings { keep_free: ByteSize::b(0) }).unwrap();
    let huge = artifact(u64::MAX / 2, &Manifest::of(b"huge"));
    match disk.reserve(&huge).await.unwrap_err() {
        Error::NoSpace { needed, free, .. } => {
            assert_eq!(needed, u64::MAX / 2);
            free
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn room_is_promised_once() {
    let data = tempfile::tempdir().unwrap();
    let free = free(data.path()).await;
    let disk = LocalDisk::open(data.path(), LocalDiskSettings { keep_free: ByteSize::b(free / 2) }).unwrap();
    // Others use the disk meanwhile, so the numbers are far apart.
    let (one, two) = (artifact(free / 3, &Manifest::of(b"one")), artifact(free / 3, &Manifest::of(b"two")));
    let room = disk.reserve(&one).await.unwrap();
    let again = disk.reserve(&one).await.unwrap();
    assert!(matches!(disk.reserve(&two).await, Err(Error::NoSpace { .. })));
    drop(room);
    assert!(matches!(disk.reserve(&two).await, Err(Error::NoSpace { .. })), "the first is still promised");
    drop(again);
    let _room = disk.reserve(&two).await.unwrap();
}

#[test]
fn room_that_nobody_waits_for_any_more_is_given_back() {
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let data = tempfile::tempdir().unwrap();
        let free = free(data.path()).await;
        let disk = LocalDisk::open(data.path(), LocalDiskSettings { keep_free: ByteSize::b(free / 2) }).unwrap();
        let (one, two) = (artifact(free / 3, &Manifest::of(b"one")), artifact(free / 3, &Manifest::of(b"two")));
        // The only thread for such calls is busy until the one that waits has gone away.
        let (go, wait) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || wait.recv());
        assert!(disk.reserve(&one).now_or_never().is_none());
        drop(go);
        let _room = disk.reserve(&two).await.unwrap();
    });
}

#[tokio::test]
async fn a_damaged_journal_hides_no_other_process() {
    let data = tempfile::tempdir().unwrap();
    let disk = open(data.path()).unwrap();
    let goal: Goal = serde_json::from_str(
        r#"{"service": "web", "epoch": 0, "generation": 1, "artifact": {"name": "web-1", "size": 0,
            "digest": "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"},
            "run": {}, "selector": {}, "origin": {"kind": "deploy"}, "created_at": "2026-01-01T00:00:00Z"}"#,
    )
    .unwrap();
    let instance = Instance { pid: 1, start_time: 2, boot: "another".to_owned(), port: None };
    let mut journal = Journal::new(service());
    journal.process = Some(Launched { build: Build::of(&goal), instance: instance.clone() });
    disk.write_journal(&journal).await.unwrap();
    fs::create_dir(data.path().join("services/damaged")).unwrap();
    fs::write(data.path().join("services/damaged/journal"), "{").unwrap();
    assert_eq!(journaled_processes(data.path()).unwrap(), [instance]);
    // The agent must not guess what runs: it names the file and does not start.
    let error = disk.load().await.unwrap_err();
    assert!(matches!(&error, Error::Journal { path, .. } if path.ends_with("damaged/journal")), "{error}");
}
