//! The etcd store on real servers that are killed, stopped, cut off and compacted, and on servers that do not let it in.
#![cfg(feature = "etcd")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use deploycore::model::{Generation, Goal, Revision, ServiceName};
use deploycore::port::chain;
use deploycore::port::goals::{Changes, Error, Expect, GoalStateStore, HISTORY, Stored};
use deploycore_kv::etcd::{ClientCertificate, Goals, Settings, Tls};
use futures::StreamExt;
use futures::stream::BoxStream;
use servers::Network;
use servers::etcd::{Certificates, Etcd, Options};

/// Short, so that the tests are; an election takes one to two seconds.
const ATTEMPT: Duration = Duration::from_millis(700);
const CALL: Duration = Duration::from_secs(6);
/// What turns waiting for ever into a failure.
const LONG: Duration = Duration::from_secs(30);

fn goal(service: &str, generation: u64) -> Goal {
    let json = serde_json::json!({
        "service": service, "epoch": 0, "generation": generation,
        "artifact": {"name": "a", "digest": deploycore::model::Digest::of(b""), "size": generation},
        "run": {}, "selector": {}, "origin": {"kind": "deploy"}, "created_at": "2026-01-01T00:00:00Z",
    });
    serde_json::from_value(json).unwrap()
}

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn cluster(members: usize) -> Etcd {
    Etcd::start(&Options::default().with_members(members)).unwrap()
}

fn settings(endpoints: Vec<String>) -> Settings {
    Settings::new(endpoints).with_limits(ATTEMPT, CALL).with_watch_idle(Duration::from_secs(1))
}

/// The members' addresses, this one first: it is the one that is used.
fn first(etcd: &Etcd, number: usize) -> Vec<String> {
    let mut endpoints = etcd.endpoints();
    endpoints.swap(0, number);
    endpoints
}

async fn open(endpoints: Vec<String>) -> Goals {
    Goals::open(settings(endpoints)).await.unwrap()
}

/// Writes the next goal over what is there, again after each failure that may pass.
async fn write(goals: &Goals, name: &str, generation: u64) -> Revision {
    let start = Instant::now();
    loop {
        let outcome = match goals.get(&service(name)).await {
            Ok(stored) if stored.as_ref().is_some_and(|stored| stored.goal.position.generation.0 == generation) => {
                // An earlier try took place after all: repeating it tells so.
                goals.put(&goal(name, generation), Expect::Absent).await
            }
            Ok(stored) => {
                let expect = stored.map_or(Expect::Absent, |stored| Expect::At(stored.revision));
                goals.put(&goal(name, generation), expect).await
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(revision) => return revision,
            // A try that was given up took place between this one's read and write.
            Err(Error::Conflict { .. }) => {}
            Err(error) => assert!(error.is_retryable(), "{}", chain(&error)),
        }
        assert!(start.elapsed() < LONG, "nothing can be written any more");
    }
}

async fn next(watch: &mut BoxStream<'static, Result<Changes, Error>>) -> Changes {
    let event = tokio::time::timeout(LONG, watch.next()).await.expect("the watch tells of a change");
    event.expect("the watch goes on").unwrap_or_else(|error| panic!("{}", chain(&error)))
}

/// Follows a watch until it has told of a goal.
async fn told(watch: &mut BoxStream<'static, Result<Changes, Error>>, name: &str, generation: u64) -> Vec<Stored> {
    let mut all = Vec::new();
    loop {
        all.extend(next(watch).await.goals);
        let found = |stored: &Stored| stored.goal == goal(name, generation);
        if all.iter().any(found) {
            assert!(all.is_sorted_by(|a, b| a.revision < b.revision), "something is told twice or out of order");
            return all;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_killed_one_by_one_lose_no_write_and_end_no_watch() {
    const SERVICES: usize = 3;
    let mut etcd = cluster(3);
    let (goals, polling) = (open(etcd.endpoints()).await, open(first(&etcd, 2)).await);
    let mut watch = goals.watch(Revision(0));
    let (over, count) = (AtomicBool::new(false), AtomicU64::new(0));

    let writers = futures::future::join_all((0..SERVICES).map(|number| {
        let (goals, over, count) = (goals.clone(), &over, &count);
        async move {
            let (name, mut acknowledged) = (format!("s{number}"), Vec::new());
            while !over.load(Ordering::SeqCst) {
                let generation = acknowledged.len() as u64 + 1;
                acknowledged.push(write(&goals, &name, generation).await);
                count.fetch_add(1, Ordering::SeqCst);
            }
            (name, acknowledged)
        }
    }));
    let polls = async {
        let mut newest = BTreeMap::new();
        while !over.load(Ordering::SeqCst) {
            let Ok(list) = polling.list("").await else { continue };
            for stored in list.goals {
                let (service, position) = (stored.goal.service, stored.goal.position);
                let before = newest.insert(service.clone(), position);
                assert!(before.is_none_or(|before| before <= position), "{service} fell from {before:?} to {position}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let kills = async {
        let more = async |wanted: u64| {
            let (begun, start) = (count.load(Ordering::SeqCst), Instant::now());
            while count.load(Ordering::SeqCst) < begun + wanted {
                assert!(start.elapsed() < LONG, "the writes do not go on");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        more(20).await;
        // Each in turn, so the leader and the member that is written to and watched are among them.
        for number in 0..3 {
            etcd.kill(number);
            more(20).await;
            etcd = tokio::task::spawn_blocking(move || {
                etcd.start_again(number).unwrap();
                etcd.agreed().unwrap();
                etcd
            })
            .await
            .unwrap();
            more(20).await;
        }
        over.store(true, Ordering::SeqCst);
        etcd
    };
    let watched = async {
        let mut newest: BTreeMap<ServiceName, Stored> = BTreeMap::new();
        let mut revision = Revision(0);
        loop {
            let ended = over.load(Ordering::SeqCst);
            let Ok(event) = tokio::time::timeout(Duration::from_secs(4), watch.next()).await else {
                if ended {
                    return newest;
                }
                continue;
            };
            for stored in event.unwrap().unwrap_or_else(|error| panic!("{}", chain(&error))).goals {
                assert!(stored.revision > revision, "{} after {revision}", stored.revision);
                revision = stored.revision;
                if let Some(before) = newest.insert(stored.goal.service.clone(), stored.clone()) {
                    assert!(before.goal.position < stored.goal.position, "a generation fell");
                }
            }
        }
    };
    let (written, (), etcd, watched) = futures::join!(writers, polls, kills, watched);

    let goals = open(first(&etcd, 1)).await;
    for (name, acknowledged) in written {
        let last = Stored { revision: *acknowledged.last().unwrap(), goal: goal(&name, acknowledged.len() as u64) };
        assert_eq!(goals.get(&service(&name)).await.unwrap().as_ref(), Some(&last), "an acknowledged goal is lost");
        assert_eq!(watched[&service(&name)], last, "the watch missed the last goal");
        let kept = goals.history(&service(&name), HISTORY).await.unwrap();
        for (stored, (generation, revision)) in kept.iter().zip(acknowledged.iter().enumerate().rev()) {
            assert_eq!(
                (stored.goal.position.generation, stored.revision),
                (Generation(generation as u64 + 1), *revision)
            );
        }
        assert_eq!(kept.len(), acknowledged.len().min(HISTORY));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_stopped_is_passed_by_and_tells_nothing_old_afterwards() {
    let mut etcd = cluster(3);
    let leader = etcd.leader().unwrap();
    let goals = open(first(&etcd, leader)).await;
    write(&goals, "web", 1).await;
    let mut watch = goals.watch(Revision(0));
    told(&mut watch, "web", 1).await;

    etcd.stop(leader).unwrap();
    let start = Instant::now();
    write(&goals, "web", 2).await;
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    told(&mut watch, "web", 2).await;
    let alone = settings(vec![etcd.endpoints()[leader].clone()]).with_limits(ATTEMPT, ATTEMPT);
    let refused = Goals::open(alone).await.unwrap_err();
    assert!(refused.is_retryable(), "{}", chain(&refused));

    // It believes to lead for a moment. What it answers, if it does, must be of now.
    etcd.resume(leader).unwrap();
    let (start, mut answers) = (Instant::now(), 0);
    while answers < 20 {
        assert!(start.elapsed() < LONG, "it does not come back");
        let alone = settings(vec![etcd.endpoints()[leader].clone()]);
        let Ok(alone) = Goals::open(alone).await else { continue };
        if let Ok(stored) = alone.get(&service("web")).await {
            assert_eq!(stored.unwrap().goal, goal("web", 2));
            answers += 1;
        }
    }
    write(&goals, "web", 3).await;
    told(&mut watch, "web", 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_most_members_calls_fail_in_time_and_all_goes_on_when_they_are_back() {
    let mut etcd = cluster(3);
    let goals = open(etcd.endpoints()).await;
    let hasty = settings(etcd.endpoints()).with_limits(Duration::from_millis(300), Duration::from_secs(1));
    let hasty = Goals::open(hasty.with_watch_limit(Duration::from_millis(500))).await.unwrap();
    let first = write(&goals, "web", 1).await;
    let (mut watch, mut hasty) = (goals.watch(first), hasty.watch(Revision(0)));
    told(&mut hasty, "web", 1).await;
    etcd.stop(1).unwrap();
    etcd.stop(2).unwrap();

    let (web, start) = (service("web"), Instant::now());
    let second = goal("web", 2);
    let (put, get, list, changes, history) = futures::join!(
        goals.put(&second, Expect::At(first)),
        goals.get(&web),
        goals.list(""),
        goals.changes(Revision(0)),
        goals.history(&web, 1),
    );
    assert!(start.elapsed() < CALL + Duration::from_secs(2), "{:?}", start.elapsed());
    let outcomes = [put.map(drop), get.map(drop), list.map(drop), changes.map(drop), history.map(drop)];
    for outcome in outcomes {
        let error = outcome.expect_err("a member without the others knows nothing for sure");
        assert!(error.is_retryable(), "{}", chain(&error));
        assert!(chain(&error).contains(&etcd.endpoints()[0]), "{}", chain(&error));
    }
    // A watch with less patience ends with its error.
    let ended = tokio::time::timeout(LONG, hasty.next()).await.expect("it gives up").expect("it says why").unwrap_err();
    assert!(ended.is_retryable(), "{}", chain(&ended));
    assert!(hasty.next().await.is_none());

    etcd.resume(1).unwrap();
    etcd.resume(2).unwrap();
    // The write may have waited inside etcd: the same call again gives its revision, or takes place now.
    let start = Instant::now();
    let revision = loop {
        match goals.put(&second, Expect::At(first)).await {
            Ok(revision) => break revision,
            Err(error) => assert!(error.is_retryable() && start.elapsed() < LONG, "{}", chain(&error)),
        }
    };
    let seen = told(&mut watch, "web", 2).await;
    assert_eq!(seen, [Stored { revision, goal: second }]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_whose_member_stood_still_over_a_compaction_misses_nothing() {
    let mut etcd = cluster(3);
    // Not the leader: the others go on without an election.
    let still = (etcd.leader().unwrap() + 1) % 3;
    let goals = open(first(&etcd, still)).await;
    let others: Vec<_> = etcd.endpoints().into_iter().filter(|endpoint| *endpoint != etcd.endpoints()[still]).collect();
    let elsewhere = open(others).await;
    write(&elsewhere, "web", 1).await;
    let mut watch = goals.watch(Revision(0));
    told(&mut watch, "web", 1).await;
    etcd.stop(still).unwrap();
    for generation in 2..30 {
        write(&elsewhere, "web", generation).await;
        write(&elsewhere, "api", generation).await;
    }
    etcd.compact().unwrap();
    let start = Instant::now();
    let seen = told(&mut watch, "web", 29).await;
    assert!(start.elapsed() < Duration::from_secs(6), "the silence was not noticed for {:?}", start.elapsed());
    assert_eq!(seen.iter().filter(|stored| stored.goal == goal("web", 29)).count(), 1);
    etcd.resume(still).unwrap();
    write(&elsewhere, "api", 30).await;
    etcd.agreed().unwrap();
    etcd.compact().unwrap();
    write(&elsewhere, "api", 31).await;
    told(&mut watch, "api", 31).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_from_the_others_is_passed_by_and_tells_nothing_old() {
    if !Network::is_allowed() {
        eprintln!("not root: no partition in network namespaces is tested");
        return;
    }
    let etcd = Etcd::start(&Options::default().with_members(3).with_network()).unwrap();
    let (network, leader) = (etcd.network().unwrap(), etcd.leader().unwrap());
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    let goals = open(first(&etcd, leader)).await;
    // Nothing but the server itself may end this watch: it reads nothing by itself in the time of the test.
    let patient = settings(first(&etcd, leader)).with_watch_idle(Duration::from_mins(10));
    let (mut watch, mut patient) = (goals.watch(Revision(0)), Goals::open(patient).await.unwrap().watch(Revision(0)));
    write(&goals, "web", 1).await;
    told(&mut watch, "web", 1).await;
    told(&mut patient, "web", 1).await;

    for other in others {
        network.cut(leader, other).unwrap();
    }
    // It still talks to us, and believes to lead for a while.
    let written = write(&goals, "web", 2).await;
    let alone = Settings::new([&etcd.endpoints()[leader]]).with_limits(ATTEMPT, Duration::from_secs(2));
    let refused = Goals::open(alone).await.unwrap_err();
    assert!(refused.is_retryable(), "{}", chain(&refused));
    assert_eq!(told(&mut watch, "web", 2).await, [Stored { revision: written, goal: goal("web", 2) }]);
    assert_eq!(told(&mut patient, "web", 2).await, [Stored { revision: written, goal: goal("web", 2) }]);

    for other in others {
        network.heal(leader, other).unwrap();
    }
    let back = open(vec![etcd.endpoints()[leader].clone()]).await;
    assert_eq!(back.get(&service("web")).await.unwrap().unwrap().goal, goal("web", 2));
    write(&back, "web", 3).await;
    told(&mut watch, "web", 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_does_not_grow_for_ever() {
    let etcd = cluster(1);
    let goals = open(etcd.endpoints()).await;
    for generation in 1..=150 {
        write(&goals, "web", generation).await;
    }
    write(&goals, "web2", 1).await;
    let history = goals.history(&service("web"), 1_000).await.unwrap();
    assert!((HISTORY..HISTORY + 30).contains(&history.len()), "{} goals are kept", history.len());
    let generations: Vec<_> = history.iter().map(|stored| stored.goal.position.generation.0).collect();
    let wanted: Vec<_> = (1..=150).rev().take(history.len()).collect();
    assert_eq!(generations, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_of_etcd_costs_neither_goals_nor_changes_nor_history() {
    let etcd = cluster(1);
    let goals = open(etcd.endpoints()).await;
    let mut watch = goals.watch(Revision(0));
    let mut written = Vec::new();
    for generation in 1..20 {
        written.insert(0, Stored { revision: write(&goals, "web", generation).await, goal: goal("web", generation) });
        etcd.compact().unwrap();
    }
    told(&mut watch, "web", 19).await;
    assert_eq!(goals.history(&service("web"), HISTORY).await.unwrap(), written);
    assert_eq!(goals.changes(Revision(0)).await.unwrap().goals, written[..1]);
    assert_eq!(goals.list("").await.unwrap().goals, written[..1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_is_let_in_by_password_and_again_when_its_token_is_lost() {
    let mut etcd = cluster(1);
    let endpoints = etcd.endpoints();
    let alike = || settings(endpoints.clone()).with_prefix("/goals");
    // As long as etcd knows nobody, it lets everybody in.
    let early = Goals::open(alike().with_user("web", "right")).await.unwrap();
    write(&early, "early", 1).await;
    let mut watch = early.watch(Revision(0));
    told(&mut watch, "early", 1).await;
    etcd.enable_auth("web", "right", "/goals/").unwrap();
    write(&early, "early", 2).await;
    told(&mut watch, "early", 2).await;

    for (settings, wanted) in [
        (alike().with_user("web", "wrong"), "user \"web\""),
        (alike().with_user("nobody", "right"), "user \"nobody\""),
        (alike(), "give a user"),
        (
            alike().with_user("web", "right").with_prefix("/else"),
            "role grant-permission ROLE --prefix=true readwrite /else/",
        ),
    ] {
        let start = Instant::now();
        let refused = Goals::open(settings).await.unwrap_err();
        one_line(&refused, wanted);
        assert!(!refused.is_retryable() && start.elapsed() < CALL, "{}", chain(&refused));
    }

    let goals = Goals::open(alike().with_user("web", "right")).await.unwrap();
    let printed = format!("{goals:?}");
    assert!(printed.contains("Sensitive") && !printed.contains("right"), "{printed}");
    let mut watch = goals.watch(Revision(0));
    write(&goals, "web", 1).await;
    told(&mut watch, "web", 1).await;
    // etcd forgets its tokens.
    etcd.kill(0);
    etcd.start_again(0).unwrap();
    write(&goals, "web", 2).await;
    told(&mut watch, "web", 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_needs_the_right_ca_and_the_right_certificate() {
    let etcd = Etcd::start(&Options::default().with_tls()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (own, foreign) = (etcd.certificates().unwrap(), Certificates::new(folder.path()).unwrap());
    let client =
        |from: &Certificates| ClientCertificate { certificate: from.client.clone(), key: from.client_key.clone() };
    let right = Tls { ca: own.ca.clone(), client: Some(client(own)), server_name: None };

    let goals = Goals::open(settings(etcd.endpoints()).with_tls(right.clone())).await.unwrap();
    write(&goals, "web", 1).await;
    let url = format!(
        "etcds://{}?ca={}&cert={}&key={}",
        etcd.endpoints()[0].trim_start_matches("https://"),
        own.ca.display(),
        own.client.display(),
        own.client_key.display()
    );
    let by_url = Goals::open_url(&url).await.unwrap();
    assert_eq!(by_url.get(&service("web")).await.unwrap().unwrap().goal, goal("web", 1));

    let text = folder.path().join("text.pem");
    std::fs::write(&text, "no certificate").unwrap();
    let mixed = ClientCertificate { certificate: own.client.clone(), key: foreign.client_key.clone() };
    for (tls, wanted) in [
        (Tls { ca: foreign.ca.clone(), ..right.clone() }, "give the CA that signed it"),
        (
            Tls { server_name: Some("other.example".to_owned()), ..right.clone() },
            "by a name or address that stands in it",
        ),
        (Tls { client: None, ..right.clone() }, "wants another certificate from this side"),
        (Tls { client: Some(client(&foreign)), ..right.clone() }, "wants another certificate from this side"),
        (Tls { client: Some(mixed), ..right.clone() }, "the key that belongs to it"),
        (Tls { ca: text.clone(), ..right.clone() }, "holds no certificate in PEM"),
        (Tls { ca: "/no/such.pem".into(), ..right.clone() }, "/no/such.pem cannot be read"),
    ] {
        let start = Instant::now();
        let refused = Goals::open(settings(etcd.endpoints()).with_tls(tls)).await.unwrap_err();
        one_line(&refused, wanted);
        assert!(!refused.is_retryable() && start.elapsed() < CALL, "{}", chain(&refused));
    }
    let plain = etcd.endpoints()[0].replace("https", "http");
    let short = settings(vec![plain]).with_limits(ATTEMPT, Duration::from_secs(1));
    let refused = Goals::open(short).await.unwrap_err();
    one_line(&refused, "http or https");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_is_named_and_costs_nothing_beside_one_that_is() {
    let etcd = cluster(1);
    let held = servers::Port::take().unwrap();
    let port = held.number();
    let nobody = format!("http://127.0.0.1:{port}");
    let start = Instant::now();
    let limits = settings(vec![nobody.clone()]).with_limits(ATTEMPT, Duration::from_secs(2));
    let refused = Goals::open(limits).await.unwrap_err();
    one_line(&refused, &nobody);
    assert!(refused.is_retryable() && start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());

    let both = [nobody, etcd.endpoints()[0].clone()];
    let goals = open(both.to_vec()).await;
    write(&goals, "web", 1).await;

    // What is below the prefix and is not ours.
    etcd.ctl(&["put", "/deploycore/goals/api", "{}"]).unwrap();
    let refused = goals.get(&service("api")).await.unwrap_err();
    one_line(&refused, "/deploycore/goals/api");
    assert!(!refused.is_retryable());
    etcd.ctl(&["put", "/deploycore/head", "2"]).unwrap();
    let refused = goals.list("").await.unwrap_err();
    one_line(&refused, "layout \"2\"");
}

fn one_line(error: &Error, wanted: &str) {
    let text = chain(error);
    println!("{text}");
    assert!(text.contains(wanted), "{wanted:?} is not in: {text}");
    assert!(!text.contains('\n'), "{text:?}");
}
