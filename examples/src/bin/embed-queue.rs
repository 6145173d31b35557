//! The queue, a worker with a builder of one's own, and a store, in one process: a durable build queue in one file.

use std::sync::Arc;

use deploycore::build::{BuildContext, BuildError, BuildOutput, Builder, Worker, WorkerSettings};
use deploycore::model::{Job, NewJob};
use deploycore::port::{ArtifactStoreExt, JobQueueExt};
use deploycore::store::BlobStore;
use deploycore_sql::Sqlite;

/// Turns a commit into bytes. A real one runs a compiler: see `CommandBuilder`.
#[derive(Debug)]
struct Greeter;

#[async_trait::async_trait]
impl Builder for Greeter {
    async fn build(&self, job: &Job, context: &BuildContext) -> Result<BuildOutput, BuildError> {
        context.log.line(format!("building {} at {}", job.spec.service, job.spec.commit));
        Ok(BuildOutput::bytes(format!("#!/bin/sh\necho hello from {}\n", job.spec.commit)))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let queue = Sqlite::open(&format!("sqlite://{}/queue.db", folder.path().display())).await?.queue();
    let store = Arc::new(BlobStore::open(&format!("file://{}/store", folder.path().display()).parse()?)?);

    let job = NewJob::new("web".parse()?, "0123abcd".parse()?);
    queue.enqueue_one(&job).await?;

    // A service would call `run(shutdown)`; one round is enough here.
    let worker = Worker::new(WorkerSettings::default(), queue.clone(), store.clone(), Arc::new(Greeter))?;
    worker.tick().await;

    let done = queue.require(job.id).await?;
    let artifact = done.artifact.ok_or_else(|| anyhow::anyhow!("the build failed: {:?}", done.failure))?;
    store.verify(&artifact.digest).await?;
    println!("{} {}: {} bytes, BLAKE3 {}", done.status, artifact.name, artifact.size, artifact.digest);
    Ok(())
}
