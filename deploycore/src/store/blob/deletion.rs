//! Deleting what nobody has put for long, beside puts of the same bytes.
//!
//! A deletion leaves a mark, then looks when the artifact was put last, and only then deletes. A put makes the artifact young (by its
//! manifest, or by a touch where there is one already), then looks for marks, and then whether the artifact is there. So of a put and a
//! deletion at once one sees the other:
//!
//! - the put looked before there was a mark: the deletion looks later than that, sees a young artifact and leaves it;
//! - the put sees the mark: it waits for its end and looks again;
//! - the deletion was over: the put sees what it left, and stores its own bytes, which it has kept until then.
//!
//! A deletion that was killed leaves its mark. After [`MARK_LIFE`] nobody minds it, which is why a deletion that took longer than
//! [`MAX_DELAY`] to get from its mark to the deletion gives up.
//!
//! Instants are the store's: a deletion reckons from that of its mark, a put from its own. Hosts may have another time.

use std::time::Duration;

use futures::stream::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt, PutPayload};
use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use super::BlobStore;
use super::fault::{fault, io_fault, is_missing, retryable};
use super::layout::{BlobKey, Layout};
use crate::model::{Digest, Timestamp, elapsed};
use crate::port::chain;
use crate::port::store::{ArtifactStore, Deletion, Error};

/// A mark that is so much older than a put is of a deletion that was killed.
const MARK_LIFE: Duration = Duration::from_mins(10);
/// A sweep goes by its host's clock, so it gives marks longer.
const SWEEP_AGE: Duration = Duration::from_hours(24);
/// From a mark to the deletion.
const MAX_DELAY: Duration = Duration::from_mins(1);
/// How long a put waits for deletions, and how often it looks.
const MAX_WAIT: Duration = Duration::from_mins(2);
const LOOK: Duration = Duration::from_millis(200);

pub(super) async fn delete_idle(store: &BlobStore, digest: &Digest, idle: Duration) -> Result<Deletion, Error> {
    // A mark makes puts wait: none for what is plainly in use, or gone. This host's clock is good enough for that.
    match last_put(store, digest).await? {
        Some(put) if elapsed(put, Timestamp::now()) < idle => return Ok(Deletion::InUse),
        Some(_) => {}
        // Where nothing is found although nothing can be listed either, what answers may not be the store.
        None => return store.answers().await.map(|()| Deletion::Gone).map_err(fault),
    }
    let (mark, marked) = (store.layout.fresh_mark(digest), Instant::now());
    prepare(store, Layout::DELETIONS).await?;
    store.objects.put(&mark, PutPayload::default()).await.map_err(fault)?;
    match look(store, digest, idle, &mark, marked).await {
        Ok(Look::Idle { blob }) => {
            // After an error the store may yet do what it was asked to: the mark stays until nobody minds it any more.
            erase(store, digest, blob).await?;
            unmark(store, &mark).await;
            info!(%digest, "an idle artifact was deleted");
            Ok(Deletion::Gone)
        }
        kept => {
            unmark(store, &mark).await;
            kept.map(|_| Deletion::InUse)
        }
    }
}

async fn unmark(store: &BlobStore, mark: &Path) {
    if let Err(error) = store.remove(mark).await {
        debug!(%mark, error = %chain(&error), "the mark of a deletion is left to the sweep");
    }
}

/// What a deletion sees once it has left its mark.
enum Look {
    /// Nobody has put the artifact for long; with the blob that its manifest names.
    Idle {
        blob: Option<BlobKey>,
    },
    InUse,
}

async fn look(store: &BlobStore, digest: &Digest, idle: Duration, mark: &Path, marked: Instant) -> Result<Look, Error> {
    // Both instants are the store's: this host may have another time.
    let Some(now) = modified(store, mark).await? else {
        return Err(retryable("the mark of the deletion is gone: nothing was deleted"));
    };
    // Before the look at its age: the blob of a put that comes after it is not touched.
    let blob = blob_of(store, digest).await?;
    match last_put(store, digest).await? {
        Some(put) if elapsed(put, now) < idle => Ok(Look::InUse),
        _ if marked.elapsed() > MAX_DELAY => Err(retryable("the deletion was held up: nothing was deleted")),
        _ => Ok(Look::Idle { blob }),
    }
}

/// The blob that the manifest names. That of a damaged manifest is left to the sweep.
pub(super) async fn blob_of(store: &BlobStore, digest: &Digest) -> Result<Option<BlobKey>, Error> {
    match store.header(digest).await {
        Ok(header) => Ok(header.map(|header| header.blob)),
        Err(Error::Corrupt { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes the manifest, then the blob.
pub(super) async fn erase(store: &BlobStore, digest: &Digest, blob: Option<BlobKey>) -> Result<(), Error> {
    store.remove(&store.layout.manifest(digest)).await?;
    store.forget(digest);
    // A power loss must not bring the manifest back without its blob.
    store.sync_manifests().await?;
    if let Some(blob) = blob {
        store.remove(&store.layout.blob(blob)).await?;
    }
    store.remove(&store.layout.touch(digest)).await
}

/// When the artifact was put last, by the store's clock; `None` when it is not there.
async fn last_put(store: &BlobStore, digest: &Digest) -> Result<Option<Timestamp>, Error> {
    let Some(stored) = modified(store, &store.layout.manifest(digest)).await? else {
        return Ok(None);
    };
    let touched = modified(store, &store.layout.touch(digest)).await?;
    Ok(Some(touched.map_or(stored, |touched| touched.max(stored))))
}

async fn modified(store: &BlobStore, path: &Path) -> Result<Option<Timestamp>, Error> {
    match store.objects.head(path).await {
        Ok(meta) => Ok(Some(instant(&meta))),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(fault(error)),
    }
}

pub(super) fn instant(meta: &ObjectMeta) -> Timestamp {
    Timestamp::from_millisecond(meta.last_modified.timestamp_millis()).unwrap_or(Timestamp::MAX)
}

/// Makes an artifact young that another put has stored.
pub(super) async fn touch(store: &BlobStore, digest: &Digest) -> Result<(), Error> {
    prepare(store, Layout::TOUCHES).await?;
    store.objects.put(&store.layout.touch(digest), PutPayload::default()).await.map_err(fault)?;
    Ok(())
}

/// Whether the artifact is there for good, once it is young: no deletion is under way that may not have seen it so.
pub(super) async fn is_safe(store: &BlobStore, digest: &Digest) -> Result<bool, Error> {
    Ok(!is_under_way(store, digest).await? && store.exists(digest).await?)
}

async fn is_under_way(store: &BlobStore, digest: &Digest) -> Result<bool, Error> {
    let (mut marks, mut newest) = (store.objects.list(Some(&store.layout.deletions())), None);
    while let Some(meta) = marks.try_next().await.map_err(fault)? {
        if Layout::marks(&meta.location, digest) {
            newest = newest.max(Some(instant(&meta)));
        }
    }
    let Some(newest) = newest else { return Ok(false) };
    // The put is of just now: its instant is the store's time.
    let put = last_put(store, digest).await?;
    Ok(put.is_none_or(|put| elapsed(newest, put) < MARK_LIFE))
}

/// A put that found a deletion under way looks again after a while.
///
/// Errors: retryable once it has waited for too long.
pub(super) async fn wait(since: Instant) -> Result<(), Error> {
    if since.elapsed() >= MAX_WAIT {
        return Err(retryable(format!("the same artifact is deleted for longer than {MAX_WAIT:?}")));
    }
    sleep(LOOK).await;
    Ok(())
}

/// Removes marks of deletions that were killed; how many.
pub(super) async fn sweep_marks(store: &BlobStore) -> Result<u64, Error> {
    let (marks, now) = (store.objects.list(Some(&store.layout.deletions())), Timestamp::now());
    let old = marks.try_filter(|meta| std::future::ready(elapsed(instant(meta), now) >= SWEEP_AGE));
    let old: Vec<_> = old.try_collect().await.map_err(fault)?;
    for meta in &old {
        store.remove(&meta.location).await?;
    }
    Ok(old.len() as u64)
}

/// A store that is read only by whoever has the folder is not made to hold what only puts need.
async fn prepare(store: &BlobStore, name: &'static str) -> Result<(), Error> {
    match &store.folder {
        Some(folder) => folder.make(name).await.map_err(io_fault),
        None => Ok(()),
    }
}
