//! Tasks that use an artifact's file, and what follows from their ends.

use std::io;
use std::path::Path;
use std::sync::Arc;

use deploycore::model::{Digest, Manifest};
use deploycore::port::swarm::{Error, FetchSummary};
use tokio::sync::oneshot;
use tokio::time::Instant as Clock;

use super::entry::{Done, What};
use super::{Running, told};
use crate::core::bitfield::Bitfield;
use crate::core::peer;
use crate::core::shape::Shape;
use crate::net::files::{Open, PieceFile, Stored};

impl Running<'_> {
    /// Verifies a file of an artifact that is served from elsewhere, or will be; that goes on as it is.
    pub(super) fn verify_other(
        &mut self,
        manifest: &Arc<Manifest>,
        path: &Path,
        reply: oneshot::Sender<Result<(), Error>>,
    ) {
        let (files, manifest, path) = (Arc::clone(&self.node.files), Arc::clone(manifest), path.to_owned());
        let digest = manifest.digest();
        self.verify(&digest, async move {
            let verified = async { files.open(manifest, &path, Open::Seed).await?.verify().await };
            let outcome = verified.await.map_err(|error| unreadable(digest, &path, &error));
            let whole = |have: Bitfield| if have.is_full() { Ok(()) } else { Err(corrupt(digest, &path, &have)) };
            let _ = reply.send(outcome.and_then(whole));
            What::Answered
        });
    }

    pub(super) fn open(
        &mut self,
        digest: &Digest,
        what: impl FnOnce(io::Result<Arc<dyn PieceFile>>) -> What + Send + 'static,
    ) {
        let Some(entry) = self.entries.get(digest) else { return };
        let (files, manifest) = (Arc::clone(&self.node.files), Arc::clone(&entry.manifest));
        let (path, open) = (entry.path.clone(), entry.open);
        self.work(digest, async move { what(files.open(manifest, &path, open).await) });
    }

    /// Runs a task that uses an artifact's file; leaving the artifact waits for it.
    pub(super) fn work(&mut self, digest: &Digest, work: impl Future<Output = What> + Send + 'static) {
        let Some(entry) = self.entries.get_mut(digest) else { return };
        entry.busy += 1;
        let (digest, serial) = (*digest, entry.serial);
        self.tasks.spawn(async move { Done { digest, serial, what: work.await } });
    }

    /// As [`work`](Self::work), for what writes nothing and may take long: it ends with the artifact's stay.
    fn verify(&mut self, digest: &Digest, work: impl Future<Output = What> + Send + 'static) {
        let Some(end) = self.entries.get(digest).map(|entry| entry.end.clone()) else { return };
        self.work(digest, async move {
            tokio::select! {
                biased;
                () = end.cancelled() => What::Answered,
                what = work => what,
            }
        });
    }

    pub(super) fn done(&mut self, done: Done) {
        let Done { digest, serial, what } = done;
        let Some(entry) = self.entries.get_mut(&digest).filter(|entry| entry.serial == serial) else {
            return;
        };
        if !matches!(what, What::Abandoned) {
            entry.busy -= 1;
        }
        let leaving = entry.ending;
        match what {
            What::Abandoned => {
                let wanted = entry.guard.upgrade().is_some() || !entry.seeding.is_empty();
                if entry.summary.is_none() && !wanted && !leaving {
                    tracing::info!(digest = %digest.short(), "nobody waits for the fetch any more: it stops");
                    self.end_entry(&digest);
                }
                return;
            }
            What::Opened(Err(source), reply) => {
                let path = entry.path.clone();
                let _ = reply.send(Err(Error::Disk { path: path.clone(), source: copy(&source) }));
                self.fail(&digest, || Error::Disk { path: path.clone(), source: copy(&source) });
            }
            What::Opened(Ok(file), reply) => {
                entry.file = Some(Arc::clone(&file));
                let (priority, limits) = (entry.priority, entry.limits);
                if let Some(joined) = self.join(&digest, priority, limits) {
                    let _ = reply.send(Ok(joined));
                }
                if !leaving {
                    self.verify(&digest, async move { What::Verified(file.verify().await) });
                }
            }
            What::SeedOpened(Ok(file)) => {
                entry.file = Some(Arc::clone(&file));
                if !leaving {
                    self.verify(&digest, async move { What::Verified(file.verify().await) });
                }
            }
            What::Verified(Ok(have)) if !leaving => self.verified(&digest, have),
            What::Stored(piece, Ok(stored)) if !leaving => {
                let Stored { verified, blocks } = stored;
                metrics::counter!("deploycore_swarm_pieces", "verified" => if verified { "yes" } else { "no" })
                    .increment(1);
                self.input(peer::Input::Stored { digest, piece, verified, blocks });
            }
            What::Checkpointed(pieces, Ok(())) => {
                entry.checkpointing = false;
                entry.checkpointed = (pieces, Clock::now());
            }
            What::Checkpointed(_, Err(error)) if entry.summary.is_some() => {
                tracing::warn!(digest = %digest.short(), %error, "a late checkpoint failed; the artifact is whole");
            }
            What::Finished(Ok(())) if !leaving => self.finished(&digest),
            What::SeedOpened(Err(source)) => {
                let path = entry.path.clone();
                self.fail(&digest, || unreadable(digest, &path, &source));
            }
            What::Verified(Err(source))
            | What::Stored(_, Err(source))
            | What::Checkpointed(_, Err(source))
            | What::Finished(Err(source)) => self.fail_disk(&digest, &source),
            What::Verified(_) | What::Stored(..) | What::Finished(_) | What::Answered => {}
        }
        self.drop_if_quiet(&digest);
    }

    fn verified(&mut self, digest: &Digest, have: Bitfield) {
        let Some(entry) = self.entries.get_mut(digest) else { return };
        if entry.open == Open::Seed && !have.is_full() {
            let path = entry.path.clone();
            return self.fail(digest, || corrupt(*digest, &path, &have));
        }
        let shape = Shape::of(&entry.manifest);
        entry.resumed = have.iter().map(|piece| shape.piece_len(piece)).sum();
        entry.checkpointed = (have.count(), Clock::now());
        let (priority, limits) = (entry.priority, entry.limits);
        self.input(peer::Input::Start(Box::new(peer::Start { shape, have, priority, limits })));
    }

    fn finished(&mut self, digest: &Digest) {
        let progress = self.core.progress(digest).unwrap_or_default();
        let Some(entry) = self.entries.get_mut(digest) else { return };
        let summary = FetchSummary {
            from_store: progress.from_store,
            from_peers: progress.from_peers,
            resumed: entry.resumed,
            bad_pieces: progress.bad_pieces,
            elapsed: entry.started.elapsed(),
        };
        if entry.open == Open::Fetch {
            tracing::info!(digest = %digest.short(), ?summary, wasted = progress.wasted, "fetched");
        }
        entry.summary = Some(summary.clone());
        if let Some(sender) = entry.progress.take() {
            sender.send_replace(told(&progress));
        }
        entry.waiting.drain(..).for_each(|waiting| drop(waiting.send(Ok(summary.clone()))));
        entry.seeding.drain(..).for_each(|waiting| drop(waiting.send(Ok(()))));
    }

    fn fail_disk(&mut self, digest: &Digest, source: &io::Error) {
        let Some(path) = self.entries.get(digest).map(|entry| entry.path.clone()) else { return };
        self.fail(digest, || Error::Disk { path: path.clone(), source: copy(source) });
    }

    /// Ends an artifact's stay with an error for all who wait.
    fn fail(&mut self, digest: &Digest, error: impl Fn() -> Error) {
        let Some(entry) = self.entries.get_mut(digest) else { return };
        tracing::warn!(digest = %digest.short(), error = deploycore::port::chain(&error()), "the artifact is given up");
        entry.waiting.drain(..).for_each(|waiting| drop(waiting.send(Err(error()))));
        entry.seeding.drain(..).for_each(|waiting| drop(waiting.send(Err(error()))));
        self.end_entry(digest);
    }

    /// Ends an artifact's stay: at once for the swarm, and for good once no task uses its file. Those who wait see it stopped.
    pub(super) fn end_entry(&mut self, digest: &Digest) {
        let Some(entry) = self.entries.get_mut(digest) else { return };
        entry.ending = true;
        entry.end.cancel();
        entry.waiting.clear();
        for reply in entry.seeding.drain(..) {
            let _ = reply.send(Err(Error::Stopped { digest: *digest }));
        }
        self.input(peer::Input::Stop(*digest));
        self.drop_if_quiet(digest);
    }

    fn drop_if_quiet(&mut self, digest: &Digest) {
        if self.entries.get(digest).is_none_or(|entry| !entry.ending || entry.busy > 0) {
            return;
        }
        if let Some(entry) = self.entries.remove(digest) {
            for reply in entry.leaving {
                let _ = reply.send(());
            }
            for command in entry.next {
                self.command(command);
            }
        }
    }

    pub(super) fn checkpoint(&mut self) {
        let mut due = Vec::new();
        for (digest, entry) in &mut self.entries {
            let Some(have) = self.core.have(digest) else { continue };
            let (pieces, at) = entry.checkpointed;
            let waits = entry.checkpointing || at.elapsed() < self.node.settings.checkpoint;
            if entry.summary.is_none() && !waits && have.count() > pieces && !have.is_full() {
                entry.checkpointing = true;
                due.push((*digest, have.clone()));
            }
        }
        for (digest, have) in due {
            if let Some(file) = self.entries.get(&digest).and_then(|entry| entry.file.clone()) {
                self.work(&digest, async move { What::Checkpointed(have.count(), file.checkpoint(&have).await) });
            }
        }
    }
}

/// Why a file cannot be seeded.
fn unreadable(digest: Digest, path: &Path, source: &io::Error) -> Error {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::InvalidData => Error::Corrupt { digest, path, detail: source.to_string() },
        _ => Error::Disk { path, source: copy(source) },
    }
}

fn corrupt(digest: Digest, path: &Path, have: &Bitfield) -> Error {
    let detail = format!("{} of {} pieces do not verify", have.len() - have.count(), have.len());
    Error::Corrupt { digest, path: path.to_owned(), detail }
}

/// An I/O error again: the original cannot be cloned, and several may wait for it.
fn copy(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}
