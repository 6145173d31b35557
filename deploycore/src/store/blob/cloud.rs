//! Clients of clouds, out of a URL and the environment, as `object_store` reads them.

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use url::{Position, Url};

use crate::port::chain;
use crate::port::store::Error;

/// How long a request of an upload by parts may take, unless the environment or the URL limits requests. The client's usual 30 s are for
/// requests that are small: on a slow lane a part takes longer, and whoever sends it watches over it.
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
const PART_LIMIT: &str = "1h";

/// How long any other request may take, unless the environment or the URL limits requests, and how long it may stay without an answer or its next
/// bytes. To put an upload together may take S3 minutes, in which it sends blanks
/// (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html>). The client's usual 30 s for all would end that.
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
const LIMIT: &str = "15m";
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
const SILENCE: &str = "30s";

/// A store's client, by both of its faces.
pub(super) struct Client {
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) parts: Arc<dyn MultipartStore>,
    pub(super) prefix: Path,
}

/// A kind of cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cloud {
    S3,
    Gcs,
    Azure,
}

impl Cloud {
    pub(super) fn of(url: &Url) -> Option<Self> {
        match url.scheme() {
            "s3" | "s3a" => Some(Self::S3),
            "gs" => Some(Self::Gcs),
            "az" | "azure" | "adl" | "abfs" | "abfss" => Some(Self::Azure),
            _ => None,
        }
    }

    /// The feature of this crate.
    fn feature(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gcs => "gcs",
            Self::Azure => "azure",
        }
    }

    /// Where credentials and endpoint come from.
    fn hint(self) -> &'static str {
        match self {
            Self::S3 => {
                "credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or the host's role, the rest from AWS_REGION and \
                 AWS_ENDPOINT_URL, or from the URL, as in s3://bucket/prefix?region=eu-west-1"
            }
            Self::Gcs => {
                "credentials come from GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS, which name a file, or the host's \
                 service account"
            }
            Self::Azure => {
                "the account comes from AZURE_STORAGE_ACCOUNT_NAME, credentials from AZURE_STORAGE_ACCOUNT_KEY, another AZURE_ variable \
                 or the host's identity"
            }
        }
    }

    /// Makes the client; it asks nobody yet.
    pub(super) fn client(self, url: &Url) -> Result<Client, Error> {
        // Not the whole URL: what follows the question mark may be a secret.
        let bucket = Url::parse(&url[..Position::AfterPath]).map_err(|error| refused(url, &error.to_string()))?;
        if !bucket.has_host() {
            let why = format!("it names no bucket, as in {}://bucket/prefix", url.scheme());
            return Err(refused(url, &why));
        }
        let prefix = Path::from_url_path(url.path()).map_err(|error| refused(url, &chain(&error)))?;
        self.build(url, bucket.as_str(), prefix)
    }

    #[cfg_attr(not(any(feature = "s3", feature = "gcs", feature = "azure")), allow(unused_variables))]
    fn build(self, url: &Url, bucket: &str, prefix: Path) -> Result<Client, Error> {
        #[allow(unused_macros, reason = "a build may have no cloud")]
        macro_rules! client {
            ($builder:ty) => {{
                let mut builder = <$builder>::from_env().with_url(bucket);
                let limit = || "timeout".parse().map_err(|_| refused(url, "its client has no time limit"));
                let usual = <$builder>::new().get_config_value(&limit()?);
                for (key, value) in url.query_pairs() {
                    let option = key.to_ascii_lowercase().parse();
                    let option = option.map_err(|_| refused(url, &format!("{key} is no option of this store")))?;
                    builder = builder.with_config(option, value);
                }
                crate::tls::ensure_provider();
                let mut parts = builder.clone();
                if builder.get_config_value(&limit()?) == usual {
                    parts = parts.with_config(limit()?, PART_LIMIT);
                    builder = builder.with_config(limit()?, LIMIT);
                    let silence = "read_timeout".parse();
                    let silence = silence.map_err(|_| refused(url, "its client does not notice silence"))?;
                    if builder.get_config_value(&silence).is_none() {
                        builder = builder.with_config(silence, SILENCE);
                    }
                }
                let built = |builder: $builder| {
                    let built = builder.build();
                    built.map(Arc::new).map_err(|error| refused(url, &format!("{}; {}", chain(&error), self.hint())))
                };
                Ok(Client { objects: built(builder)?, parts: built(parts)?, prefix })
            }};
        }
        match self {
            #[cfg(feature = "s3")]
            Self::S3 => client!(object_store::aws::AmazonS3Builder),
            #[cfg(feature = "gcs")]
            Self::Gcs => client!(object_store::gcp::GoogleCloudStorageBuilder),
            #[cfg(feature = "azure")]
            Self::Azure => client!(object_store::azure::MicrosoftAzureBuilder),
            #[allow(unreachable_patterns, reason = "a build may have every cloud")]
            _ => Err(refused(
                url,
                &format!("this build has no such store; it is the feature {:?} of deploycore", self.feature()),
            )),
        }
    }

    /// What a store says that cannot be used by `url`.
    pub(super) fn unusable(self, url: &Url, why: &str) -> String {
        format!("{}: {why}; {}", named(url), self.hint())
    }
}

/// The URL without what may be secret.
pub(super) fn named(url: &Url) -> String {
    format!("{}://{}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

pub(super) fn refused(url: &Url, why: &str) -> Error {
    Error::Invalid(format!("{}: {why}", named(url)))
}
