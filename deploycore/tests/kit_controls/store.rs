//! A store in memory, with uploads by parts and with one fault.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deploycore::conformance::store::{Harness, cases};
use deploycore::model::{Digest, LogName, Manifest, piece_size_for};
use deploycore::port::ArtifactStore;
use deploycore::port::store::{Chunks, Deletion, Error, MAX_CHUNK, MAX_LOG, Multipart, PartTag, Source, UploadId};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tokio::task::yield_now;
use tokio::time::Instant;

use crate::{assert_all_pass, assert_caught, assert_pass_elsewhere};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    ShowsWhatHasCome,
    KeepsFailedPuts,
    FailedPutsTakeAway,
    OthersSeeItLater,
    LetsBytesMix,
    RangesAreCut,
    RangesHaveTheirEnd,
    ChunksAreWhole,
    DeletesTheBytesAlone,
    DeletesWithoutALook,
    RepeatedPutsStayOld,
    LooksBeforeItDeletes,
    ListsTwice,
    LogsAreOfTheJob,
    TheFirstLogStays,
    LogsAreArtifacts,
    LogsAreUnbounded,
    PartsAreInOrderOfArrival,
    PartsAreOfOneProcess,
    PartsOfOneSize,
    FinishesWithWhatIsThere,
    FinishesOnce,
    AbortsWhatIsFinished,
    BelievesTheManifest,
    FinishBelievesTheManifest,
}

/// Each fault with the cases that must catch it.
const CONTROLS: &[(Fault, &[&str])] = &[
    (
        Fault::ShowsWhatHasCome,
        &["visible::nothing_is_there_before_the_last_byte", "visible::a_dropped_put_leaves_nothing"],
    ),
    (
        Fault::KeepsFailedPuts,
        &[
            "visible::a_failing_source_leaves_nothing",
            "visible::a_source_that_fails_at_its_end_leaves_nothing",
            "visible::a_source_that_fails_at_once_leaves_nothing",
        ],
    ),
    (Fault::FailedPutsTakeAway, &["visible::a_failed_put_of_stored_bytes_takes_nothing_away"]),
    (Fault::OthersSeeItLater, &["put::another_process_sees_what_was_put", "logs::a_log_comes_back"]),
    (Fault::LetsBytesMix, &["put::different_bytes_at_once_keep_apart"]),
    (Fault::RangesAreCut, &["read::a_range_past_the_end_is_refused"]),
    (Fault::RangesHaveTheirEnd, &["read::ranges_give_their_bytes", "read::random_ranges_give_their_bytes"]),
    (Fault::ChunksAreWhole, &["read::chunks_are_bounded"]),
    (Fault::DeletesTheBytesAlone, &["delete::a_deleted_artifact_is_gone", "delete::deleting_again_changes_nothing"]),
    (Fault::DeletesWithoutALook, &["delete::only_what_is_idle_is_deleted", "delete::a_repeated_put_makes_young"]),
    (Fault::RepeatedPutsStayOld, &["delete::a_repeated_put_makes_young"]),
    (Fault::LooksBeforeItDeletes, &["delete::what_is_put_beside_deletions_stays"]),
    (Fault::ListsTwice, &["delete::a_list_names_each_artifact_once"]),
    (Fault::LogsAreOfTheJob, &["logs::attempts_have_logs_of_their_own", "logs::an_unknown_log_is_none"]),
    (Fault::TheFirstLogStays, &["logs::the_last_write_wins"]),
    (Fault::LogsAreArtifacts, &["logs::a_log_is_no_artifact"]),
    (Fault::LogsAreUnbounded, &["logs::the_largest_log_fits_and_a_larger_one_is_refused"]),
    (
        Fault::PartsAreInOrderOfArrival,
        &[
            "multipart::parts_in_any_order_make_the_artifact",
            "multipart::a_part_may_be_sent_again",
            "multipart::parts_sent_at_once_make_the_artifact",
        ],
    ),
    (Fault::PartsAreOfOneProcess, &["multipart::another_process_goes_on"]),
    (Fault::PartsOfOneSize, &["multipart::parts_of_any_artifact_are_whole_pieces"]),
    (Fault::FinishesWithWhatIsThere, &["multipart::a_missing_part_is_no_artifact"]),
    (Fault::FinishesOnce, &["multipart::finishing_again_gives_the_same_answer"]),
    (Fault::AbortsWhatIsFinished, &["multipart::an_aborted_upload_leaves_nothing"]),
    (Fault::BelievesTheManifest, &["damage::lost_bytes_are_noticed"]),
    (Fault::FinishBelievesTheManifest, &["multipart::bytes_that_were_lost_are_stored_anew"]),
];

#[tokio::test(start_paused = true)]
async fn without_a_fault_every_case_passes() {
    assert_all_pass(&cases(), || Broken::make(Fault::None)).await;
}

#[tokio::test(start_paused = true)]
async fn each_fault_fails_the_cases_that_are_about_it() {
    assert_caught(&cases(), CONTROLS, Broken::make).await;
}

#[tokio::test(start_paused = true)]
async fn each_fault_passes_what_is_about_something_else() {
    let elsewhere = [
        "visible::an_unknown_artifact_is_not_there",
        "read::an_empty_range_gives_nothing",
        "delete::an_empty_store_lists_nothing",
    ];
    assert_pass_elsewhere(&cases(), CONTROLS, &elsewhere, Broken::make).await;
}

#[derive(Debug, Clone, Default)]
struct State {
    artifacts: BTreeMap<Digest, Stored>,
    logs: BTreeMap<String, Bytes>,
    uploads: BTreeMap<String, Upload>,
    begun: u64,
    /// What comes from all sources, for the fault that lets them mix.
    mixed: Vec<u8>,
}

#[derive(Debug, Clone)]
struct Stored {
    manifest: Manifest,
    /// `None` when they were taken away behind the store's back.
    bytes: Option<Bytes>,
    put_at: Instant,
}

#[derive(Debug, Clone, Default)]
struct Upload {
    /// With their numbers, in the order of their coming.
    parts: Vec<(u32, Bytes)>,
    finished: Option<Digest>,
}

/// One process of the store.
#[derive(Debug, Clone)]
struct Broken {
    fault: Fault,
    state: Arc<Mutex<State>>,
    process: u32,
}

impl Broken {
    fn make(fault: Fault) -> Arc<dyn Harness> {
        Arc::new(Self { fault, state: Arc::default(), process: 0 })
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, bytes: &Bytes) -> Manifest {
        let manifest = Manifest::of(bytes);
        let stored = Stored { manifest: manifest.clone(), bytes: Some(bytes.clone()), put_at: Instant::now() };
        let mut state = self.locked();
        let known = state.artifacts.entry(manifest.digest()).or_insert_with(|| stored.clone());
        known.bytes = stored.bytes;
        if !self.is(Fault::RepeatedPutsStayOld) {
            known.put_at = stored.put_at;
        }
        manifest
    }

    fn whole(&self, digest: &Digest) -> Option<Stored> {
        self.locked().artifacts.get(digest).filter(|stored| stored.bytes.is_some()).cloned()
    }

    fn log_name(&self, log: &LogName) -> String {
        if self.is(Fault::LogsAreOfTheJob) { log.job.to_string() } else { log.to_string() }
    }
}

#[async_trait]
impl Harness for Broken {
    fn store(&self) -> Arc<dyn ArtifactStore> {
        Arc::new(self.clone())
    }

    async fn reopen(&self) -> Arc<dyn ArtifactStore> {
        let mut state = Arc::clone(&self.state);
        if self.is(Fault::OthersSeeItLater) {
            state = Arc::default();
        }
        Arc::new(Self { fault: self.fault, state, process: self.process + 1 })
    }

    async fn damage(&self, digest: &Digest, at: u64) -> bool {
        let mut state = self.locked();
        let bytes = &mut state.artifacts.get_mut(digest).expect("it was put").bytes;
        let mut changed = bytes.as_ref().expect("it is whole").to_vec();
        changed[at as usize] ^= 1;
        *bytes = Some(changed.into());
        true
    }

    async fn lose(&self, digest: &Digest) -> bool {
        self.locked().artifacts.get_mut(digest).expect("it was put").bytes = None;
        true
    }
}

#[async_trait]
impl ArtifactStore for Broken {
    async fn put(&self, mut source: Source) -> Result<Manifest, Error> {
        let mut bytes = Vec::new();
        loop {
            match source.try_next().await {
                Ok(None) => break,
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Err(error) => {
                    let digest = Digest::of(&bytes);
                    match self.fault {
                        Fault::KeepsFailedPuts => drop(self.publish(&bytes.into())),
                        Fault::FailedPutsTakeAway => drop(self.locked().artifacts.remove(&digest)),
                        _ => {}
                    }
                    return Err(Error::Source(error));
                }
            }
            if self.is(Fault::ShowsWhatHasCome) {
                self.publish(&Bytes::copy_from_slice(&bytes));
            }
            if self.is(Fault::LetsBytesMix) {
                self.locked().mixed.append(&mut bytes);
                yield_now().await;
            }
        }
        if self.is(Fault::LetsBytesMix) {
            bytes = std::mem::take(&mut self.locked().mixed);
        }
        Ok(self.publish(&bytes.into()))
    }

    async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, Error> {
        Ok(self.locked().artifacts.get(digest).map(|stored| stored.manifest.clone()))
    }

    async fn read(&self, digest: &Digest, range: Range<u64>) -> Result<Chunks, Error> {
        let bytes = match self.whole(digest).and_then(|stored| stored.bytes) {
            Some(bytes) => bytes,
            None if self.is(Fault::BelievesTheManifest) && self.locked().artifacts.contains_key(digest) => Bytes::new(),
            None => return Err(Error::NotFound { digest: *digest }),
        };
        let size = bytes.len() as u64;
        let is_lenient = self.is(Fault::RangesAreCut) || self.is(Fault::BelievesTheManifest);
        if (range.start > range.end || range.end > size) && !is_lenient {
            return Err(Error::Invalid(format!("bytes {}..{} of {size}", range.start, range.end)));
        }
        let end = if self.is(Fault::RangesHaveTheirEnd) && !range.is_empty() { range.end + 1 } else { range.end };
        let end = end.min(size);
        let bytes = bytes.slice(range.start.min(end) as usize..end as usize);
        let most = if self.is(Fault::ChunksAreWhole) { bytes.len().max(1) } else { MAX_CHUNK };
        let spans = (0..bytes.len()).step_by(most).map(move |at| bytes.slice(at..bytes.len().min(at + most)));
        Ok(stream::iter(spans.map(Ok).collect::<Vec<_>>()).boxed())
    }

    async fn exists(&self, digest: &Digest) -> Result<bool, Error> {
        let is_known = self.locked().artifacts.contains_key(digest);
        Ok(if self.is(Fault::BelievesTheManifest) { is_known } else { self.whole(digest).is_some() })
    }

    async fn delete(&self, digest: &Digest) -> Result<(), Error> {
        let mut state = self.locked();
        match state.artifacts.get_mut(digest) {
            Some(stored) if self.is(Fault::DeletesTheBytesAlone) => stored.bytes = None,
            _ => drop(state.artifacts.remove(digest)),
        }
        Ok(())
    }

    async fn delete_idle(&self, digest: &Digest, idle: Duration) -> Result<Deletion, Error> {
        let young = |stored: &Stored| stored.put_at.elapsed() < idle && !self.is(Fault::DeletesWithoutALook);
        if self.whole(digest).as_ref().is_some_and(young) {
            return Ok(Deletion::InUse);
        }
        if self.is(Fault::LooksBeforeItDeletes) {
            yield_now().await;
        }
        self.locked().artifacts.remove(digest);
        Ok(Deletion::Gone)
    }

    fn list(&self) -> BoxStream<'_, Result<Digest, Error>> {
        let mut digests: Vec<_> = self.locked().artifacts.keys().copied().map(Ok).collect();
        if self.is(Fault::ListsTwice) {
            digests.extend(self.locked().artifacts.keys().copied().map(Ok));
        }
        stream::iter(digests).boxed()
    }

    async fn put_log(&self, log: &LogName, bytes: Bytes) -> Result<(), Error> {
        if bytes.len() > MAX_LOG && !self.is(Fault::LogsAreUnbounded) {
            return Err(Error::Invalid(format!("a log of {} bytes", bytes.len())));
        }
        if self.is(Fault::LogsAreArtifacts) {
            self.publish(&bytes);
        }
        let mut state = self.locked();
        let name = self.log_name(log);
        if !(self.is(Fault::TheFirstLogStays) && state.logs.contains_key(&name)) {
            state.logs.insert(name, bytes);
        }
        Ok(())
    }

    async fn log(&self, log: &LogName) -> Result<Option<Bytes>, Error> {
        Ok(self.locked().logs.get(&self.log_name(log)).cloned())
    }

    fn multipart(&self) -> Option<&dyn Multipart> {
        Some(self)
    }
}

fn no_upload(upload: &UploadId) -> Error {
    Error::NoUpload { upload: upload.clone() }
}

#[async_trait]
impl Multipart for Broken {
    fn part_size(&self, size: u64) -> u64 {
        let piece = piece_size_for(size);
        if self.is(Fault::PartsOfOneSize) {
            piece_size_for(1)
        } else {
            piece.max(size.div_ceil(9_000).next_multiple_of(piece))
        }
    }

    async fn begin(&self) -> Result<UploadId, Error> {
        let mut state = self.locked();
        state.begun += 1;
        let upload = UploadId::new(format!("{}-{}", self.process, state.begun));
        state.uploads.insert(upload.as_str().to_owned(), Upload::default());
        Ok(upload)
    }

    async fn put_part(&self, upload: &UploadId, index: u32, part: Vec<Bytes>) -> Result<PartTag, Error> {
        let is_own = upload.as_str().starts_with(&format!("{}-", self.process));
        if self.is(Fault::PartsAreOfOneProcess) && !is_own {
            return Err(no_upload(upload));
        }
        let mut state = self.locked();
        let parts = &mut state.uploads.get_mut(upload.as_str()).ok_or_else(|| no_upload(upload))?.parts;
        if !self.is(Fault::PartsAreInOrderOfArrival) {
            parts.retain(|(known, _)| *known != index);
        }
        let bytes = Bytes::from(part.concat());
        let tag = PartTag::new(format!("{index}-{}", Digest::of(&bytes)));
        parts.push((index, bytes));
        Ok(tag)
    }

    async fn finish(&self, upload: &UploadId, manifest: &Manifest, tags: Vec<PartTag>) -> Result<Manifest, Error> {
        let known = self.locked().uploads.get(upload.as_str()).cloned().ok_or_else(|| no_upload(upload))?;
        if known.finished.is_some() && self.is(Fault::FinishesOnce) {
            return Err(no_upload(upload));
        }
        let mut parts = known.parts;
        if !self.is(Fault::PartsAreInOrderOfArrival) {
            parts.sort_unstable_by_key(|(index, _)| *index);
        }
        let is_named =
            |(tag, (index, bytes)): (&PartTag, &(u32, Bytes))| tag.as_str() == format!("{index}-{}", Digest::of(bytes));
        let is_lenient = self.is(Fault::FinishesWithWhatIsThere) || self.is(Fault::PartsAreInOrderOfArrival);
        let are_named = tags.len() == parts.len() && tags.iter().zip(&parts).all(is_named);
        if !is_lenient && !are_named {
            return Err(no_upload(upload));
        }
        let bytes = Bytes::from(parts.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>().concat());
        if bytes.len() as u64 != manifest.size() && !is_lenient {
            let detail = format!("{} bytes of {}", bytes.len(), manifest.size());
            return Err(Error::Corrupt { digest: manifest.digest(), detail });
        }
        if let Some(upload) = self.locked().uploads.get_mut(upload.as_str()) {
            upload.finished = Some(manifest.digest());
        }
        let stored = Stored { manifest: manifest.clone(), bytes: Some(bytes), put_at: Instant::now() };
        let mut state = self.locked();
        match state.artifacts.get(&manifest.digest()) {
            Some(known) if known.bytes.is_some() || self.is(Fault::FinishBelievesTheManifest) => {}
            _ => drop(state.artifacts.insert(manifest.digest(), stored)),
        }
        Ok(manifest.clone())
    }

    async fn abort(&self, upload: &UploadId) -> Result<(), Error> {
        let mut state = self.locked();
        match state.uploads.get(upload.as_str()).map(|upload| upload.finished) {
            Some(Some(digest)) if self.is(Fault::AbortsWhatIsFinished) => drop(state.artifacts.remove(&digest)),
            Some(None) => drop(state.uploads.remove(upload.as_str())),
            _ => {}
        }
        Ok(())
    }
}
