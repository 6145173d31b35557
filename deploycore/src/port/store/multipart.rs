//! Storing an artifact part by part: in parallel, in any order, and after a restart from where it stopped.

use std::fmt::{self, Debug};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Error;
use crate::model::Manifest;

/// The most parts of an upload: what the strictest cloud takes.
pub const MAX_PARTS: u32 = 10_000;
/// The longest upload id, in bytes.
pub const MAX_UPLOAD_ID: usize = 4096;
/// The longest tag of a part, in bytes.
pub const MAX_PART_TAG: usize = 1024;

/// What a store calls an upload under way. Only the store that made it can read it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UploadId(String);

/// What a store calls a part that it has taken.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartTag(String);

macro_rules! text {
    ($name:ident) => {
        impl $name {
            /// Takes the text as it is.
            pub fn new(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
text!(UploadId);
text!(PartTag);

/// A store's uploads by parts, for whoever knows the artifact's manifest already. See the [module](crate::port) for repeating and cancel
/// safety.
///
/// An upload shows nothing to a reader before [`finish`](Multipart::finish). It stays until it is finished or aborted, also when the
/// process that began it is gone, and costs what its parts cost: whoever begins one keeps its id where it will be found again.
///
/// The bytes are the caller's to verify. A store refuses what it can tell to be wrong: parts that are missing, a blob of another size.
#[async_trait]
pub trait Multipart: Send + Sync + Debug {
    /// How large the parts of an artifact of `size` bytes should be: a multiple of its piece size, so that at most [`MAX_PARTS`] make the
    /// whole. All parts but the last have one size.
    fn part_size(&self, size: u64) -> u64;

    /// Begins an upload. A call whose reply is lost leaves one without parts, which nobody can name.
    async fn begin(&self) -> Result<UploadId, Error>;

    /// Stores part `index`, counted from 0, given in spans. Repeating it, also while an earlier call for the part is under way, replaces the part by
    /// the same bytes; the newest tag counts.
    ///
    /// Errors: `NoUpload` where the store can tell.
    async fn put_part(&self, upload: &UploadId, index: u32, part: Vec<Bytes>) -> Result<PartTag, Error>;

    /// Makes the artifact of its parts, durably, once all are stored: `tags` in the order of the parts. Repeating it gives the same answer.
    /// As with [`put`](super::ArtifactStore::put), the first of two publishers stays.
    ///
    /// Errors: `NoUpload` where the store can tell, also where it does not have all the parts as they are named: the upload is of no use any more; `Corrupt` when the blob has another size than the manifest says, and the upload is gone.
    async fn finish(&self, upload: &UploadId, manifest: &Manifest, tags: Vec<PartTag>) -> Result<Manifest, Error>;

    /// Throws an upload away with its parts, at once or, where the store has no such call, in its own time. One that is finished, aborted or unknown stays as it is, with success.
    async fn abort(&self, upload: &UploadId) -> Result<(), Error>;
}
