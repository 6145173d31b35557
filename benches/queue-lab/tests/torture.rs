//! A short run of the torture on each database, with real processes and real signals.

use std::path::PathBuf;
use std::time::Duration;

use queue_lab::torture::{Report, Settings, Target, run};
use servers::postgres::{Options, Postgres};

async fn torture(mut target: Target, fire: Duration) -> Report {
    let settings = Settings {
        program: PathBuf::from(env!("CARGO_BIN_EXE_queue-torture")),
        fire,
        clients: 6,
        lost_after: Duration::from_millis(600),
        seed: 7,
    };
    let report = run(&settings, &mut target).await.expect("the run ends");
    println!("{report:#?}");
    assert!(report.is_good(), "{report:#?}");
    assert!(report.kills >= 4 && report.stops >= 6, "the fire was low: the test shows little");
    assert!(report.counts.zombies_refused > 0, "no zombie came: the test shows little");
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_keeps_its_contract_under_fire() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/queue.db", folder.path().display());
    let report = torture(Target::Url(url), Duration::from_secs(6)).await;
    assert!(report.recovery_ms.is_some(), "no killed client held a job: the test shows little");
}

/// Long enough for the server to be killed once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_keeps_its_contract_under_fire() {
    let server = Postgres::start(&Options::default()).unwrap();
    let report = torture(Target::server(server).unwrap(), Duration::from_secs(9)).await;
    assert!(report.database_kills > 0, "the server lived: the test shows little");
}
