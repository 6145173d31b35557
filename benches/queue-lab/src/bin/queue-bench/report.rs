//! What is told of a run.

use deploycore::port::queue::Order;
use queue_lab::figures::{Spread, millis, per_second};
use serde::Serialize;

use crate::bare::Bare;
use crate::bed::Bed;
use crate::cli::{Cli, Mode};
use crate::measure::Drained;

/// The figures of a run. What needs a server of our own is absent without one.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) engine: String,
    pub(crate) mode: Mode,
    pub(crate) workers: u16,
    /// Sets of connections that they share.
    pub(crate) processes: usize,
    pub(crate) jobs: u32,
    /// Which job goes first.
    pub(crate) order: Order,
    /// Jobs of a call.
    pub(crate) at_once: usize,
    /// Finished jobs that lay in the table before.
    pub(crate) finished: u32,
    /// Whether a long transaction was open during the drain.
    pub(crate) pinned: bool,

    pub(crate) enqueue_per_s: f64,
    /// Jobs claimed and completed a second.
    pub(crate) drain_per_s: f64,
    /// Of this process, for claiming one and completing one.
    pub(crate) cpu_ms_per_job_client: f64,
    /// Of all processes of the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_ms_per_job_server: Option<f64>,
    /// How long calls took while all workers were at it, the wait for a connection included.
    pub(crate) claim_ms: Option<Spread>,
    pub(crate) complete_ms: Option<Spread>,
    /// How long a claim took with no other caller beside, after the drain.
    pub(crate) claim_alone_ms: Option<Spread>,
    /// From the start of an enqueue to the start of the job by a waiting worker, on an idle queue.
    pub(crate) latency_ms: Option<Spread>,

    /// pgbench with a claim and a completion in one bare statement each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) bare: Vec<BareReport>,
    /// One-minute load of the machine, before and after.
    pub(crate) load: [f64; 2],
}

#[derive(Debug, Serialize)]
pub(crate) struct BareReport {
    pub(crate) table: &'static str,
    pub(crate) drain_per_s: f64,
    /// Of pgbench and the server.
    pub(crate) cpu_ms_per_job: f64,
    /// Client and server of this queue by this.
    pub(crate) cpu_ratio: f64,
}

impl Report {
    pub(crate) fn new(cli: &Cli, bed: &Bed) -> Self {
        Self {
            engine: bed.engine(),
            mode: cli.mode,
            workers: cli.workers,
            processes: bed.processes(),
            jobs: cli.jobs,
            order: cli.order(),
            at_once: cli.at_once(),
            finished: cli.finished,
            pinned: cli.pinned,
            enqueue_per_s: 0.0,
            drain_per_s: 0.0,
            cpu_ms_per_job_client: 0.0,
            cpu_ms_per_job_server: None,
            claim_ms: None,
            complete_ms: None,
            claim_alone_ms: None,
            latency_ms: None,
            bare: Vec::new(),
            load: [0.0; 2],
        }
    }

    pub(crate) fn note_drain(&mut self, drained: &Drained) {
        let per_job = |time| millis(time) / f64::from(drained.jobs);
        self.drain_per_s = per_second(drained.jobs as usize, drained.time);
        self.cpu_ms_per_job_client = per_job(drained.client_cpu);
        self.cpu_ms_per_job_server = drained.server_cpu.map(per_job);
        (self.claim_ms, self.complete_ms) = (drained.claim, drained.complete);
    }

    pub(crate) fn note_bare(&mut self, runs: Vec<Bare>) {
        let own = self.cpu_ms_per_job_client + self.cpu_ms_per_job_server.unwrap_or_default();
        self.bare.extend(runs.into_iter().map(|run| {
            let cpu_ms_per_job = millis(run.cpu) / f64::from(run.jobs);
            BareReport {
                table: run.table,
                drain_per_s: per_second(run.jobs as usize, run.time),
                cpu_ms_per_job,
                cpu_ratio: own / cpu_ms_per_job,
            }
        }));
    }
}
