//! The queue on SQLite, with every commit synced.

use std::sync::Arc;

use deploycore::model::{ArtifactRef, ClaimId, Completion, Digest, Job, Timings, WorkerName};
use deploycore::port::queue::ClaimRequest;
use deploycore::port::{JobQueue, JobQueueExt};
use deploycore_benches::{folder, job, runtime};
use deploycore_sql::Sqlite;
use divan::counter::ItemsCount;
use tempfile::TempDir;
use tokio::runtime::Runtime;

fn main() {
    divan::main();
}

struct Bed {
    runtime: Runtime,
    queue: Arc<dyn JobQueue>,
    _folder: TempDir,
}

impl Bed {
    /// A queue in which `finished` jobs lie already.
    fn new(finished: usize) -> Self {
        let runtime = runtime();
        let (folder, path) = folder();
        let url = format!("sqlite://{}", path.join("queue.db").display());
        let queue: Arc<dyn JobQueue> = runtime.block_on(async { Sqlite::open(&url).await.unwrap().queue() });
        let bed = Self { runtime, queue, _folder: folder };
        for _ in 0..finished / 1_000 {
            bed.enqueue(1_000);
            bed.claim(1_000).iter().for_each(|job| bed.complete(job));
        }
        bed
    }

    fn enqueue(&self, count: usize) {
        let jobs: Vec<_> = (0..count).map(|_| job()).collect();
        self.runtime.block_on(self.queue.enqueue(&jobs)).unwrap();
    }

    fn claim(&self, limit: usize) -> Vec<Job> {
        let worker: WorkerName = "bench".parse().unwrap();
        let request = ClaimRequest { claim: ClaimId::new(), worker, limit };
        self.runtime.block_on(self.queue.claim(&request)).unwrap()
    }

    fn complete(&self, job: &Job) {
        let artifact = ArtifactRef {
            name: format!("bench-{}", job.spec.id).parse().unwrap(),
            digest: Digest::of(b"bench"),
            size: 5,
        };
        let completion = Completion::Succeeded { artifact, log: None, timings: Timings::default() };
        let lease = job.running.as_ref().unwrap().lease;
        self.runtime.block_on(self.queue.complete(&lease, &completion)).unwrap();
    }
}

#[divan::bench(sample_count = 50)]
fn enqueue_one(bencher: divan::Bencher<'_, '_>) {
    let bed = Bed::new(0);
    bencher
        .counter(ItemsCount::new(1_u32))
        .bench_local(|| bed.runtime.block_on(bed.queue.enqueue_one(&job())).unwrap());
}

#[divan::bench(sample_count = 20)]
fn enqueue_batch_of_100(bencher: divan::Bencher<'_, '_>) {
    let bed = Bed::new(0);
    bencher.counter(ItemsCount::new(100_u32)).bench_local(|| bed.enqueue(100));
}

/// Claim one and complete it, with this many finished jobs in the table.
#[divan::bench(args = [0, 10_000], sample_count = 50)]
fn claim_and_complete(bencher: divan::Bencher<'_, '_>, finished: usize) {
    let bed = Bed::new(finished);
    bencher
        .counter(ItemsCount::new(1_u32))
        .with_inputs(|| bed.enqueue(1))
        .bench_local_values(|()| bed.claim(1).iter().for_each(|job| bed.complete(job)));
}

#[divan::bench(sample_count = 50)]
fn heartbeat_of_100_leases(bencher: divan::Bencher<'_, '_>) {
    let bed = Bed::new(0);
    bed.enqueue(100);
    let leases: Vec<_> = bed.claim(100).iter().map(|job| job.running.as_ref().unwrap().lease).collect();
    bencher
        .counter(ItemsCount::new(100_u32))
        .bench_local(|| bed.runtime.block_on(bed.queue.heartbeat(&leases)).unwrap());
}
