//! A store chosen by URL.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{Error as ObjectError, ObjectStoreExt};
use url::Url;

use super::cloud::{Cloud, named, refused};
use super::fault::{fault, is_missing, permanent, retryable};
use super::folder::Folder;
use super::{BlobStore, MultipartObjects};
use crate::port::store::Error;

/// How long a store may take to show that it is there.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// So many characters of what a client says are told.
const MAX_TOLD: usize = 400;

/// Opens the store of a URL and sees that it answers:
///
/// | URL | store | feature |
/// |---|---|---|
/// | `file:///folder` | a local folder, which is made if it is missing | |
/// | `memory://` | this process's memory, empty: for a try | |
/// | `s3://bucket/prefix` | Amazon S3, and what speaks its protocol | `s3` |
/// | `gs://bucket/prefix` | Google Cloud Storage | `gcs` |
/// | `az://container/prefix`, `azure://...` | Azure Blob Storage | `azure` |
///
/// Credentials, region and endpoint of a cloud come from the environment, by the names that `object_store` reads in its `from_env`
/// (`AWS_ACCESS_KEY_ID`, `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_NAME` and so on). What follows the question mark of the URL goes
/// before them, by the names of `object_store`'s `parse_url_opts`: `s3://bucket/prefix?region=eu-west-1&endpoint=https://store:9000`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), deploycore::port::store::Error> {
/// use deploycore::port::store::ArtifactStoreExt;
/// let store = deploycore::store::open_url("memory://").await?;
/// let manifest = store.put_bytes("some bytes".into()).await?;
/// store.verify(&manifest.digest()).await?;
/// # Ok(())
/// # }
/// ```
///
/// It lists one page of a cloud's manifests, which every right that a store needs includes.
///
/// Errors, each one line without a secret: `Invalid` for a URL that names no store of this build, or an option that the store does not
/// know; `Backend`, permanent, for a bucket that is not there and for credentials that are refused; `Backend`, retryable, for a store that
/// does not answer within 20 s.
pub async fn open_url(url: &str) -> Result<BlobStore, Error> {
    let parsed = Url::parse(url).map_err(|error| Error::Invalid(format!("the store's URL is none: {error}")))?;
    let (store, at) = tokio::task::spawn_blocking(move || BlobStore::open(&parsed).map(|store| (store, parsed)))
        .await
        .map_err(retryable)??;
    if let Some(cloud) = Cloud::of(&at) {
        match tokio::time::timeout(ANSWER_WITHIN, store.answers()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if is_missing(&error) => {
                return Err(permanent(cloud.unusable(&at, "there is no such bucket")));
            }
            Ok(Err(error @ (ObjectError::PermissionDenied { .. } | ObjectError::Unauthenticated { .. }))) => {
                return Err(permanent(cloud.unusable(&at, &format!("access is refused: {}", told(&error)))));
            }
            Ok(Err(error)) => return Err(retryable(cloud.unusable(&at, &told(&error)))),
            Err(_) => {
                let why = format!(
                    "no answer within {ANSWER_WITHIN:?}, neither from the store nor, without credentials, from the host's"
                );
                return Err(retryable(cloud.unusable(&at, &why)));
            }
        }
    }
    Ok(store)
}

impl BlobStore {
    /// Opens the store that a URL names, as [`open_url`] does, without asking a cloud whether it is there. It reads and makes folders,
    /// blocking, so it belongs to the start of a program.
    ///
    /// Errors: as [`open_url`]'s `Invalid`; `Backend` for a folder that cannot be made.
    pub fn open(url: &Url) -> Result<Self, Error> {
        match url.scheme() {
            "file" => Self::open_folder(url),
            "memory" => {
                let objects = Arc::new(InMemory::new());
                Ok(Self::new(objects.clone(), Path::default()).with_multipart(objects))
            }
            other => {
                let Some(cloud) = Cloud::of(url) else {
                    let known = "use file:///folder, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or memory://";
                    return Err(refused(url, &format!("no artifact store answers to {other}://; {known}")));
                };
                let client = cloud.client(url)?;
                let mut store = Self::new(client.objects, client.prefix);
                store.multipart = Some(MultipartObjects(client.parts));
                Ok(store)
            }
        }
    }

    fn open_folder(url: &Url) -> Result<Self, Error> {
        let wanted = || refused(url, "a local store is named by an absolute path, as in file:///var/lib/artifacts");
        if url.host_str().is_some_and(|host| !host.is_empty()) {
            return Err(wanted());
        }
        let root = url.to_file_path().map_err(|()| wanted())?;
        let folder = Folder::create(&root).map_err(|error| permanent(format!("{}: {error}", named(url))))?;
        let files = LocalFileSystem::new_with_prefix(&root).map_err(fault)?.with_fsync(true);
        Ok(Self::assemble(Arc::new(files), Path::default(), Some(folder)))
    }

    /// Asks for a page of manifests. Some clients do not say why a list failed; a read of what cannot be there then tells a missing bucket
    /// and refused credentials.
    pub(super) async fn answers(&self) -> object_store::Result<()> {
        let Err(error) = self.objects.list(Some(&self.layout.manifests())).try_next().await else {
            return Ok(());
        };
        match self.objects.get(&self.layout.manifests().join("none")).await {
            Err(told @ (ObjectError::PermissionDenied { .. } | ObjectError::Unauthenticated { .. })) => Err(told),
            // A bucket that is there answers so too: the failed list has to say that it is not.
            Err(told @ ObjectError::NotFound { .. }) if says_missing(&error) => Err(told),
            _ => Err(error),
        }
    }
}

/// Whether a list failed because there is no such bucket, by the words of the clouds.
fn says_missing(error: &ObjectError) -> bool {
    let words = error.to_string();
    is_missing(error) || ["404", "NoSuchBucket", "ContainerNotFound"].iter().any(|word| words.contains(word))
}

/// What a client says, on one line: servers answer in paragraphs of XML, and each level of an error repeats the one below.
fn told(error: &ObjectError) -> String {
    let words: Vec<_> = error.to_string().split_whitespace().map(ToOwned::to_owned).collect();
    words.join(" ").chars().take(MAX_TOLD).collect()
}
