//! A copy made by parts: read and stored in parallel, journaled, and taken up where the last attempt stopped.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use futures::future::{BoxFuture, Fuse, FusedFuture, FutureExt};
use futures::stream::{self, StreamExt};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, info, warn};

use super::copy::{Copy, Fault, Shared};
use super::tempo::Begun;
use super::verified;
use crate::model::Manifest;
use crate::pace::within;
use crate::port::chain;
use crate::port::ledger::{self, JournaledUpload, MAX_BATCH};
use crate::port::store::{Error, Multipart, PartTag, UploadId};

/// The most parts of a lane on their way at once, whatever the bytes allow.
pub(super) const MAX_PARTS_AHEAD: usize = 16;
/// So many stored parts are journaled together, unless a while has passed. While the ledger answers more may come.
const MAX_UNJOURNALED: usize = 4;

/// A part that the store has.
type Stored = (u32, PartTag);
/// Parts being journaled; those that are left, and whether the copy may go on.
type Journaling<'a> = BoxFuture<'a, (Vec<Stored>, Result<(), Fault>)>;

/// A copy whose store takes parts.
pub(super) struct ByParts<'a> {
    pub(super) copy: &'a Copy<'a>,
    pub(super) store: &'a dyn Multipart,
    pub(super) manifest: &'a Manifest,
    pub(super) shared: &'a Shared,
}

impl ByParts<'_> {
    /// Makes the copy; how many bytes were sent.
    pub(super) async fn make(&self) -> Result<u64, Fault> {
        let (mut upload, is_resumed) = self.taken_up().await?;
        let before: u64 = upload.parts.keys().map(|index| len(&self.range(&upload, *index))).sum();
        self.shared.add(before);
        let sent = self.send_missing(&mut upload, is_resumed).await;
        if let Err(fault) = &sent
            && self.copy.lane.ledger.journal().is_none()
        {
            debug!(error = %chain(fault), "without a journal nobody would find the upload again");
            self.copy.abort(self.store, &upload.upload).await;
        }
        let sent = sent?;
        self.finish(&upload).await?;
        Ok(sent)
    }

    /// The upload of the journal, or a new one; whether it is the journal's.
    async fn taken_up(&self) -> Result<(JournaledUpload, bool), Fault> {
        if let Some(upload) = self.copy.journaled().await? {
            let parts = upload.parts.len();
            info!(parts, of = self.count(&upload), "a copy under way is taken up");
            return Ok((upload, true));
        }
        Ok((self.begin().await?, false))
    }

    async fn begin(&self) -> Result<JournaledUpload, Fault> {
        let part_size = self.store.part_size(self.manifest.size());
        let upload = self.copy.store_call(self.store.begin()).await.map_err(Fault::Region)?;
        if let Some(journal) = self.copy.lane.ledger.journal() {
            let noted = journal.begin(&self.copy.task.lease, &upload, part_size);
            if let Err(error) = self.copy.ledger_call(noted).await {
                // The ledger may have noted it, and only its reply be lost.
                self.copy.forget().await;
                self.copy.abort(self.store, &upload).await;
                return Err(error);
            }
        }
        Ok(JournaledUpload { upload, part_size, parts: BTreeMap::new() })
    }

    /// Sends each part that the store does not have, and journals those that it took meanwhile, also when one fails in the end.
    async fn send_missing(&self, upload: &mut JournaledUpload, is_resumed: bool) -> Result<u64, Fault> {
        let missing: Vec<u32> = (0..self.count(upload)).filter(|index| !upload.parts.contains_key(index)).collect();
        let (id, part_size) = (upload.upload.clone(), upload.part_size);
        let range = |index| range_of(self.manifest, part_size, index);
        let mut parts = stream::iter(missing)
            .map(|index| {
                let (id, range) = (&id, range(index));
                async move { (index, self.send(id, index, range).await) }
            })
            .buffer_unordered(MAX_PARTS_AHEAD);
        let (mut sent, mut stored, mut journaled_at) = (0, Vec::new(), Instant::now());
        // Both go on at once: parts on their way do not wait for a ledger that is far.
        let mut journaling: Fuse<Journaling<'_>> = Fuse::terminated();
        loop {
            tokio::select! {
                biased;
                (left, journaled) = &mut journaling => {
                    journaled?;
                    if !left.is_empty() {
                        // The ledger fails. The next part tries again.
                        stored.splice(0..0, left);
                        continue;
                    }
                }
                part = parts.next() => match part {
                    Some((index, Ok(tag))) => {
                        sent += len(&range(index));
                        upload.parts.insert(index, tag.clone());
                        stored.push((index, tag));
                    }
                    Some((index, Err(fault))) => {
                        drop(parts);
                        self.journal_rest(stored, journaling).await?;
                        if is_resumed && sent == 0 {
                            self.replace_if_lost(&id, index, range(index), &fault).await;
                        }
                        return Err(fault);
                    }
                    None => break,
                },
            }
            let is_due = stored.len() >= MAX_UNJOURNALED
                || (!stored.is_empty() && journaled_at.elapsed() >= self.copy.lane.settings.progress_period);
            if is_due && journaling.is_terminated() {
                journaled_at = Instant::now();
                journaling = self.journal(std::mem::take(&mut stored)).boxed().fuse();
            }
        }
        drop(parts);
        self.shared.moving.end();
        self.journal_rest(stored, journaling).await?;
        Ok(sent)
    }

    /// Ends the journaling under way, then journals what came since.
    async fn journal_rest(&self, stored: Vec<Stored>, journaling: Fuse<Journaling<'_>>) -> Result<(), Fault> {
        let mut rest = Vec::new();
        if !journaling.is_terminated() {
            let (left, journaled) = journaling.await;
            journaled?;
            rest = left;
        }
        rest.extend(stored);
        self.journal(rest).await.1
    }

    /// Journals parts; those that are left. While the ledger fails the copy goes on, and the parts wait: at worst they are sent again.
    async fn journal(&self, mut parts: Vec<Stored>) -> (Vec<Stored>, Result<(), Fault>) {
        let Some(journal) = self.copy.lane.ledger.journal() else {
            return (Vec::new(), Ok(()));
        };
        while !parts.is_empty() {
            let batch = parts.len().min(MAX_BATCH);
            match self.copy.ledger_call(journal.add(&self.copy.task.lease, &parts[..batch])).await {
                Ok(()) => drop(parts.drain(..batch)),
                Err(Fault::Ledger(ledger::Error::Backend(error))) => {
                    warn!(error = %chain(&error), "parts cannot be journaled");
                    break;
                }
                Err(fault) => return (parts, Err(fault)),
            }
        }
        (parts, Ok(()))
    }

    /// Brings one part over, a few times if it must.
    async fn send(&self, upload: &UploadId, index: u32, range: Range<u64>) -> Result<PartTag, Fault> {
        let lane = self.copy.lane;
        for tries in 1.. {
            let held = self.shared.moving.hold_part(len(&range), || lane.parts_ahead(len(&range))).await;
            let begun = lane.begin_part();
            let moved = async {
                let part = self.read(range.clone()).await?;
                self.store.put_part(upload, index, part).await.map_err(Fault::Region)
            };
            let fault = match self.in_time(begun, moved).await {
                Ok(tag) => {
                    lane.note_part(begun, len(&range));
                    self.shared.add(len(&range));
                    lane.count_sent(len(&range));
                    return Ok(tag);
                }
                Err(fault) => fault,
            };
            drop(held);
            if tries >= lane.settings.part_attempts.max(1) || !fault.is_retryable() {
                return Err(fault);
            }
            debug!(index, tries, error = %chain(&fault), "a part failed");
            sleep(lane.settings.backoff.delay(tries)).await;
        }
        unreachable!("the last try returns")
    }

    /// Gives a part up when it takes longer than parts of this lane may by now.
    async fn in_time<T>(&self, begun: Begun, moved: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        let lane = self.copy.lane;
        tokio::pin!(moved);
        loop {
            let limit = lane.part_limit();
            if let Ok(moved) = timeout_at(begun.at + limit, &mut moved).await {
                return moved;
            }
            // The lane may have become slower since.
            if lane.part_limit() <= limit {
                lane.note_late_part(begun);
                return Err(Fault::PartTimeout(limit));
            }
        }
    }

    async fn read(&self, range: Range<u64>) -> Result<Vec<Bytes>, Fault> {
        verified::read(&*self.copy.lane.main, self.manifest, range).await
    }

    /// A store that does not know an upload any more may say so in words of its own, and what knows none may not be the store. One that takes a part in a
    /// fresh upload, and then none in the old, has lost the old: the next attempt starts over. One that was down meanwhile takes it in the old too.
    async fn replace_if_lost(&self, old: &UploadId, index: u32, range: Range<u64>, fault: &Fault) {
        let Fault::Region(_) = fault else { return };
        let Ok(fresh) = self.copy.store_call(self.store.begin()).await else { return };
        let is_taken = self.send(&fresh, index, range.clone()).await.is_ok();
        self.copy.abort(self.store, &fresh).await;
        if !is_taken || self.send(old, index, range).await.is_ok() {
            return;
        }
        warn!(upload = %old, "the store has lost the upload: the copy starts over");
        self.copy.give_up(self.store, old).await;
    }

    /// Makes the artifact of the parts, all of which were verified before they were sent. An upload that the store has lost, or whose parts it has not
    /// as they are named, is of no more use: the next attempt starts over. After any other failure, one of credentials too, it stays, and the next
    /// attempt finishes it.
    async fn finish(&self, upload: &JournaledUpload) -> Result<(), Fault> {
        let settings = &self.copy.lane.settings;
        let tags: Vec<_> = upload.parts.values().cloned().collect();
        for tries in 1.. {
            let finished = self.store.finish(&upload.upload, self.manifest, tags.clone());
            let error = match within(settings.stall_timeout, "artifact store", finished).await {
                // The journal forgets the upload when the copy is reported as complete.
                Ok(stored) if stored == *self.manifest => return Ok(()),
                Ok(stored) => return Err(Fault::Differs(stored.digest())),
                Err(error) => error,
            };
            if matches!(error, Error::NoUpload { .. } | Error::Corrupt { .. }) && self.begins_uploads().await {
                warn!(error = %chain(&error), "the upload cannot be finished: the copy starts over");
                self.copy.give_up(self.store, &upload.upload).await;
                return Err(Fault::Region(error));
            }
            if !error.is_retryable() || tries >= settings.part_attempts.max(1) {
                return Err(Fault::Region(error));
            }
            sleep(settings.backoff.delay(tries)).await;
        }
        unreachable!("the last try returns")
    }

    /// Whether what answers is a store: anything that finds nothing at an address says that it knows no upload.
    async fn begins_uploads(&self) -> bool {
        let Ok(fresh) = self.copy.store_call(self.store.begin()).await else { return false };
        self.copy.abort(self.store, &fresh).await;
        true
    }

    fn count(&self, upload: &JournaledUpload) -> u32 {
        self.manifest.size().div_ceil(upload.part_size) as u32
    }

    fn range(&self, upload: &JournaledUpload, index: u32) -> Range<u64> {
        range_of(self.manifest, upload.part_size, index)
    }
}

/// What the journal of a copy is for, besides going on.
impl Copy<'_> {
    /// The upload of the journal, if it fits the artifact as it is.
    async fn journaled(&self) -> Result<Option<JournaledUpload>, Fault> {
        match self.lane.ledger.journal() {
            Some(journal) => self.ledger_call(journal.upload(&self.task.lease)).await,
            None => Ok(None),
        }
    }

    /// Ends the upload of a copy that needs it no more: it is there by another way, or given up.
    pub(super) async fn drop_upload(&self) {
        let Some(store) = self.lane.store.multipart() else { return };
        match self.journaled().await {
            Ok(Some(upload)) => self.give_up(store, &upload.upload).await,
            Ok(None) => {}
            Err(error) => warn!(error = %chain(&error), "an upload may be left to the bucket's own rules"),
        }
    }

    async fn abort(&self, store: &dyn Multipart, upload: &UploadId) {
        if let Err(error) = self.store_call(store.abort(upload)).await {
            warn!(%upload, error = %chain(&error), "an upload is left to the bucket's own rules");
        }
    }

    /// Ends an upload. The journal comes first: it knows whether the copy is still this one's, and another that has taken the upload up
    /// would miss it.
    async fn give_up(&self, store: &dyn Multipart, upload: &UploadId) {
        if self.forget().await {
            self.abort(store, upload).await;
        }
    }

    /// Clears the journal; whether nothing of the upload is noted any more.
    async fn forget(&self) -> bool {
        let Some(journal) = self.lane.ledger.journal() else { return true };
        let cleared = self.ledger_call(journal.clear(&self.task.lease)).await;
        if let Err(error) = &cleared {
            // Whoever has the copy next finds that the store knows no such upload.
            debug!(error = %chain(error), "the journal cannot be cleared");
        }
        cleared.is_ok()
    }

    async fn ledger_call<T>(&self, call: impl Future<Output = Result<T, ledger::Error>>) -> Result<T, Fault> {
        match within(self.lane.settings.call_timeout, "ledger", call).await {
            Err(ledger::Error::LeaseLost { .. }) => Err(Fault::LeaseLost),
            told => told.map_err(Fault::Ledger),
        }
    }
}

fn range_of(manifest: &Manifest, part_size: u64, index: u32) -> Range<u64> {
    let start = u64::from(index) * part_size;
    start..manifest.size().min(start + part_size)
}

fn len(range: &Range<u64>) -> u64 {
    range.end - range.start
}
