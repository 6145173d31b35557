//! The store over objects that lose a reply, and what its calls cost.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions, PutOptions,
    PutPayload, PutResult,
};

use super::*;
use crate::port::store::ArtifactStoreExt;

/// Objects in memory.
#[derive(Debug, Default)]
struct Line {
    objects: InMemory,
    /// The next create-only write takes place, its reply is an error.
    loses_reply: AtomicBool,
    /// Bytes that went out.
    read: AtomicU64,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.objects.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Line {
    async fn put_opts(&self, at: &Path, bytes: PutPayload, how: PutOptions) -> object_store::Result<PutResult> {
        let is_create = how.mode == object_store::PutMode::Create;
        let answer = self.objects.put_opts(at, bytes, how).await?;
        if is_create && self.loses_reply.swap(false, Ordering::SeqCst) {
            return Err(object_store::Error::Generic { store: "line", source: "no reply".into() });
        }
        Ok(answer)
    }
    async fn put_multipart_opts(
        &self,
        at: &Path,
        how: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(at, how).await
    }
    async fn get_opts(&self, at: &Path, how: GetOptions) -> object_store::Result<GetResult> {
        let is_head = how.head;
        let answer = self.objects.get_opts(at, how).await?;
        let Range { start, end } = answer.range;
        self.read.fetch_add(if is_head { 0 } else { end - start }, Ordering::SeqCst);
        Ok(answer)
    }
    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.objects.delete_stream(paths)
    }
    fn list(&self, below: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.objects.list(below)
    }
    async fn list_with_delimiter(&self, below: Option<&Path>) -> object_store::Result<ListResult> {
        self.objects.list_with_delimiter(below).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> object_store::Result<()> {
        self.objects.copy_opts(from, to, how).await
    }
}

#[tokio::test]
async fn a_manifest_whose_write_failed_is_confirmed_only_when_its_folder_is_synced() {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::create(root.path()).unwrap();
    for syncs in [true, false] {
        let line = Arc::new(Line::default());
        line.loses_reply.store(true, Ordering::SeqCst);
        let store = BlobStore::assemble(line, Path::default(), Some(folder.clone()));
        if !syncs {
            std::fs::remove_dir(root.path().join(Layout::MANIFESTS)).unwrap();
        }
        let stored = store.put_bytes(Bytes::from_static(b"some bytes")).await;
        assert_eq!(stored.is_ok(), syncs, "{stored:?}");
    }
}

#[tokio::test]
async fn whether_an_artifact_exists_costs_no_more_than_a_first_line() {
    let line = Arc::new(Line::default());
    let store = BlobStore::new(line.clone(), Path::default());
    let large = Bytes::from(vec![7; 4 << 20]);
    let digest = store.put_bytes(large).await.unwrap().digest();
    line.read.store(0, Ordering::SeqCst);
    assert!(store.exists(&digest).await.unwrap());
    assert!(line.read.load(Ordering::SeqCst) <= layout::MAX_HEADER);
}

#[tokio::test]
async fn a_manifest_of_a_newer_program_is_neither_overwritten_nor_deleted_nor_taken_for_missing() {
    let line = Arc::new(Line::default());
    let store = BlobStore::new(line.clone(), Path::default());
    let bytes = Bytes::from_static(b"some bytes");
    let (digest, newer) = (Digest::of(&bytes), Bytes::from_static(b"{\"format\":2,\"packs\":[]}\n"));
    let place = store.layout.manifest(&digest);
    line.put(&place, newer.clone().into()).await.unwrap();
    let read = async |digest| store.read(digest, 0..1).await.map(drop);
    for refused in [
        store.put_bytes(bytes).await.map(drop),
        store.manifest(&digest).await.map(drop),
        store.exists(&digest).await.map(drop),
        store.delete(&digest).await,
        store.sweep(std::time::Duration::ZERO).await.map(drop),
        read(&digest).await,
    ] {
        let Err(Error::Backend(error)) = refused else { panic!("{refused:?}") };
        assert!(crate::port::chain(&error).contains("format 2"), "{}", crate::port::chain(&error));
    }
    assert_eq!(line.get(&place).await.unwrap().bytes().await.unwrap(), newer);
}
