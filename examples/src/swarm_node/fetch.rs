//! One host's part: fetch the file, put it in place, pass it on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use deploycore::model::{Digest, Manifest};
use deploycore::port::PeerSwarm;
use deploycore::port::swarm::{Error, Fetch, FetchRequest, Limits, Priority};
use deploycore_p2p::{Node, NodeSettings};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::cli::FetchArgs;
use super::{Outcome, bar, beside, end_token, random_name, read_manifest, region, usage};
use crate::files::{check_writable, place, write_atomic};

/// What a fetch did, up to the moment at which the file was in place.
#[derive(Debug, Serialize)]
struct Stats {
    digest: Digest,
    /// Of the file.
    bytes: u64,
    /// From the start of the fetch.
    seconds: f64,
    /// Bytes that were on disk before.
    resumed: u64,
    /// Bytes read through the gate.
    from_store: u64,
    /// Bytes from each peer.
    from_peers: BTreeMap<String, u64>,
    /// Of that, from peers in other zones.
    from_elsewhere: u64,
    /// Bytes given to peers.
    uploaded: u64,
    bad_pieces: u32,
    /// Requests that were not answered by a block and made again.
    retries: u32,
    /// Bytes received for nothing.
    wasted: u64,
    cpu_seconds: f64,
    peak_rss: Option<u64>,
}

pub(super) async fn run(args: FetchArgs) -> Result<Outcome> {
    let manifest = Arc::new(read_manifest(&args.manifest)?);
    check_writable(&args.out).context("--out")?;
    if let Some(stats) = &args.stats {
        check_writable(stats).context("--stats")?;
    }
    let member = &args.member;
    let name = member.name.clone().unwrap_or_else(|| random_name("node"));
    let mut settings = NodeSettings::new(name, region(), member.trust.security()).with_listen(&member.listen);
    settings.advertise.clone_from(&member.advertise);
    settings.trackers.clone_from(&member.tracker);
    settings.zone.clone_from(&args.zone);
    let [ingress, egress, disk] =
        [args.limit_down, args.limit_up, args.limit_disk].map(|limit| limit.map(|rate| rate.as_u64()));
    settings.swarm.limits = Limits { ingress, egress, disk };
    let node = Node::bind(settings).await.with_context(|| format!("--listen {}", member.listen))?;
    let end = end_token()?;
    tokio::select! {
        outcome = take_part(&node, &args, manifest, &end) => outcome,
        () = node.run(CancellationToken::new()) => bail!("the node ended by itself"),
    }
}

async fn take_part(node: &Node, args: &FetchArgs, manifest: Arc<Manifest>, end: &CancellationToken) -> Result<Outcome> {
    let start = Instant::now();
    let resumed = tokio::select! {
        resumed = bring(node, args, &manifest) => resumed?,
        () = end.cancelled() => return Ok(Outcome::Stopped),
    };
    let account = node.account(&manifest.digest()).await?.unwrap_or_default();
    let stats = Stats {
        digest: manifest.digest(),
        bytes: manifest.size(),
        seconds: start.elapsed().as_secs_f64(),
        resumed,
        from_store: account.from_store,
        from_peers: account.from_peers,
        from_elsewhere: account.from_elsewhere,
        uploaded: node.stats().await?.uploaded,
        bad_pieces: account.bad_pieces,
        retries: account.retries,
        wasted: account.wasted,
        cpu_seconds: usage::cpu_seconds(),
        peak_rss: usage::peak_rss(),
    };
    if let Some(path) = &args.stats {
        write_atomic(path, &serde_json::to_vec_pretty(&stats)?)?;
    }
    eprintln!(
        "{}: {} bytes in {:.2} s, {} from the gate, {} from {} peers",
        args.out.display(),
        stats.bytes,
        stats.seconds,
        stats.from_store,
        stats.from_peers.values().sum::<u64>(),
        stats.from_peers.len()
    );
    tokio::select! {
        () = tokio::time::sleep(args.linger) => {}
        () = end.cancelled() => {}
    }
    Ok(Outcome::Done)
}

/// Makes the file whole and puts it in place; gives the bytes that were there before.
async fn bring(node: &Node, args: &FetchArgs, manifest: &Arc<Manifest>) -> Result<u64> {
    // An earlier run may have put it there. What differs is replaced.
    if std::fs::metadata(&args.out).is_ok_and(|found| found.is_file() && found.len() == manifest.size()) {
        match node.seed(Arc::clone(manifest), args.out.clone()).await {
            Ok(()) => return Ok(manifest.size()),
            Err(Error::Corrupt { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let part = beside(&args.out, ".part");
    let (priority, limits) = (Priority::Normal, Limits::default());
    let request = FetchRequest { manifest: Arc::clone(manifest), destination: part.clone(), priority, limits };
    let Fetch { progress, done } = node.fetch(request).await?;
    let bar = bar("fetch");
    bar.set_length(manifest.size());
    let shown = show(&bar, progress);
    let summary = tokio::select! {
        summary = done => summary?,
        () = shown => unreachable!("it does not end"),
    };
    // The node holds the file open: it goes on serving it under whatever name.
    let out = args.out.clone();
    let placed = tokio::task::spawn_blocking(move || place(&part, &out)).await?;
    placed.with_context(|| format!("{} could not be put in place", args.out.display()))?;
    bar.finish_and_clear();
    Ok(summary.resumed)
}

/// Moves the bar for ever.
async fn show(bar: &ProgressBar, progress: tokio::sync::watch::Receiver<deploycore::port::swarm::FetchProgress>) {
    loop {
        let now = progress.borrow().clone();
        bar.set_position(now.bytes);
        bar.set_message(
            now.waiting_for.map_or_else(|| format!("{} peers", now.peers), |what| format!("waits for {what}")),
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
