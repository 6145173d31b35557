//! The redb store over restarts, crashes and files that are not its own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use deploycore::model::{Generation, Goal, Revision, ServiceName};
use deploycore::port::chain;
use deploycore::port::goals::{Error, Expect, GoalStateStore, HISTORY};
use deploycore_kv::redb::Goals;
use futures::StreamExt;

fn goal(service: &str, generation: u64) -> Goal {
    let json = serde_json::json!({
        "service": service, "epoch": 0, "generation": generation,
        "artifact": {"name": "a", "digest": deploycore::model::Digest::of(b""), "size": generation},
        "run": {}, "selector": {}, "origin": {"kind": "deploy"}, "created_at": "2026-01-01T00:00:00Z",
    });
    serde_json::from_value(json).unwrap()
}

async fn write(goals: &Goals, goal: &Goal) -> Result<Revision, Error> {
    let stored = goals.get(&goal.service).await?;
    goals.put(goal, stored.map_or(Expect::Absent, |stored| Expect::At(stored.revision))).await
}

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

#[tokio::test]
async fn a_restart_finds_goals_history_revision_and_compaction() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("goals.redb");
    let goals = Goals::open(&file).await.unwrap();
    for generation in 1..=HISTORY as u64 + 3 {
        write(&goals, &goal("web", generation)).await.unwrap();
        write(&goals, &goal("api", generation)).await.unwrap();
    }
    goals.compact(Revision(50)).await.unwrap();
    let mut watch = goals.watch(Revision(50));
    let (list, history) = (goals.list("").await.unwrap(), goals.history(&service("web"), 1_000).await.unwrap());
    let changes = goals.changes(Revision(50)).await.unwrap();
    drop(goals);
    // What the watch had to tell is told; then it ends with an error that a new watch may mend.
    assert_eq!(watch.next().await.unwrap().unwrap(), changes);
    assert!(watch.next().await.unwrap().unwrap_err().is_retryable());
    assert!(watch.next().await.is_none());

    let goals = Goals::open(&file).await.unwrap();
    assert_eq!(goals.list("").await.unwrap(), list);
    assert_eq!(goals.history(&service("web"), 1_000).await.unwrap(), history);
    assert_eq!(history.len(), HISTORY);
    assert_eq!(goals.changes(Revision(50)).await.unwrap(), changes);
    let forgotten = goals.changes(Revision(49)).await;
    assert!(matches!(forgotten, Err(Error::Compacted { oldest: Revision(50), .. })), "{forgotten:?}");
    let next = write(&goals, &goal("web", 1_000)).await.unwrap();
    assert_eq!(next, Revision(list.revision.0 + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_has_its_name_only_when_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let seen = Arc::new(AtomicUsize::new(0));
    for number in 0..20 {
        let file = folder.path().join(format!("{number}.redb"));
        let (looked, place) = (seen.clone(), file.clone());
        let over = Arc::new(AtomicBool::new(false));
        let end = over.clone();
        // What a crash at any moment would leave.
        let looks = std::thread::spawn(move || {
            while !end.load(Ordering::SeqCst) {
                if let Ok(bytes) = std::fs::read(&place) {
                    looked.fetch_add(1, Ordering::SeqCst);
                    assert!(bytes.starts_with(b"redb"), "{} bytes that are no redb file", bytes.len());
                }
            }
        });
        let opened = Goals::open(&file).await.map(drop);
        over.store(true, Ordering::SeqCst);
        looks.join().unwrap();
        opened.unwrap();
    }
    assert!(seen.load(Ordering::SeqCst) > 0);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 20, "nothing else is left");
}

#[tokio::test]
async fn many_who_create_one_file_agree_on_one_owner() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("goals.redb");
    let opened = futures::future::join_all((0..8).map(|_| Goals::open(&file))).await;
    let (owners, others): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
    assert_eq!(owners.len(), 1);
    assert!(others.into_iter().all(|other| other.unwrap_err().is_retryable()));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_second_owner_is_told_which_file_is_taken_and_may_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("goals.redb");
    let first = Goals::open(&file).await.unwrap();
    let error = Goals::open(&file).await.unwrap_err();
    assert!(error.is_retryable());
    assert!(chain(&error).contains(file.to_str().unwrap()), "{}", chain(&error));
    let clone = first.clone();
    drop(first);
    assert!(Goals::open(&file).await.is_err(), "a clone still owns the file");
    drop(clone);
    Goals::open(&file).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_not_a_goal_file_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("text"), "not a database at all").unwrap();
    std::fs::create_dir(at("folder")).unwrap();
    let foreign = redb::Database::create(at("foreign")).unwrap();
    let transaction = foreign.begin_write().unwrap();
    transaction.open_table(redb::TableDefinition::<u64, u64>::new("other")).unwrap();
    transaction.commit().unwrap();
    drop(foreign);
    drop(Goals::open(at("newer")).await.unwrap());
    let newer = redb::Database::create(at("newer")).unwrap();
    let transaction = newer.begin_write().unwrap();
    transaction.open_table(redb::TableDefinition::<&str, u64>::new("meta")).unwrap().insert("format", 2).unwrap();
    transaction.commit().unwrap();
    drop(newer);
    for name in ["text", "folder", "foreign", "newer", "missing/goals.redb"] {
        let before = std::fs::read(at(name)).ok();
        let error = Goals::open(at(name)).await.unwrap_err();
        assert!(chain(&error).contains(at(name).to_str().unwrap()), "{name}: {}", chain(&error));
        assert!(!error.is_retryable(), "{name}: {}", chain(&error));
        if name == "text" {
            assert_eq!(std::fs::read(at(name)).ok(), before, "a file of someone else was written");
        }
    }
}

#[tokio::test]
async fn a_url_names_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("goals.redb");
    drop(Goals::open_url(&format!("redb://{}", file.display())).await.unwrap());
    assert!(file.exists());
    for url in ["redb://", "redb:goals", "sqlite:///x", "redb:///x?mode=ro", "/x"] {
        let refused = Goals::open_url(url).await;
        assert!(matches!(refused, Err(Error::Invalid(_))), "{url}: {refused:?}");
    }
}

const FILE: &str = "DEPLOYCORE_TEST_GOAL_FILE";
const SERVICES: u64 = 8;

/// The process that is killed: it writes for ever, and prints what was acknowledged. Started by the test below.
#[test]
#[ignore = "runs as a child of another test"]
fn child_that_writes() {
    let Ok(file) = std::env::var(FILE) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let goals = Goals::open(file).await.unwrap();
        let writers = (0..SERVICES).map(|number| {
            let goals = goals.clone();
            async move {
                let name = format!("s{number}");
                loop {
                    let stored = goals.get(&service(&name)).await.unwrap();
                    let generation = stored.map_or(0, |stored| stored.goal.position.generation.0) + 1;
                    let revision = write(&goals, &goal(&name, generation)).await.unwrap();
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "\nack {name} {generation} {revision}").unwrap();
                    out.flush().unwrap();
                }
            }
        });
        futures::future::join_all(writers).await;
    });
}

/// Starts the child, kills it with SIGKILL after some acknowledged writes, and gives the last of each service.
fn killed(file: &Path, after: usize) -> BTreeMap<String, (u64, u64)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child_that_writes", "--exact", "--ignored", "--nocapture"])
        .env(FILE, file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut acknowledged = BTreeMap::new();
    let mut count = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).split(b'\n') {
        let line = String::from_utf8(line.unwrap()).unwrap();
        // The last line may be cut by the kill: it has three numbers only when it is whole or its end is lost, which is no
        // greater number than was acknowledged.
        let words: Vec<_> = line.split(' ').collect();
        if let ["ack", name, generation, revision] = words[..]
            && let (Ok(generation), Ok(revision)) = (generation.parse(), revision.parse())
        {
            acknowledged.insert(name.to_owned(), (generation, revision));
            count += 1;
            if count == after {
                // SIGKILL. What is in the pipe is read to its end.
                child.kill().unwrap();
            }
        }
    }
    assert!(!child.wait().unwrap().success());
    assert!(count >= after, "the child ended by itself");
    acknowledged
}

#[tokio::test]
async fn acknowledged_goals_survive_sigkill() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("goals.redb");
    for after in [1, 7, 40, 100, 173, 64] {
        let acknowledged = tokio::task::spawn_blocking({
            let file = file.clone();
            move || killed(&file, after)
        });
        let acknowledged = acknowledged.await.unwrap();
        let goals = Goals::open(&file).await.unwrap();
        let list = goals.list("").await.unwrap();
        for (name, (generation, revision)) in acknowledged {
            let stored = goals.get(&service(&name)).await.unwrap().expect("an acknowledged goal is there");
            assert!(stored.goal.position.generation >= Generation(generation), "{name}: {generation} is lost");
            assert!(stored.revision >= Revision(revision));
            // One write may have been under way when the process died; it is whole or not there.
            assert!(stored.goal.position.generation.0 <= generation + 1);
            assert_eq!(stored.goal, goal(&name, stored.goal.position.generation.0));
            let history = goals.history(&service(&name), HISTORY).await.unwrap();
            assert_eq!(history[0], stored);
            let generations: Vec<_> = history.iter().map(|stored| stored.goal.position.generation.0).collect();
            let wanted: Vec<_> = (1..=generations[0]).rev().take(HISTORY).collect();
            assert_eq!(generations, wanted, "{name}: the history has a gap");
            assert!(stored.revision <= list.revision);
        }
    }
}
