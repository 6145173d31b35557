//! A worker: builds jobs into the main store.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use bytes::Bytes;
use bytesize::ByteSize;
use deploycore::build::{
    BuildContext, BuildError, BuildOutput, Builder, CommandBuilder, CommandBuilderSettings, Worker, WorkerSettings,
};
use deploycore::model::{Job, WorkerName};
use deploycore::port::store::MAX_CHUNK;
use futures::stream::{self, StreamExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

use super::Services;
use crate::cluster::backends;
use crate::cluster::config::Config;

/// From the word to end until builds are told to stop: none, for a role has only [`super::ORDERLY_END`] to give its jobs back.
const DRAIN: Duration = Duration::ZERO;
/// How long a build that was told to stop may take. Its own grace, from SIGTERM to SIGKILL, lies within.
const STOP_GRACE: Duration = Duration::from_secs(5);
const BUILD_STOP_GRACE: Duration = Duration::from_secs(3);

pub(super) async fn run(config: Config, name: WorkerName, shutdown: CancellationToken) -> Result<()> {
    let settings = build_settings(&config, name.as_str())?;
    let queue = backends::queue(&config).await?;
    let store = backends::main_store(&config).await?;
    let builder = Arc::new(CommandBuilder::open(settings).await?);
    let builder: Arc<dyn Builder> = match config.worker.payload {
        Some(payload) => Arc::new(Padded { builder, payload }),
        None => builder,
    };
    let settings = WorkerSettings::default()
        .with_name(name)
        .with_slots(config.worker.slots)
        .with_poll(config.poll)
        .with_heartbeat(config.worker.heartbeat, config.worker.lost_after)
        .with_drain(DRAIN)
        .with_stop_grace(STOP_GRACE);
    let worker = Worker::new(settings, queue, store, builder)?;
    let mut services = Services::new(shutdown.clone());
    services.add("worker", async move {
        worker.run(shutdown).await;
        Ok(())
    });
    services.run().await
}

/// How jobs are built.
pub(in crate::cluster) fn build_settings(config: &Config, name: &str) -> Result<CommandBuilderSettings> {
    let worker = &config.worker;
    let repository =
        worker.repository.clone().context("[worker] repository is missing: name the git repository to build from")?;
    let command = worker.command.clone().context("[worker] command is missing: say what to run in the checkout")?;
    let output = worker.output.clone().context("[worker] output is missing: name the file that the command leaves")?;
    let settings = CommandBuilderSettings::new(repository, command, output, config.worker_dir(name));
    Ok(settings.with_keep_free(worker.keep_free).with_stop_grace(BUILD_STOP_GRACE))
}

/// Adds incompressible bytes behind the output of another builder, the same for the same job: an executable file keeps
/// working with bytes behind its end, and the swarm has something to carry.
#[derive(Debug)]
struct Padded {
    builder: Arc<dyn Builder>,
    payload: ByteSize,
}

#[async_trait]
impl Builder for Padded {
    async fn build(&self, job: &Job, context: &BuildContext) -> Result<BuildOutput, BuildError> {
        let mut output = self.builder.build(job, context).await?;
        let (seed, payload) = (job.spec.id.as_uuid().as_u128() as u64, self.payload.as_u64());
        context.log.line(format!("padding the artifact with {}", self.payload));
        let first = output.open().ok_or(BuildError::Stopped)?;
        let mut first = Some(first);
        Ok(BuildOutput::new(move || {
            let bytes = first.take().or_else(|| output.open()).unwrap_or_else(|| stream::empty().boxed());
            bytes.chain(padding(seed, payload)).boxed()
        }))
    }
}

fn padding(seed: u64, total: u64) -> impl futures::Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let start = (StdRng::seed_from_u64(seed), total);
    stream::unfold(start, |(mut random, left)| async move {
        if left == 0 {
            return None;
        }
        let mut chunk = vec![0; left.min(MAX_CHUNK as u64) as usize];
        random.fill_bytes(&mut chunk);
        let left = left - chunk.len() as u64;
        Some((Ok(Bytes::from(chunk)), (random, left)))
    })
}
