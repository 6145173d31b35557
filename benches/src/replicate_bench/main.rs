//! Copies an artifact from one store to others with the replicator, in a process of its own, and says what that cost.
//!
//! ```text
//! replicate-bench --from file:///tmp/main --to 's3://a/bench?region=eu-west-1' 's3://b/bench?region=us-east-1' --size 10GiB --json out.json
//! ```
//!
//! `--kill-half-way` kills the process with SIGKILL when half of the bytes are over and starts another: `resent_bytes` tells what was sent
//! twice.

mod copies;
mod counted;
mod figures;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytesize::ByteSize;
use clap::Parser;
use deploycore::model::{ArtifactName, ArtifactRef, CopyPriority, CopyState, Digest, JobId, NewArtifact, ServiceName};
use deploycore::port::ledger::{ReplicationLedger, ReplicationLedgerExt as _};
use deploycore::port::store::{ArtifactStore as _, ArtifactStoreExt as _};
use deploycore::store::{BlobStore, open_url};
use futures::stream::{self, StreamExt as _};

use self::figures::{Figures, Usage};

/// Between two looks at a run.
const LOOK: Duration = Duration::from_millis(20);

/// Copies an artifact from one store to others, and says what that cost.
#[derive(Debug, Parser)]
struct Arguments {
    /// The main store.
    #[arg(long)]
    from: String,
    /// The regions' stores.
    #[arg(long, num_args = 1.., required = true)]
    to: Vec<String>,
    /// The size of the random artifact that is made in the main store.
    #[arg(long, default_value = "1GiB")]
    size: ByteSize,
    /// An artifact that the main store has, in place of a random one.
    #[arg(long)]
    artifact: Option<Digest>,
    /// Where the figures go, besides the screen.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Kills the copying process when half of the bytes are over, and starts another.
    #[arg(long)]
    kill_half_way: bool,
    /// Leaves out reading every copy back at the end, which is not timed.
    #[arg(long)]
    no_verify: bool,
    /// Bytes held for all regions together.
    #[arg(long, default_value = "128MiB")]
    bytes_in_flight: ByteSize,
    /// Bytes of a part; at least 5 MiB on most clouds.
    #[arg(long, default_value = "8MiB")]
    part_size: ByteSize,
    /// After this many seconds without success the run ends.
    #[arg(long, default_value_t = 3600)]
    limit: u64,
    /// Of the copying process: the folder with the ledger.
    #[arg(long, hide = true)]
    copies_in: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match &arguments.copies_in {
        Some(folder) => runtime.block_on(copies::make(&arguments, folder)),
        None => runtime.block_on(bench(&arguments)),
    }
}

async fn bench(arguments: &Arguments) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let from = open(arguments, &arguments.from).await?;
    let artifact = artifact(&from, arguments).await?;
    let ledger = ledger(folder.path()).await?;
    register(&*ledger, arguments, &artifact).await?;
    let figures = copy(arguments, folder.path(), &*ledger, &artifact).await?;
    for url in arguments.to.iter().filter(|_| !arguments.no_verify) {
        open(arguments, url).await?.verify(&artifact.digest).await.context("a copy is not whole")?;
    }
    let json = serde_json::to_string_pretty(&figures)?;
    println!("{json}");
    match &arguments.json {
        Some(file) => std::fs::write(file, json).with_context(|| format!("cannot write {}", file.display())),
        None => Ok(()),
    }
}

/// Opens a store with the parts that the arguments ask for.
async fn open(arguments: &Arguments, url: &str) -> anyhow::Result<BlobStore> {
    let store = open_url(url).await?;
    let settings = deploycore::store::BlobStoreSettings::default().with_part_size(arguments.part_size);
    Ok(store.with_settings(settings))
}

async fn ledger(folder: &Path) -> anyhow::Result<std::sync::Arc<dyn ReplicationLedger>> {
    Ok(deploycore_sql::open_url(&format!("sqlite://{}/ledger.db", folder.display())).await?.ledger)
}

async fn artifact(from: &BlobStore, arguments: &Arguments) -> anyhow::Result<ArtifactRef> {
    let manifest = match &arguments.artifact {
        Some(digest) => from.require_manifest(digest).await?,
        None => from.put(noise(arguments.size.as_u64()).boxed()).await?,
    };
    let name = ArtifactName::for_job(&ServiceName::new("bench")?, JobId::new());
    Ok(ArtifactRef { name, digest: manifest.digest(), size: manifest.size() })
}

/// Bytes that no other run has.
fn noise(size: u64) -> impl stream::Stream<Item = std::io::Result<bytes::Bytes>> + Send {
    const SPAN: u64 = 1 << 20;
    let mut random = fastrand::Rng::new();
    stream::iter((0..size.div_ceil(SPAN)).map(move |index| {
        let mut span = vec![0; SPAN.min(size - index * SPAN) as usize];
        random.fill(&mut span);
        Ok(span.into())
    }))
}

async fn register(ledger: &dyn ReplicationLedger, arguments: &Arguments, artifact: &ArtifactRef) -> anyhow::Result<()> {
    let required = (0..arguments.to.len()).map(copies::region).collect::<Result<_, _>>()?;
    let (service, job) = (ServiceName::new("bench")?, JobId::new());
    ledger
        .register(&NewArtifact { artifact: artifact.clone(), service, job, required, priority: CopyPriority::Normal })
        .await?;
    Ok(())
}

/// Runs the copying process to its end, by a kill in the middle if the arguments ask for one.
async fn copy(
    arguments: &Arguments,
    folder: &Path,
    ledger: &dyn ReplicationLedger,
    artifact: &ArtifactRef,
) -> anyhow::Result<Figures> {
    let (started, mut usage) = (Instant::now(), Usage::default());
    let all = artifact.size * arguments.to.len() as u64;
    let mut child = spawn(folder)?;
    if arguments.kill_half_way {
        while copied(ledger, artifact).await?.0 < all / 2 {
            check(&mut child, started, arguments)?;
            tokio::time::sleep(LOOK).await;
        }
        usage.add(Usage::of(&child.id().to_string())?);
        child.kill()?;
        child.wait()?;
        child = spawn(folder)?;
    }
    // It ends by itself once the ledger says that all is there.
    while child.try_wait()?.is_none() {
        if started.elapsed().as_secs() > arguments.limit {
            child.kill()?;
            child.wait()?;
            bail!("the copies were not made within {} s", arguments.limit);
        }
        tokio::time::sleep(LOOK).await;
    }
    let seconds = started.elapsed().as_secs_f64();
    ensure!(copied(ledger, artifact).await?.1, "the copying process ended before all copies were made");
    usage.add(Usage::read(&folder.join("usage"))?);
    let sent = counted::read(folder)?;
    Ok(Figures::new(seconds, usage, sent, artifact.size, arguments.to.len() as u64))
}

fn check(child: &mut Child, started: Instant, arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(status) = child.try_wait()? {
        bail!("the copying process ended before half of the bytes were over, {status}");
    }
    if started.elapsed().as_secs() > arguments.limit {
        child.kill()?;
        child.wait()?;
        bail!("half of the bytes were not over within {} s", arguments.limit);
    }
    Ok(())
}

/// Bytes that the ledger knows to be over, and whether that is all.
async fn copied(ledger: &dyn ReplicationLedger, artifact: &ArtifactRef) -> anyhow::Result<(u64, bool)> {
    let copies = ledger.require(&artifact.name).await?.copies;
    let is_done = copies.values().all(|copy| copy.state == CopyState::Complete);
    Ok((copies.values().map(|copy| copy.bytes).sum(), is_done))
}

/// This very program with the same arguments, as the copying process.
fn spawn(folder: &Path) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).arg("--copies-in").arg(folder);
    Ok(command.spawn()?)
}
