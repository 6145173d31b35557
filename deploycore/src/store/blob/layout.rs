//! Where a [`BlobStore`](super::BlobStore) keeps what, and what a manifest object looks like.

use bytes::Bytes;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::fault::permanent;
use crate::model::{Digest, Epoch, LogName, Manifest};
use crate::port::store::Error;

/// The first line of a manifest object is shorter than this.
pub(super) const MAX_HEADER: u64 = 256;

/// The version of the layout that this code writes, and the only one that it reads. Each version keeps the first line of a manifest
/// object JSON with a `format`, so that an older program knows what it must leave alone.
const FORMAT: u32 = 1;

/// Why a manifest object cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unusable {
    /// It was changed or cut after it was written: a put may replace it.
    Damaged(String),
    /// A newer program wrote it, for others like itself: it stays.
    Newer(u32),
}

impl Unusable {
    pub(super) fn into_error(self, digest: &Digest) -> Error {
        match self {
            Self::Damaged(detail) => Error::Corrupt { digest: *digest, detail },
            Self::Newer(format) => {
                permanent(format!("the manifest of {digest} has format {format}; this program reads up to {FORMAT}"))
            }
        }
    }
}

/// The key of a blob; each put takes a fresh one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct BlobKey(Uuid);

impl BlobKey {
    pub(super) fn fresh() -> Self {
        Self(Uuid::now_v7())
    }
}

/// The paths of a store.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    prefix: Path,
}

impl Layout {
    pub(super) const BLOBS: &'static str = "blobs";
    pub(super) const MANIFESTS: &'static str = "manifests";
    pub(super) const LOGS: &'static str = "logs";
    pub(super) const TOUCHES: &'static str = "touches";
    pub(super) const DELETIONS: &'static str = "deletions";

    pub(super) fn new(prefix: Path) -> Self {
        Self { prefix }
    }

    pub(super) fn blobs(&self) -> Path {
        self.prefix.clone().join(Self::BLOBS)
    }

    pub(super) fn manifests(&self) -> Path {
        self.prefix.clone().join(Self::MANIFESTS)
    }

    pub(super) fn blob(&self, key: BlobKey) -> Path {
        self.blobs().join(key.0.to_string())
    }

    pub(super) fn manifest(&self, digest: &Digest) -> Path {
        self.manifests().join(digest.to_string())
    }

    /// Written whenever bytes are put that are there already.
    pub(super) fn touch(&self, digest: &Digest) -> Path {
        self.prefix.clone().join(Self::TOUCHES).join(digest.to_string())
    }

    pub(super) fn deletions(&self) -> Path {
        self.prefix.clone().join(Self::DELETIONS)
    }

    /// Says that a deletion is under way; each has a mark of its own.
    pub(super) fn fresh_mark(&self, digest: &Digest) -> Path {
        self.deletions().join(format!("{digest}-{}", Uuid::now_v7()))
    }

    /// Whether a path is a mark of a deletion of this artifact.
    pub(super) fn marks(path: &Path, digest: &Digest) -> bool {
        let rest = path.filename().and_then(|name| name.strip_prefix(&digest.to_string()));
        rest.is_some_and(|rest| rest.starts_with('-'))
    }

    pub(super) fn logs(&self) -> Path {
        self.prefix.clone().join(Self::LOGS)
    }

    pub(super) fn log(&self, log: &LogName) -> Path {
        self.logs().join(log.job.to_string()).join(log.epoch.to_string())
    }

    /// Whether a path is that of a log of this layout.
    pub(super) fn is_log(&self, path: &Path) -> bool {
        let mut parts = path.as_ref().rsplit('/');
        let epoch = parts.next().and_then(|epoch| epoch.parse().ok());
        let job = parts.next().and_then(|job| job.parse().ok());
        let name = job.zip(epoch).map(|(job, epoch)| LogName { job, epoch: Epoch::new(epoch) });
        name.is_some_and(|name| self.log(&name) == *path)
    }

    /// The key in a blob's path; `None` for what is not a blob of this layout.
    pub(super) fn key_of(path: &Path) -> Option<BlobKey> {
        path.filename()?.parse().ok().map(BlobKey)
    }

    /// The digest in a manifest's path; `None` for what is not a manifest of this layout.
    pub(super) fn digest_of(path: &Path) -> Option<Digest> {
        path.filename()?.parse().ok()
    }
}

/// The first line of a manifest object: what a reader of bytes and a sweep need, at the cost of one short read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    format: u32,
    /// The blob that holds the bytes.
    pub(super) blob: BlobKey,
    /// Its size.
    pub(super) size: u64,
}

impl Header {
    /// Reads the first line of a manifest object, or says what is wrong with it.
    pub(super) fn decode(start: &[u8]) -> Result<Self, Unusable> {
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        let line = start.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let damaged = |error| Unusable::Damaged(format!("its manifest's first line: {error}"));
        match serde_json::from_slice(line).map_err(damaged)? {
            Versioned { format: FORMAT } => serde_json::from_slice(line).map_err(damaged),
            Versioned { format } if format > FORMAT => Err(Unusable::Newer(format)),
            Versioned { format } => {
                Err(Unusable::Damaged(format!("its manifest has format {format}, which never was")))
            }
        }
    }
}

/// A manifest object: a line of header, a line of manifest, both JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) header: Header,
    pub(super) manifest: Manifest,
}

impl Record {
    pub(super) fn new(blob: BlobKey, manifest: Manifest) -> Self {
        Self { header: Header { format: FORMAT, blob, size: manifest.size() }, manifest }
    }

    pub(super) fn encode(&self) -> Result<Bytes, serde_json::Error> {
        let mut bytes = serde_json::to_vec(&self.header)?;
        bytes.push(b'\n');
        serde_json::to_writer(&mut bytes, &self.manifest)?;
        bytes.push(b'\n');
        Ok(bytes.into())
    }

    /// Reads the manifest object of `digest`, or says what is wrong with it.
    pub(super) fn decode(bytes: &[u8], digest: &Digest) -> Result<Self, Unusable> {
        let header = Header::decode(bytes)?;
        let rest = bytes.splitn(2, |&byte| byte == b'\n').nth(1).unwrap_or_default();
        let unread = |error| Unusable::Damaged(format!("its manifest: {error}"));
        let manifest: Manifest = serde_json::from_slice(rest).map_err(unread)?;
        if manifest.digest() != *digest {
            return Err(Unusable::Damaged(format!("its manifest is of {}", manifest.digest())));
        }
        if manifest.size() != header.size {
            let (told, summed) = (header.size, manifest.size());
            return Err(Unusable::Damaged(format!("its manifest tells of {told} bytes and of {summed}")));
        }
        Ok(Self { header, manifest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_each_kind_of_damage_is_named() {
        let record = Record::new(BlobKey::fresh(), Manifest::of(b"some bytes"));
        let (bytes, digest) = (record.encode().unwrap(), Digest::of(b"some bytes"));
        assert_eq!(Record::decode(&bytes, &digest).unwrap(), record);
        assert_eq!(Header::decode(&bytes[..bytes.len().min(MAX_HEADER as usize)]).unwrap(), record.header);

        let detail = |decoded: Result<Record, Unusable>| match decoded.unwrap_err() {
            Unusable::Damaged(detail) => detail,
            newer @ Unusable::Newer(_) => panic!("{newer:?}"),
        };
        let text = std::str::from_utf8(&bytes).unwrap();
        let damaged = |from: &str, to: &str| {
            let other = text.replacen(from, to, 1);
            assert_ne!(other, text);
            detail(Record::decode(other.as_bytes(), &digest))
        };
        assert!(damaged("\"format\":1", "\"format\":0").contains("format 0"));
        assert!(damaged("\"size\":10", "\"size\":11").contains("11"));
        assert!(damaged("\n{", "\n").contains("its manifest"));
        assert!(detail(Record::decode(&bytes, &Digest::of(b"other bytes"))).contains("is of"));
        assert!(Record::decode(&bytes[..bytes.len() / 2], &digest).is_err());
        assert!(Record::decode(b"", &digest).is_err());
    }

    #[test]
    fn a_newer_format_is_no_damage_whatever_else_its_first_line_says() {
        let line = b"{\"format\":2,\"packs\":[]}\n?";
        assert_eq!(Header::decode(line).unwrap_err(), Unusable::Newer(2));
        let error = Unusable::Newer(2).into_error(&Digest::of(b""));
        assert!(matches!(&error, Error::Backend(error) if !error.is_retryable()), "{error:?}");
    }

    #[test]
    fn the_longest_header_fits_the_short_read() {
        let header = Header { format: u32::MAX, blob: BlobKey::fresh(), size: u64::MAX };
        assert!((serde_json::to_vec(&header).unwrap().len() as u64) < MAX_HEADER);
    }
}
