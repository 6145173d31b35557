//! What the tests stand on.

use std::num::NonZeroU32;
use std::sync::OnceLock;
use std::time::Duration;

use deploycore::model::{ArtifactName, ArtifactRef, ClaimId, Completion, Digest, Job, Lease, NewJob, Timings};
use deploycore::port::queue::ClaimRequest;
use deploycore_sql::MariaDb;
use deploycore_sql::mariadb::Settings;
use servers::mariadb::{Database, Options};

/// Nothing here takes longer unless something hangs.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// The server of this binary. It dies with the process. What a machine's loss of power would do is no matter here.
pub(crate) fn server() -> &'static servers::mariadb::MariaDb {
    static SERVER: OnceLock<servers::mariadb::MariaDb> = OnceLock::new();
    SERVER.get_or_init(|| {
        servers::mariadb::MariaDb::start(&Options::default().with_fsync(false)).expect("MariaDB starts")
    })
}

pub(crate) fn empty() -> Database<'static> {
    server().create_database().expect("a database is created")
}

pub(crate) async fn open() -> (MariaDb, Database<'static>) {
    let database = empty();
    (open_at(&database.url()).await, database)
}

/// With a few connections: many tests share the server.
pub(crate) async fn open_at(url: &str) -> MariaDb {
    MariaDb::open_with(url, &settings()).await.expect("the database opens")
}

pub(crate) fn settings() -> Settings {
    Settings::default().with_connections(4)
}

pub(crate) fn job() -> NewJob {
    NewJob::new("web".parse().unwrap(), "abcdef0".parse().unwrap())
        .with_max_attempts(NonZeroU32::new(100).unwrap())
        .with_max_releases(1_000)
}

pub(crate) fn request(limit: usize) -> ClaimRequest {
    ClaimRequest { claim: ClaimId::new(), worker: "worker-1".parse().unwrap(), limit }
}

pub(crate) fn lease(job: &Job) -> Lease {
    job.running.as_ref().expect("it runs").lease
}

pub(crate) fn success(job: &Job) -> Completion {
    let bytes = format!("{}/{}", job.spec.id, job.epoch);
    let name = ArtifactName::for_job(&job.spec.service, job.spec.id);
    let artifact = ArtifactRef { name, digest: Digest::of(bytes.as_bytes()), size: bytes.len() as u64 };
    Completion::Succeeded { artifact, log: None, timings: Timings::default() }
}
