//! The tasks that carry the cores' effects out and answer back.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join;
use tokio::sync::mpsc;

use super::{AgentDeps, Event, LEAVE_TIMEOUT};
use crate::machine::core::{Input, Output};
use crate::machine::disk;
use crate::machine::journal::Build;
use crate::machine::runner::{self, Instance, Launch};
use crate::model::{ArtifactRef, Digest, Manifest, ServiceName};
use crate::pace::Backoff;
use crate::port::chain;
use crate::port::swarm::{self, Fetch, FetchRequest, FetchSummary, Limits, Priority};

/// How often a runner looks after what it keeps for a running service.
const TEND: Duration = Duration::from_secs(10);

/// The way back to the core of a service.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) service: ServiceName,
    /// The number of the fetch that answers; `None` for other effects.
    pub(super) fetch: Option<u64>,
    pub(super) sender: mpsc::Sender<Event>,
}

impl Door {
    async fn answer(&self, input: Input) {
        let event = match self.fetch {
            Some(number) => Event::Fetch(self.service.clone(), number, input),
            None => Event::Input(self.service.clone(), input),
        };
        // A loop that has ended needs no answer.
        let _ = self.sender.send(event).await;
    }
}

/// Does one of the effects of which a service has one at a time.
pub(super) async fn perform(deps: AgentDeps, output: Output, door: Door) {
    tracing::debug!(service = %door.service, ?output, "an effect begins");
    let done = match output {
        Output::Journal(journal) => {
            deps.disk.write_journal(&journal).await.map(|()| Input::Journaled).map_err(|error| chain(&error))
        }
        Output::Switch(links) => match deps.disk.switch(&door.service, links).await {
            Ok(()) => Ok(Input::Switched),
            Err(error) => {
                if let disk::Error::Missing { digest } = error {
                    door.answer(Input::Lost(digest)).await;
                }
                Err(chain(&error))
            }
        },
        Output::Prepare(build) => prepare(&deps, build, &door).await,
        Output::Release(instance) => {
            deps.runner.release(&instance).await.map(|()| Input::Released).map_err(|error| chain(&error))
        }
        Output::Stop(instance, grace) => {
            deps.runner.stop(&instance, grace).await.map(|()| Input::Stopped).map_err(|error| chain(&error))
        }
        Output::Fetch(..) | Output::CancelFetch(_) | Output::Watch(..) => return,
    };
    door.answer(done.unwrap_or_else(Input::Failed)).await;
}

/// Makes a process that waits. Without its blob it would wait as well, and its end count against the build: so that is looked for first.
async fn prepare(deps: &AgentDeps, build: Build, door: &Door) -> Result<Input, String> {
    let digest = build.artifact.digest;
    if !deps.disk.holds(&digest).await.map_err(|error| chain(&error))? {
        door.answer(Input::Lost(digest)).await;
        return Err(chain(&disk::Error::Missing { digest }));
    }
    let launch = Launch {
        service: door.service.clone(),
        executable: deps.disk.blob(&digest),
        folder: deps.disk.folder(&door.service),
        run: build.run,
    };
    match deps.runner.prepare(&launch).await {
        Err(error @ runner::Error::Unstartable { .. }) => Ok(Input::Unstartable(chain(&error))),
        prepared => prepared.map(Input::Prepared).map_err(|error| chain(&error)),
    }
}

/// Says when the instance ends, and before that when it first answers. From the start to the end its runner looks after what it keeps for it:
/// one that never answers, or that ends at once again and again, writes as much as any other.
pub(super) async fn watch(deps: AgentDeps, instance: Instance, path: Option<String>, probe: Duration, door: Door) {
    let folder = deps.disk.folder(&door.service);
    let ready = async {
        let Some(path) = path else { return };
        while !deps.runner.answers(&instance, &path).await {
            tokio::time::sleep(probe).await;
        }
        door.answer(Input::Ready(instance.clone())).await;
    };
    let tended = async {
        loop {
            deps.runner.tend(&folder).await;
            tokio::time::sleep(TEND).await;
        }
    };
    tokio::select! {
        biased;
        code = deps.runner.ended(&instance) => door.answer(Input::Ended(instance.clone(), code)).await,
        ((), ()) = join(ready, tended) => {}
    }
    deps.runner.tend(&folder).await;
}

/// Brings a blob onto the disk, whole and verified. Where that fails, `sooner` says how soon the next try comes.
pub(super) async fn fetch(
    deps: AgentDeps,
    artifact: ArtifactRef,
    priority: Priority,
    limits: Limits,
    sooner: f64,
    door: Door,
) {
    let digest = artifact.digest;
    let input = match fetch_blob(&deps, &artifact, priority, limits, &door).await {
        Ok(bytes) => Input::Fetched(digest, bytes),
        Err(reason) => {
            tracing::warn!(service = %door.service, %digest, reason, "a fetch failed");
            Input::FetchFailed(digest, reason, sooner)
        }
    };
    door.answer(input).await;
}

async fn fetch_blob(
    deps: &AgentDeps,
    artifact: &ArtifactRef,
    priority: Priority,
    limits: Limits,
    door: &Door,
) -> Result<u64, String> {
    let digest = artifact.digest;
    if deps.disk.holds(&digest).await.map_err(|error| chain(&error))? {
        return Ok(0);
    }
    let manifest = region_manifest(deps, &digest).await?;
    if manifest.size() != artifact.size {
        return Err(format!("the goal says {} bytes, the manifest of {digest} {}", artifact.size, manifest.size()));
    }
    let room = deps.disk.reserve(artifact).await.map_err(|error| chain(&error))?;
    let request = FetchRequest { manifest: Arc::clone(&manifest), destination: room.part.clone(), priority, limits };
    let fetch = match deps.swarm.fetch(request).await {
        Err(error @ swarm::Error::Conflict { .. }) => {
            // The swarm offers the blob, which is not there any more. Once it has let go, the next try begins anew.
            is_let_go(deps, &digest).await;
            return Err(chain(&error));
        }
        other => other.map_err(|error| chain(&error))?,
    };
    let summary = follow(fetch, digest, door).await.map_err(|error| chain(&error))?;
    if let Err(error) = deps.disk.stage(&manifest).await {
        match error {
            // Whatever wrote this, going on from it would fail for ever.
            disk::Error::Corrupt { .. } if is_let_go(deps, &digest).await => {
                let _ = deps.disk.remove(&digest).await;
            }
            // The swarm believes that it has what somebody took away.
            disk::Error::Missing { .. } => drop(is_let_go(deps, &digest).await),
            _ => {}
        }
        return Err(chain(&error));
    }
    let fetched = summary.from_store + summary.from_peers;
    metrics::counter!("deploycore_agent_fetched_bytes_total").increment(fetched);
    Ok(fetched)
}

async fn region_manifest(deps: &AgentDeps, digest: &Digest) -> Result<Arc<Manifest>, String> {
    match deps.manifests.region_manifest(digest).await {
        Ok(Some(manifest)) if manifest.digest() == *digest => Ok(Arc::new(manifest)),
        Ok(Some(manifest)) => Err(format!("the region gave the manifest of {} for {digest}", manifest.digest())),
        Ok(None) => Err(format!("the region has no manifest of {digest} yet")),
        Err(error) => Err(chain(&error)),
    }
}

async fn follow(fetch: Fetch, digest: Digest, door: &Door) -> Result<FetchSummary, swarm::Error> {
    let Fetch { mut progress, mut done } = fetch;
    loop {
        tokio::select! {
            biased;
            summary = &mut done => return summary,
            changed = progress.changed() => {
                if changed.is_err() {
                    return done.await;
                }
                let bytes = progress.borrow_and_update().bytes;
                door.answer(Input::Progress(digest, bytes)).await;
            }
        }
    }
}

/// Says which artifacts have bytes on disk, once that can be said.
pub(super) async fn list(deps: AgentDeps, backoff: Backoff, events: mpsc::Sender<Event>) {
    let mut failures = 0;
    let artifacts = loop {
        match deps.disk.artifacts().await {
            Ok(artifacts) => break artifacts,
            Err(error) => {
                failures += 1;
                tracing::warn!(error = chain(&error), "the blobs could not be listed");
                tokio::time::sleep(backoff.delay(failures)).await;
            }
        }
    };
    let _ = events.send(Event::Listed(artifacts)).await;
}

/// Removes all bytes of an artifact, however often that has to be tried: the swarm lets go first.
pub(super) async fn remove(deps: AgentDeps, digest: Digest, backoff: Backoff, events: mpsc::Sender<Event>) {
    let mut failures = 0;
    while let Err(reason) = remove_once(&deps, &digest).await {
        failures += 1;
        tracing::warn!(%digest, reason, "an artifact stays for now");
        tokio::time::sleep(backoff.delay(failures)).await;
    }
    tracing::info!(%digest, "an artifact was removed");
    let _ = events.send(Event::Removed(digest)).await;
}

async fn remove_once(deps: &AgentDeps, digest: &Digest) -> Result<(), String> {
    let_go(deps, digest).await?;
    deps.disk.remove(digest).await.map_err(|error| chain(&error))
}

async fn let_go(deps: &AgentDeps, digest: &Digest) -> Result<(), String> {
    match tokio::time::timeout(LEAVE_TIMEOUT, deps.swarm.leave(digest)).await {
        Ok(left) => left.map_err(|error| chain(&error)),
        Err(_) => Err("the swarm does not let go of it".to_owned()),
    }
}

/// After a fetch that failed: if the swarm does not let go, the next try will ask it again.
async fn is_let_go(deps: &AgentDeps, digest: &Digest) -> bool {
    let left = let_go(deps, digest).await;
    if let Err(reason) = &left {
        tracing::warn!(%digest, reason, "an artifact that is to be fetched anew stays with the swarm for now");
    }
    left.is_ok()
}

/// Offers the blobs of an earlier agent to the swarm, one after the other; those that fail come again after the others.
pub(super) async fn seed(deps: AgentDeps, blobs: BTreeSet<Digest>, backoff: Backoff, events: mpsc::Sender<Event>) {
    let (mut waiting, mut failures) = (VecDeque::from_iter(blobs), 0);
    while let Some(digest) = waiting.pop_front() {
        match seed_blob(&deps, digest, &events).await {
            Ok(()) => failures = 0,
            Err(reason) => {
                failures += 1;
                tracing::warn!(%digest, reason, "a blob is not offered yet");
                waiting.push_back(digest);
                tokio::time::sleep(backoff.delay(failures)).await;
            }
        }
    }
}

async fn seed_blob(deps: &AgentDeps, digest: Digest, events: &mpsc::Sender<Event>) -> Result<(), String> {
    // Removed since, and the swarm may have been offered it before that was seen.
    if !deps.disk.holds(&digest).await.map_err(|error| chain(&error))? {
        return let_go(deps, &digest).await;
    }
    let manifest = match deps.disk.manifest(&digest).await.map_err(|error| chain(&error))? {
        Some(manifest) => Arc::new(manifest),
        None => region_manifest(deps, &digest).await?,
    };
    match deps.swarm.seed(manifest, deps.disk.blob(&digest)).await {
        // Removed while it was being verified.
        Ok(()) if !deps.disk.holds(&digest).await.map_err(|error| chain(&error))? => let_go(deps, &digest).await,
        Ok(()) => Ok(()),
        Err(error @ swarm::Error::Corrupt { .. }) => {
            tracing::error!(%digest, error = chain(&error), "a blob is damaged and will be fetched again");
            let _ = events.send(Event::Damaged(digest)).await;
            Ok(())
        }
        Err(error) => Err(chain(&error)),
    }
}
