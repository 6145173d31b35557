//! Broken stores must fail the kit: each breaks one sentence of the contract, and a named case sees it.
#![cfg(feature = "conformance")]

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deploycore::conformance::store::{Plain, cases};
use deploycore::memory::Store;
use deploycore::model::{Digest, Epoch, LogName, Manifest};
use deploycore::port::store::{ArtifactStoreExt, Chunks, Deletion, Error, Source};
use deploycore::port::{ArtifactStore, BackendError};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// Bytes can be read while their put still runs.
    VisibleEarly,
    /// What a failing source gave is kept under its own digest.
    KeepsFailed,
    /// The error of a source is taken for its end.
    SwallowsError,
    /// A put that is dropped leaves what came so far.
    KeepsDropped,
    /// A failed put of stored bytes cleans up by their digest.
    CleansByDigest,
    /// The last byte is forgotten.
    CutsOff,
    /// Chunks are stored in the order of their bytes, not as they came.
    MixesChunks,
    /// A second put is refused.
    RefusesRepeat,
    /// Of two puts at once one is refused: it looks and stores in two steps.
    LooksThenStores,
    /// The manifest of an unknown artifact is that of no bytes.
    InventsManifest,
    ExistsAlways,
    /// A read ignores its range.
    IgnoresRange,
    /// A range past the end is cut.
    CutsRange,
    /// The end of a range counts as within.
    ReadsOneMore,
    /// A read gives one chunk whatever its size.
    UnboundedChunks,
    /// What is not there reads as no bytes.
    ReadsAbsent,
    /// An empty range is refused.
    RefusesEmptyRange,
    ListsTwice,
    ListsNothing,
    NeverDeletes,
    /// Deleting what is not there is an error.
    RefusesAbsentDelete,
    /// A digest that was deleted once is gone for ever.
    DeletesForEver,
    /// A deletion of what is idle does not look when it was put.
    DeletesWhatIsInUse,
    /// A put of stored bytes leaves them as old as they are.
    RepeatsLeaveNoTrace,
    FirstLogWins,
    UnboundedLogs,
    /// Attempts of a job share a log.
    SharesLogs,
    /// A log is stored as an artifact.
    LogsAreArtifacts,
}

#[derive(Debug)]
struct Broken {
    flaw: Flaw,
    inner: Store,
    deleted: std::sync::Mutex<BTreeSet<Digest>>,
}

/// Stores what it holds when it is dropped.
struct KeepOnDrop<'a>(&'a Store, Vec<u8>);

impl Drop for KeepOnDrop<'_> {
    fn drop(&mut self) {
        let bytes = Bytes::from(std::mem::take(&mut self.1));
        futures::FutureExt::now_or_never(self.0.put_bytes(bytes)).unwrap().unwrap();
    }
}

impl Broken {
    fn new(flaw: Flaw) -> Self {
        Self { flaw, inner: Store::new(), deleted: std::sync::Mutex::default() }
    }

    fn log_name(&self, log: &LogName) -> LogName {
        if self.flaw == Flaw::SharesLogs { LogName { epoch: Epoch::ZERO, ..*log } } else { *log }
    }

    async fn gather(&self, mut source: Source) -> Result<Vec<Bytes>, Error> {
        let mut kept = (self.flaw == Flaw::KeepsDropped).then(|| KeepOnDrop(&self.inner, Vec::new()));
        let mut chunks = Vec::new();
        loop {
            match source.try_next().await {
                Ok(Some(chunk)) => {
                    if let Some(kept) = &mut kept {
                        kept.1.extend_from_slice(&chunk);
                    }
                    chunks.push(chunk);
                    if self.flaw == Flaw::VisibleEarly {
                        self.inner.put_bytes(chunks.concat().into()).await?;
                    }
                }
                Ok(None) => break,
                Err(_) if self.flaw == Flaw::SwallowsError => break,
                Err(error) => {
                    match self.flaw {
                        Flaw::KeepsFailed => drop(self.inner.put_bytes(chunks.concat().into()).await?),
                        Flaw::CleansByDigest => self.inner.delete(&Digest::of(&chunks.concat())).await?,
                        _ => {}
                    }
                    return Err(Error::Source(error));
                }
            }
        }
        Ok(chunks)
    }
}

#[async_trait]
impl ArtifactStore for Broken {
    async fn put(&self, source: Source) -> Result<Manifest, Error> {
        let mut chunks = self.gather(source).await?;
        if self.flaw == Flaw::MixesChunks {
            chunks.sort();
        }
        let mut bytes = chunks.concat();
        if self.flaw == Flaw::CutsOff {
            bytes.pop();
        }
        let digest = Digest::of(&bytes);
        if self.flaw == Flaw::RefusesRepeat && self.inner.exists(&digest).await? {
            return Err(BackendError::permanent("broken", "it exists").into());
        }
        if self.flaw == Flaw::LooksThenStores {
            let there = self.inner.exists(&digest).await?;
            tokio::task::yield_now().await;
            if !there && self.inner.exists(&digest).await? {
                return Err(BackendError::permanent("broken", "it exists by now").into());
            }
        }
        if self.flaw == Flaw::RepeatsLeaveNoTrace
            && let Some(manifest) = self.inner.manifest(&digest).await?
        {
            return Ok(manifest);
        }
        self.inner.put_bytes(bytes.into()).await
    }

    async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, Error> {
        let found = self.inner.manifest(digest).await?;
        Ok(if self.flaw == Flaw::InventsManifest { found.or_else(|| Some(Manifest::of(b""))) } else { found })
    }

    async fn read(&self, digest: &Digest, range: Range<u64>) -> Result<Chunks, Error> {
        let size = self.inner.manifest(digest).await?.map(|manifest| manifest.size());
        match (self.flaw, size) {
            (Flaw::IgnoresRange, Some(size)) => self.inner.read(digest, 0..size).await,
            (Flaw::CutsRange, Some(size)) => {
                let end = range.end.min(size);
                self.inner.read(digest, range.start.min(end)..end).await
            }
            (Flaw::ReadsOneMore, Some(size)) if range.end < size => {
                self.inner.read(digest, range.start..range.end + 1).await
            }
            (Flaw::UnboundedChunks, Some(_)) => {
                let bytes = Bytes::from(self.inner.read_all(digest, range).await?);
                Ok(stream::iter([Ok(bytes)]).boxed())
            }
            (Flaw::ReadsAbsent, None) => Ok(stream::empty().boxed()),
            (Flaw::RefusesEmptyRange, Some(_)) if range.is_empty() => Err(Error::Invalid("no bytes".into())),
            _ => self.inner.read(digest, range).await,
        }
    }

    async fn exists(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(self.flaw == Flaw::ExistsAlways || self.inner.exists(digest).await?)
    }

    async fn delete(&self, digest: &Digest) -> Result<(), Error> {
        match self.flaw {
            Flaw::NeverDeletes => return Ok(()),
            Flaw::RefusesAbsentDelete if !self.inner.exists(digest).await? => {
                return Err(Error::NotFound { digest: *digest });
            }
            Flaw::DeletesForEver => {
                self.deleted.lock().unwrap().insert(*digest);
            }
            _ => {}
        }
        self.inner.delete(digest).await
    }

    async fn delete_idle(&self, digest: &Digest, idle: Duration) -> Result<Deletion, Error> {
        let idle = if self.flaw == Flaw::DeletesWhatIsInUse { Duration::ZERO } else { idle };
        self.inner.delete_idle(digest, idle).await
    }

    fn list(&self) -> BoxStream<'_, Result<Digest, Error>> {
        match self.flaw {
            Flaw::ListsTwice => self.inner.list().chain(self.inner.list()).boxed(),
            Flaw::ListsNothing => stream::empty().boxed(),
            Flaw::DeletesForEver => {
                let deleted = self.deleted.lock().unwrap().clone();
                self.inner.list().try_filter(move |digest| std::future::ready(!deleted.contains(digest))).boxed()
            }
            _ => self.inner.list(),
        }
    }

    async fn put_log(&self, log: &LogName, bytes: Bytes) -> Result<(), Error> {
        let log = self.log_name(log);
        match self.flaw {
            Flaw::FirstLogWins if self.inner.log(&log).await?.is_some() => return Ok(()),
            Flaw::UnboundedLogs => {
                let bytes = bytes.slice(..bytes.len().min(1000));
                return self.inner.put_log(&log, bytes).await;
            }
            Flaw::LogsAreArtifacts => drop(self.inner.put_bytes(bytes.clone()).await?),
            _ => {}
        }
        self.inner.put_log(&log, bytes).await
    }

    async fn log(&self, log: &LogName) -> Result<Option<Bytes>, Error> {
        self.inner.log(&self.log_name(log)).await
    }
}

/// Whether the case that is to catch the flaw fails.
async fn assert_caught(flaw: Flaw, by: &'static str) {
    let case = cases().into_iter().find(|case| case.name == by).expect("the kit has the case");
    let outcome = case.run(Arc::new(Plain(Arc::new(Broken::new(flaw))))).await;
    assert!(outcome.is_err(), "{flaw:?} is not caught by {by}");
}

#[tokio::test(start_paused = true)]
async fn the_wrapper_itself_breaks_nothing() {
    for case in cases() {
        let outcome = case.run(Arc::new(Plain(Arc::new(Broken::new(Flaw::None))))).await;
        assert_eq!(outcome, Ok(()), "{}", case.name);
    }
}

macro_rules! controls {
    ($($name:ident: $flaw:ident is caught by $case:literal;)*) => {
        $(
            #[tokio::test(start_paused = true)]
            async fn $name() {
                assert_caught(Flaw::$flaw, $case).await;
            }
        )*
    };
}

controls! {
    bytes_before_their_end: VisibleEarly is caught by "visible::nothing_is_there_before_the_last_byte";
    a_failed_put_that_shows: KeepsFailed is caught by "visible::a_failing_source_leaves_nothing";
    an_error_that_is_swallowed: SwallowsError is caught by "visible::a_source_that_fails_at_its_end_leaves_nothing";
    a_dropped_put_that_shows: KeepsDropped is caught by "visible::a_dropped_put_leaves_nothing";
    a_clean_up_that_takes_too_much: CleansByDigest is caught by "visible::a_failed_put_of_stored_bytes_takes_nothing_away";
    a_lost_byte: CutsOff is caught by "put::bytes_of_any_size_come_back";
    chunks_out_of_order: MixesChunks is caught by "put::chunks_of_any_size_make_the_same_artifact";
    a_refused_repeat: RefusesRepeat is caught by "put::the_same_bytes_again_are_the_same_artifact";
    a_race_between_publishers: LooksThenStores is caught by "put::the_same_bytes_at_once_are_one_artifact";
    an_invented_manifest: InventsManifest is caught by "visible::an_unknown_artifact_is_not_there";
    an_invented_artifact: ExistsAlways is caught by "visible::an_unknown_artifact_is_not_there";
    an_ignored_range: IgnoresRange is caught by "read::ranges_give_their_bytes";
    a_cut_range: CutsRange is caught by "read::a_range_past_the_end_is_refused";
    one_byte_too_many: ReadsOneMore is caught by "read::ranges_give_their_bytes";
    a_chunk_without_bound: UnboundedChunks is caught by "read::chunks_are_bounded";
    nothing_read_as_no_bytes: ReadsAbsent is caught by "read::what_is_not_there_cannot_be_read";
    a_refused_empty_range: RefusesEmptyRange is caught by "read::an_empty_range_gives_nothing";
    a_list_with_repeats: ListsTwice is caught by "delete::a_list_names_each_artifact_once";
    an_empty_list: ListsNothing is caught by "delete::a_list_names_each_artifact_once";
    a_delete_that_does_not: NeverDeletes is caught by "delete::a_deleted_artifact_is_gone";
    a_delete_that_is_refused: RefusesAbsentDelete is caught by "delete::deleting_again_changes_nothing";
    a_delete_for_ever: DeletesForEver is caught by "delete::a_deleted_artifact_can_be_stored_again";
    a_deletion_that_does_not_look: DeletesWhatIsInUse is caught by "delete::only_what_is_idle_is_deleted";
    a_repeat_that_does_not_count: RepeatsLeaveNoTrace is caught by "delete::a_repeated_put_makes_young";
    a_put_that_is_lost_to_a_deletion: RepeatsLeaveNoTrace is caught by "delete::what_is_put_beside_deletions_stays";
    a_log_that_stays: FirstLogWins is caught by "logs::the_last_write_wins";
    a_log_without_bound: UnboundedLogs is caught by "logs::the_largest_log_fits_and_a_larger_one_is_refused";
    a_log_for_all_attempts: SharesLogs is caught by "logs::attempts_have_logs_of_their_own";
    a_log_among_artifacts: LogsAreArtifacts is caught by "logs::a_log_is_no_artifact";
}
