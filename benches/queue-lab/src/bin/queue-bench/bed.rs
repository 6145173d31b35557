//! The queue that is measured, and the server that holds it if it is one of our own.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use deploycore::model::JobStatus;
use deploycore::port::JobQueue;
use queue_lab::cpu;
use servers::postgres::{Options, Postgres};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::cli::Cli;

/// The database of the queue, on a server of our own.
const DATABASE: &str = "queue";

/// So many workers share the connections of a process.
const WORKERS_OF_PROCESS: usize = 8;

pub(crate) struct Bed {
    /// One a process, as far as connections go.
    handles: Vec<Arc<dyn JobQueue>>,
    engine: String,
    server: Option<Server>,
}

impl Bed {
    /// Opens the queue, which must be empty.
    pub(crate) async fn open(cli: &Cli) -> Result<Self> {
        let server = if cli.url.is_none() { Some(Server::start()?) } else { None };
        let url = match (&cli.url, &server) {
            (Some(url), _) => url.clone(),
            (None, Some(server)) => server.create(DATABASE)?,
            (None, None) => bail!("neither a URL nor a server"),
        };
        let engine = url.split_once("://").map_or("", |(scheme, _)| scheme).to_owned();
        // A file belongs to one host, and there to one process as a rule.
        let processes = if engine == "sqlite" { 1 } else { usize::from(cli.workers).div_ceil(WORKERS_OF_PROCESS) };
        let mut handles = Vec::with_capacity(processes);
        for _ in 0..processes {
            handles.push(deploycore_sql::open_url(&url).await.context("the queue could not be opened")?.queue);
        }
        let counts = handles[0].stats().await?.counts;
        let open = counts[&JobStatus::Queued] + counts[&JobStatus::Running];
        if open > 0 {
            bail!("the queue holds {open} jobs that have not ended, and this would take them: give an empty one");
        }
        handles[0].set_order(cli.order()).await.context("the order of claims could not be set")?;
        Ok(Self { handles, engine, server })
    }

    /// The queue as the process of a worker has it.
    pub(crate) fn queue(&self, worker: u16) -> Arc<dyn JobQueue> {
        Arc::clone(&self.handles[usize::from(worker) % self.handles.len()])
    }

    pub(crate) fn processes(&self) -> usize {
        self.handles.len()
    }

    pub(crate) fn engine(&self) -> String {
        self.engine.clone()
    }

    pub(crate) fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    /// CPU time of the server's processes so far, if it is our own.
    pub(crate) fn server_cpu(&self) -> Option<Duration> {
        self.server.as_ref().map(Server::cpu)
    }

    /// Finished jobs with their attempts, as a queue has them that ran for long.
    pub(crate) async fn add_history(&self, jobs: u32) -> Result<()> {
        const JOBS: &str = "
            INSERT INTO deploycore.jobs (id, created_at, \"commit\", name, status, priority, max_attempts, max_releases, build_timeout,
                                         eligible_at, delayed, epoch, attempts, claim_id, worker, claimed_at, last_heartbeat,
                                         deadline, finished_at, artifact, digest, size, has_log, build_ms, store_ms)
            SELECT gen_random_uuid(), n, '0123456789abcdef', 'lab', 'SUCCEEDED', 0, 3, 10, 3600000000, n, false, 1, 1,
                   gen_random_uuid(), 'lab-1', n + 1, n + 1, n + 3600000000, n + 2, 'lab-' || n, repeat('0', 64), 9, true, 1, 1
            FROM generate_series(1, ";
        let Some(server) = self.server.as_ref().filter(|_| jobs > 0) else { return Ok(()) };
        let mut connection = server.connect(DATABASE).await?;
        sqlx::raw_sql(AssertSqlSafe(format!("{JOBS}{jobs}) n"))).execute(&mut connection).await?;
        // What a server does sooner or later shall not fall into the measurement.
        for settle in ["VACUUM (ANALYZE) deploycore.jobs", "CHECKPOINT"] {
            sqlx::raw_sql(settle).execute(&mut connection).await?;
        }
        connection.close().await?;
        Ok(())
    }

    /// A transaction that has seen the database as it stands, and stays open until it is dropped.
    pub(crate) async fn pin(&self) -> Result<PgConnection> {
        const PIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM deploycore.queue_settings";
        let server = self.server.as_ref().context("only on a server of our own")?;
        let mut connection = server.connect(DATABASE).await?;
        sqlx::raw_sql(PIN).execute(&mut connection).await?;
        Ok(connection)
    }
}

/// A durable server of our own.
pub(crate) struct Server {
    postgres: Postgres,
}

impl Server {
    fn start() -> Result<Self> {
        // No checkpoint falls into one measurement and not into the other.
        let options = Options::default().with_setting("max_wal_size", "8GB").with_setting("checkpoint_timeout", "1h");
        Ok(Self { postgres: Postgres::start(&options)? })
    }

    /// Makes a database; its URL.
    pub(crate) fn create(&self, database: &str) -> Result<String> {
        queue_lab::database::create(&self.postgres, database)
    }

    pub(crate) async fn connect(&self, database: &str) -> Result<PgConnection> {
        Ok(PgConnection::connect(&self.postgres.url(database)).await?)
    }

    pub(crate) fn program(&self, name: &str, database: &str) -> std::process::Command {
        self.postgres.program(name, database)
    }

    pub(crate) fn cpu(&self) -> Duration {
        self.postgres.process_id().map(cpu::tree).unwrap_or_default()
    }
}
