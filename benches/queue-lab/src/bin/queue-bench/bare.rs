//! The least that a queue on PostgreSQL can do: a claim in one statement over the partial index of waiting jobs, and a completing UPDATE, run
//! by pgbench with as many clients as there were workers. No epoch, no history, no repeats of lost replies.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use deploycore::port::JobQueue;
use deploycore::port::queue::MAX_BATCH;
use queue_lab::cpu;
use queue_lab::job::job;
use sqlx::Connection;

use crate::bed::Server;
use crate::cli::Cli;

/// What one table gave.
pub(crate) struct Bare {
    pub(crate) table: &'static str,
    pub(crate) jobs: u32,
    pub(crate) time: Duration,
    /// Of pgbench and the server.
    pub(crate) cpu: Duration,
}

/// The queue's own table, with all its indexes.
const SAME: &str = "\
UPDATE deploycore.jobs SET status = 'RUNNING', epoch = epoch + 1, attempts = attempts + 1, claim_id = gen_random_uuid(), worker = 'lab',
    claimed_at = 1, last_heartbeat = 1, deadline = 1
WHERE id = (SELECT id FROM deploycore.jobs WHERE status = 'QUEUED' AND NOT delayed AND concurrency_key IS NULL
            ORDER BY priority DESC, turn, created_at, id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id \\gset
UPDATE deploycore.jobs SET status = 'SUCCEEDED', finished_at = 1, artifact = 'a', digest = 'd', size = 1
WHERE id = :id AND status = 'RUNNING';
";
/// As the queue's own connections are told.
const OPTIONS: &str = "-c enable_seqscan=off -c enable_bitmapscan=off -c plan_cache_mode=force_generic_plan -c jit=off";
/// A table with nothing but a key, a status and an order.
const LEAST_TABLE: &str = "
    CREATE TABLE least (id uuid PRIMARY KEY, created_at bigint NOT NULL, status text NOT NULL, worker text, finished_at bigint);
    CREATE INDEX ON least (created_at, id) WHERE status = 'QUEUED'";
const LEAST_FILL: &str = "INSERT INTO least SELECT gen_random_uuid(), n, 'QUEUED' FROM generate_series(1, ";
const LEAST: &str = "\
UPDATE least SET status = 'RUNNING', worker = 'lab'
WHERE id = (SELECT id FROM least WHERE status = 'QUEUED' ORDER BY created_at, id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id \\gset
UPDATE least SET status = 'SUCCEEDED', finished_at = 1 WHERE id = :id AND status = 'RUNNING';
";

/// Both tables, one after the other.
pub(crate) async fn run(server: &Server, cli: &Cli) -> Result<Vec<Bare>> {
    // So many more than are taken that no client finds all others' jobs locked and none left.
    let filled = cli.jobs + 2 * u32::from(cli.workers);
    let url = server.create("bare")?;
    let queue = deploycore_sql::open_url(&url).await?.queue;
    fill(&*queue, filled as usize).await?;
    let mut connection = server.connect("bare").await?;
    sqlx::raw_sql(LEAST_TABLE).execute(&mut connection).await?;
    let least = sqlx::AssertSqlSafe(format!("{LEAST_FILL}{filled}) n"));
    sqlx::raw_sql(least).execute(&mut connection).await?;
    sqlx::raw_sql("VACUUM (ANALYZE)").execute(&mut connection).await?;
    connection.close().await?;
    Ok(vec![pgbench(server, cli, "the queue's own", SAME)?, pgbench(server, cli, "the least", LEAST)?])
}

async fn fill(queue: &dyn JobQueue, jobs: usize) -> Result<()> {
    for done in (0..jobs).step_by(MAX_BATCH) {
        let batch: Vec<_> = (0..MAX_BATCH.min(jobs - done)).map(|_| job()).collect();
        queue.enqueue(&batch).await?;
    }
    Ok(())
}

fn pgbench(server: &Server, cli: &Cli, table: &'static str, script: &str) -> Result<Bare> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("claim-and-complete.sql");
    std::fs::write(&path, script)?;
    let each = cli.jobs / u32::from(cli.workers);
    let (server_before, own_before) = (server.cpu(), cpu::own().children);
    let start = Instant::now();
    let mut command = server.program("pgbench", "bare");
    command.args(["-n", "-M", "prepared", "-j", "2", "-c", &cli.workers.to_string(), "-t", &each.to_string(), "-f"]);
    command.arg(&path).env("PGOPTIONS", OPTIONS);
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
    let time = start.elapsed();
    let said = String::from_utf8_lossy(&output.stdout);
    let jobs = each * u32::from(cli.workers);
    if !output.status.success() || !said.contains(&format!("processed: {jobs}/{jobs}")) {
        bail!("{}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    // Its backends end with pgbench, and are waited for by the server's first process.
    let server_cpu = server.cpu().saturating_sub(server_before);
    Ok(Bare { table, jobs, time, cpu: server_cpu + cpu::own().children.saturating_sub(own_before) })
}
