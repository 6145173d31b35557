//! What the tests stand on.

use std::num::NonZeroU32;
use std::sync::OnceLock;
use std::time::Duration;

use deploycore::model::{ArtifactName, ArtifactRef, ClaimId, Completion, Digest, Job, Lease, NewJob, Timings};
use deploycore::port::queue::ClaimRequest;
use deploycore_sql::Postgres;
use deploycore_sql::postgres::Settings;
use servers::postgres::{Database, Options};

/// Nothing here takes longer unless something hangs.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// The server of this binary. It dies with the process.
pub(crate) fn server() -> &'static servers::postgres::Postgres {
    static SERVER: OnceLock<servers::postgres::Postgres> = OnceLock::new();
    SERVER.get_or_init(|| servers::postgres::Postgres::start(&Options::default()).expect("PostgreSQL starts"))
}

pub(crate) fn empty() -> Database<'static> {
    server().create_database().expect("a database is created")
}

pub(crate) async fn open() -> (Postgres, Database<'static>) {
    let database = empty();
    (open_at(&database.url()).await, database)
}

/// With a few connections: many tests share the server.
pub(crate) async fn open_at(url: &str) -> Postgres {
    Postgres::open_with(url, &settings()).await.expect("the database opens")
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
