//! The store over clouds, on real servers: the kit, uploads by parts, and what a wrong URL is told.
#![cfg(all(feature = "conformance", feature = "s3", feature = "gcs", feature = "azure"))]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use bytesize::ByteSize;
use deploycore::conformance::store::Harness;
use deploycore::port::store::{ArtifactStoreExt, Error};
use deploycore::port::{ArtifactStore, chain};
use deploycore::store::{BlobStore, BlobStoreSettings, open_url};
use servers::azure::Azure;
use servers::gcs::Gcs;
use servers::s3::S3;

/// A bucket of each kind, made once; a store takes a prefix of its own in it.
struct Buckets {
    s3: (S3, String),
    gcs: (Gcs, String),
    azure: (Azure, String),
}

/// The servers end with the process.
fn buckets() -> &'static Buckets {
    static BUCKETS: OnceLock<Buckets> = OnceLock::new();
    BUCKETS.get_or_init(|| {
        let (s3, gcs, azure) = (S3::start().unwrap(), Gcs::start().unwrap(), Azure::start().unwrap());
        let urls = (s3.create_bucket("artifacts"), gcs.create_bucket("artifacts"), azure.create_container("artifacts"));
        Buckets { s3: (s3, urls.0.unwrap()), gcs: (gcs, urls.1.unwrap()), azure: (azure, urls.2.unwrap()) }
    })
}

/// The same bucket with a prefix that no other test has.
fn own(url: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    url.replacen("/store?", &format!("/tests/{}?", NUMBER.fetch_add(1, Ordering::Relaxed)), 1)
}

/// A store, and the URL by which another process would open it.
#[derive(Debug)]
struct Cloud(String, Arc<BlobStore>);

impl Cloud {
    async fn fresh(bucket: &str) -> (Arc<dyn Harness>, ()) {
        let url = own(bucket);
        let store = open(&url).await;
        (Arc::new(Self(url, Arc::new(store))), ())
    }
}

/// A store with the smallest parts that every cloud takes.
async fn open(url: &str) -> BlobStore {
    let settings = BlobStoreSettings::default().with_part_size(ByteSize::mib(5));
    open_url(url).await.unwrap().with_settings(settings)
}

#[async_trait]
impl Harness for Cloud {
    fn store(&self) -> Arc<dyn ArtifactStore> {
        self.1.clone()
    }

    async fn reopen(&self) -> Arc<dyn ArtifactStore> {
        Arc::new(open(&self.0).await)
    }
}

async fn s3() -> (Arc<dyn Harness>, impl Sized) {
    Cloud::fresh(&buckets().s3.1).await
}

async fn gcs() -> (Arc<dyn Harness>, impl Sized) {
    Cloud::fresh(&buckets().gcs.1).await
}

async fn azure() -> (Arc<dyn Harness>, impl Sized) {
    Cloud::fresh(&buckets().azure.1).await
}

mod on_s3 {
    use super::s3;
    deploycore::store_conformance!(s3);
}

mod on_gcs {
    use super::gcs;
    deploycore::store_conformance!(gcs);
}

mod on_azure {
    use super::azure;
    deploycore::store_conformance!(azure);
}

fn bytes(len: usize) -> Bytes {
    let mut out = vec![0; len];
    fastrand::Rng::with_seed(len as u64).fill(&mut out);
    out.into()
}

/// Larger than what goes up in one request, and off every border.
#[tokio::test]
async fn a_large_artifact_goes_up_in_parts() {
    let Buckets { s3, gcs, azure } = buckets();
    for url in [&s3.1, &gcs.1, &azure.1] {
        let store = open_url(&own(url)).await.unwrap();
        let bytes = bytes((35 << 20) + 77);
        let manifest = store.put_bytes(bytes.clone()).await.unwrap();
        assert_eq!(store.verify(&manifest.digest()).await.unwrap(), manifest);
        let range = 15 << 20..17 << 20;
        let read = store.read_all(&manifest.digest(), range.start as u64..range.end as u64).await.unwrap();
        assert!(read == bytes[range], "a range over the border of two parts");
    }
}

/// Opens the store of a URL that cannot be, and gives what is told.
async fn told(url: &str) -> String {
    let error = open_url(url).await.expect_err(url);
    let text = chain(&error);
    assert!(!text.contains('\n') && !text.contains("s3cret") && text.len() < 1000, "one line without a secret: {text}");
    text
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_named() {
    let Buckets { s3, gcs, azure } = buckets();
    for url in [s3.0.url("missing"), gcs.0.url("missing"), azure.0.url("missing")] {
        let text = told(&url).await;
        assert!(text.contains("://missing/store: there is no such bucket"), "{text}");
        assert!(text.contains("credentials"), "{text}");
    }
}

#[tokio::test]
async fn refused_credentials_are_told_as_such() {
    let (azure, _) = &buckets().azure;
    let text = told(&azure.url_with_key("artifacts", "czNjcmV0")).await;
    assert!(text.contains("access is refused") && text.contains("AZURE_STORAGE_ACCOUNT_KEY"), "{text}");
}

#[tokio::test]
async fn what_no_client_can_be_made_of_is_refused_at_once() {
    for (url, part) in [
        ("s3://bucket/p?access_key_id=x", "AWS_SECRET_ACCESS_KEY"),
        ("s3://bucket/p?secret=s3cret", "secret is no option of this store"),
        ("az://container/p?account_key=s3cret", "AZURE_STORAGE_ACCOUNT_NAME"),
        ("gs://bucket/p?service_account=/no/such/file", "GOOGLE_SERVICE_ACCOUNT"),
        ("s3:///p", "bucket"),
        ("swift://bucket/p", "no artifact store answers to swift://"),
        ("bucket/p", "the store's URL"),
        ("file://host/p", "absolute path"),
    ] {
        let text = told(url).await;
        assert!(text.contains(part), "{url}: {text}");
        assert!(matches!(open_url(url).await, Err(Error::Invalid(_))), "{text}");
    }
}
