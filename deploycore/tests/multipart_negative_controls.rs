//! Stores that are broken in their uploads by parts must fail the kit, each by a named case.
#![cfg(all(feature = "conformance", feature = "object-store"))]

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use bytesize::ByteSize;
use deploycore::conformance::store::{Plain, cases};
use deploycore::model::{Digest, LogName, Manifest};
use deploycore::port::store::{ArtifactStoreExt, Chunks, Deletion, Error, Multipart, PartTag, Source, UploadId};
use deploycore::port::{ArtifactStore, BackendError};
use deploycore::store::{BlobStore, BlobStoreSettings};
use futures::stream::BoxStream;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// Parts are joined in the order in which they came.
    JoinsAsTheyCame,
    /// A part that comes again is a further part.
    KeepsBothOfOnePart,
    /// Readers see an artifact once its last part is there.
    VisibleEarly,
    /// The second call to finish is refused.
    RefusesRepeat,
    /// What is missing is filled with zeroes.
    FillsGaps,
    /// Ending a finished upload takes the artifact away.
    AbortsTheFinished,
    /// Ending an upload of another store is an error.
    RefusesUnknownAborts,
    /// Its parts have one size, whatever the artifact's.
    PartsOfOneSize,
    /// Parts that it does not have are refused as any failure is told.
    RefusesInOtherWords,
}

/// A store whose uploads are gathered here, and put whole when they are finished.
#[derive(Debug)]
struct Broken {
    flaw: Flaw,
    inner: BlobStore,
    uploads: std::sync::Mutex<Vec<Upload>>,
}

#[derive(Debug, Default, Clone)]
struct Upload {
    parts: Vec<(u32, Bytes)>,
    ended: bool,
    digest: Option<Digest>,
}

impl Broken {
    fn new(flaw: Flaw) -> Self {
        let inner = BlobStore::open(&"memory://".parse().unwrap()).unwrap();
        let settings = BlobStoreSettings::default().with_part_size(ByteSize::kib(300));
        Self { flaw, inner: inner.with_settings(settings), uploads: std::sync::Mutex::default() }
    }

    fn with<T>(&self, upload: &UploadId, work: impl FnOnce(&mut Upload) -> T) -> Result<T, Error> {
        let unknown = || Error::NoUpload { upload: upload.clone() };
        let number: usize = upload.as_str().parse().map_err(|_| unknown())?;
        self.uploads.lock().unwrap().get_mut(number).map(work).ok_or_else(unknown)
    }
}

fn tag(upload: &UploadId, index: u32) -> PartTag {
    PartTag::new(format!("{}-{index}", upload.as_str()))
}

#[async_trait]
impl Multipart for Broken {
    fn part_size(&self, size: u64) -> u64 {
        if self.flaw == Flaw::PartsOfOneSize { 512 << 10 } else { self.inner.part_size(size) }
    }

    async fn begin(&self) -> Result<UploadId, Error> {
        let mut uploads = self.uploads.lock().unwrap();
        uploads.push(Upload::default());
        Ok(UploadId::new((uploads.len() - 1).to_string()))
    }

    async fn put_part(&self, upload: &UploadId, index: u32, part: Vec<Bytes>) -> Result<PartTag, Error> {
        let parts = self.with(upload, |upload| {
            if self.flaw != Flaw::KeepsBothOfOnePart {
                upload.parts.retain(|(known, _)| *known != index);
            }
            upload.parts.push((index, part.concat().into()));
            if self.flaw != Flaw::JoinsAsTheyCame {
                upload.parts.sort_by_key(|(index, _)| *index);
            }
            upload.parts.clone()
        })?;
        if self.flaw == Flaw::VisibleEarly && parts.len() == 3 {
            self.inner.put_bytes(parts.into_iter().map(|(_, part)| part).collect::<Vec<_>>().concat().into()).await?;
        }
        Ok(tag(upload, index))
    }

    async fn finish(&self, upload: &UploadId, manifest: &Manifest, tags: Vec<PartTag>) -> Result<Manifest, Error> {
        let digest = manifest.digest();
        if tags.iter().zip(0..).any(|(given, index)| *given != tag(upload, index)) {
            return Err(match self.flaw {
                Flaw::RefusesInOtherWords => BackendError::permanent("broken", "InvalidPart").into(),
                _ => Error::NoUpload { upload: upload.clone() },
            });
        }
        let known = self.with(upload, |upload| {
            let known = upload.clone();
            upload.digest = Some(digest);
            known
        })?;
        if known.digest.is_some() && self.flaw != Flaw::RefusesRepeat {
            return Ok(manifest.clone());
        }
        if known.ended || known.digest.is_some() {
            return Err(Error::NoUpload { upload: upload.clone() });
        }
        let mut bytes: Vec<u8> = known.parts.into_iter().flat_map(|(_, part)| part).collect();
        if self.flaw == Flaw::FillsGaps {
            // It believes the manifest that it was given.
            bytes.resize(manifest.size() as usize, 0);
            self.inner.put_bytes(bytes.into()).await?;
            return Ok(manifest.clone());
        }
        let stored = self.inner.put_bytes(bytes.into()).await?;
        if stored == *manifest {
            return Ok(stored);
        }
        self.inner.delete(&stored.digest()).await?;
        Err(Error::Corrupt { digest, detail: "its parts do not make it".into() })
    }

    async fn abort(&self, upload: &UploadId) -> Result<(), Error> {
        let Ok(known) = self.with(upload, |upload| {
            upload.ended = true;
            upload.clone()
        }) else {
            return if self.flaw == Flaw::RefusesUnknownAborts {
                Err(Error::NoUpload { upload: upload.clone() })
            } else {
                Ok(())
            };
        };
        match known.digest {
            Some(digest) if self.flaw == Flaw::AbortsTheFinished => self.inner.delete(&digest).await,
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl ArtifactStore for Broken {
    async fn put(&self, bytes: Source) -> Result<Manifest, Error> {
        self.inner.put(bytes).await
    }
    async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, Error> {
        self.inner.manifest(digest).await
    }
    async fn read(&self, digest: &Digest, range: Range<u64>) -> Result<Chunks, Error> {
        self.inner.read(digest, range).await
    }
    async fn exists(&self, digest: &Digest) -> Result<bool, Error> {
        self.inner.exists(digest).await
    }
    async fn delete(&self, digest: &Digest) -> Result<(), Error> {
        self.inner.delete(digest).await
    }

    async fn delete_idle(&self, digest: &Digest, idle: Duration) -> Result<Deletion, Error> {
        self.inner.delete_idle(digest, idle).await
    }
    fn list(&self) -> BoxStream<'_, Result<Digest, Error>> {
        self.inner.list()
    }
    async fn put_log(&self, log: &LogName, bytes: Bytes) -> Result<(), Error> {
        self.inner.put_log(log, bytes).await
    }
    async fn log(&self, log: &LogName) -> Result<Option<Bytes>, Error> {
        self.inner.log(log).await
    }
    fn multipart(&self) -> Option<&dyn Multipart> {
        Some(self)
    }
}

async fn outcome(flaw: Flaw, name: &str) -> Result<(), String> {
    let case = cases().into_iter().find(|case| case.name == name).expect("the kit has the case");
    case.run(Arc::new(Plain(Arc::new(Broken::new(flaw))))).await
}

#[tokio::test(start_paused = true)]
async fn without_a_flaw_every_case_passes() {
    for case in cases() {
        assert_eq!(outcome(Flaw::None, case.name).await, Ok(()), "{}", case.name);
    }
}

#[tokio::test(start_paused = true)]
async fn each_flaw_fails_the_case_that_is_about_it() {
    for (flaw, case) in [
        (Flaw::JoinsAsTheyCame, "multipart::parts_in_any_order_make_the_artifact"),
        (Flaw::VisibleEarly, "multipart::parts_in_any_order_make_the_artifact"),
        (Flaw::PartsOfOneSize, "multipart::parts_of_any_artifact_are_whole_pieces"),
        (Flaw::KeepsBothOfOnePart, "multipart::a_part_may_be_sent_again"),
        (Flaw::RefusesRepeat, "multipart::finishing_again_gives_the_same_answer"),
        (Flaw::FillsGaps, "multipart::a_missing_part_is_no_artifact"),
        (Flaw::AbortsTheFinished, "multipart::an_aborted_upload_leaves_nothing"),
        (Flaw::RefusesUnknownAborts, "multipart::an_aborted_upload_leaves_nothing"),
        (Flaw::RefusesInOtherWords, "multipart::a_part_that_the_store_does_not_have_makes_the_upload_of_no_use"),
    ] {
        assert!(outcome(flaw, case).await.is_err(), "{flaw:?} is not caught by {case}");
    }
}
