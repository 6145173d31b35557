//! The store over objects that lose a reply, and what its calls cost.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::stream::TryStreamExt;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, UploadPart,
};

use super::*;
use crate::port::store::ArtifactStoreExt;

/// Objects in memory.
#[derive(Debug, Default)]
struct Line {
    objects: InMemory,
    /// The next create-only write takes place, its reply is an error.
    loses_reply: AtomicBool,
    /// How uploads by parts end.
    end_of_uploads: Mutex<EndOfUpload>,
    /// Bytes that went out.
    read: AtomicU64,
    /// What was written, looked at and listed, in this order.
    calls: Mutex<Vec<String>>,
    /// How far its clock is behind the host's.
    behind: Duration,
    /// Nothing below this path is deleted.
    keeps: Mutex<Option<Path>>,
}

#[derive(Debug, Clone, Copy, Default)]
enum EndOfUpload {
    #[default]
    Whole,
    /// It takes place, its reply is lost.
    LosesReply,
    /// It fails, and then the upload cannot be ended either.
    Fails,
}

#[derive(Debug)]
struct LineUpload {
    upload: Box<dyn MultipartUpload>,
    end: EndOfUpload,
}

fn no_reply() -> object_store::Error {
    object_store::Error::Generic { store: "line", source: "no reply".into() }
}

#[async_trait]
impl MultipartUpload for LineUpload {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        self.upload.put_part(part)
    }
    async fn complete(&mut self) -> object_store::Result<PutResult> {
        match self.end {
            EndOfUpload::Whole => self.upload.complete().await,
            EndOfUpload::LosesReply => self.upload.complete().await.and(Err(no_reply())),
            EndOfUpload::Fails => Err(no_reply()),
        }
    }
    async fn abort(&mut self) -> object_store::Result<()> {
        Err(object_store::Error::PermissionDenied { path: String::new(), source: "no such upload".into() })
    }
}

impl Line {
    fn note(&self, call: &str, at: &Path) {
        let folder = at.parts().next().map_or(String::new(), |part| part.as_ref().to_owned());
        self.calls.lock().unwrap().push(format!("{call} {folder}"));
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
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
        self.note("put", at);
        let answer = self.objects.put_opts(at, bytes, how).await?;
        if is_create && self.loses_reply.swap(false, Ordering::SeqCst) {
            return Err(no_reply());
        }
        Ok(answer)
    }
    async fn put_multipart_opts(
        &self,
        at: &Path,
        how: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        let (upload, end) = (self.objects.put_multipart_opts(at, how).await?, *self.end_of_uploads.lock().unwrap());
        Ok(Box::new(LineUpload { upload, end }))
    }
    async fn get_opts(&self, at: &Path, how: GetOptions) -> object_store::Result<GetResult> {
        let is_head = how.head;
        self.note(if is_head { "head" } else { "get" }, at);
        let mut answer = self.objects.get_opts(at, how).await?;
        answer.meta.last_modified -= self.behind;
        let Range { start, end } = answer.range;
        self.read.fetch_add(if is_head { 0 } else { end - start }, Ordering::SeqCst);
        Ok(answer)
    }
    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let keeps = self.keeps.lock().unwrap().clone();
        let paths = paths.map(move |path| match path {
            Ok(path) if keeps.as_ref().is_some_and(|keeps| path.prefix_matches(keeps)) => Err(no_reply()),
            path => path,
        });
        self.objects.delete_stream(paths.boxed())
    }
    fn list(&self, below: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.note("list", below.unwrap_or(&Path::default()));
        let behind = self.behind;
        let found = self.objects.list(below);
        found.map_ok(move |meta| ObjectMeta { last_modified: meta.last_modified - behind, ..meta }).boxed()
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

/// A 10 GB upload took the store longer to put together than the client waited, and the put said that its end was forbidden: for good.
#[tokio::test]
async fn a_put_by_parts_says_why_it_failed_and_knows_what_is_there() {
    for end in [EndOfUpload::Whole, EndOfUpload::LosesReply, EndOfUpload::Fails] {
        let line = Arc::new(Line::default());
        *line.end_of_uploads.lock().unwrap() = end;
        let store = BlobStore::new(line, Path::default());
        let store = store.with_settings(BlobStoreSettings::default().with_part_size(bytesize::ByteSize::b(4)));
        match (end, store.put_bytes(Bytes::from_static(b"three parts")).await) {
            (EndOfUpload::Fails, Err(error)) => {
                assert!(error.is_retryable() && crate::port::chain(&error).contains("no reply"), "{error:?}");
            }
            (EndOfUpload::Whole | EndOfUpload::LosesReply, Ok(manifest)) => {
                store.verify(&manifest.digest()).await.unwrap();
            }
            (end, answer) => panic!("{end:?}: {answer:?}"),
        }
    }
}

/// A file whose completion failed may be there and not be durable.
#[tokio::test]
async fn a_put_to_a_folder_that_could_not_be_completed_fails() {
    let root = tempfile::tempdir().unwrap();
    let line = Arc::new(Line::default());
    *line.end_of_uploads.lock().unwrap() = EndOfUpload::LosesReply;
    let store = BlobStore::assemble(line, Path::default(), Some(Folder::create(root.path()).unwrap()));
    // More than one write.
    let stored = store.put_bytes(vec![7; 3 << 20].into()).await;
    assert!(stored.as_ref().is_err_and(|error| crate::port::chain(error).contains("no reply")), "{stored:?}");
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

const HOUR: Duration = Duration::from_hours(1);

#[tokio::test]
async fn a_put_looks_for_deletions_after_it_made_its_artifact_young() {
    let line = Arc::new(Line::default());
    let store = BlobStore::new(line.clone(), Path::default());
    let bytes = Bytes::from_static(b"some bytes");
    store.put_bytes(bytes.clone()).await.unwrap();
    let first = ["put blobs", "put manifests", "head blobs", "list deletions", "get manifests", "head blobs"];
    assert_eq!(line.calls(), first);
    store.put_bytes(bytes).await.unwrap();
    let again = line.calls();
    assert_eq!(again.last().unwrap(), "head blobs");
    let at = |call: &str| again.iter().position(|one| one == call).unwrap();
    assert!(at("put touches") < at("list deletions"), "{again:?}");
    let looks = again[at("list deletions")..].iter().filter(|call| *call == "get manifests");
    assert_eq!(looks.count(), 1, "it is looked at again: {again:?}");
}

#[tokio::test]
async fn a_deletion_says_so_before_it_looks_how_old_the_artifact_is() {
    let line = Arc::new(Line::default());
    let store = BlobStore::new(line.clone(), Path::default());
    let digest = store.put_bytes(Bytes::from_static(b"some bytes")).await.unwrap().digest();
    line.calls();
    assert_eq!(store.delete_idle(&digest, HOUR).await.unwrap(), Deletion::InUse);
    assert_eq!(line.calls(), ["head manifests", "head touches"], "no put waits for that");
    assert_eq!(store.delete_idle(&digest, Duration::ZERO).await.unwrap(), Deletion::Gone);
    let calls = line.calls();
    let marked = calls.iter().position(|call| call == "put deletions").unwrap();
    // The blob to delete is found before the look, so that what is stored after it is not touched.
    assert_eq!(calls[marked + 1..], ["head deletions", "get manifests", "head manifests", "head touches"]);
    assert_eq!(line.objects.list(None).count().await, 0, "nothing is left, and no mark");
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_ahead_of_the_store_takes_nothing_for_old() {
    let line = Arc::new(Line { behind: 2 * HOUR, ..Line::default() });
    let store = BlobStore::new(line.clone(), Path::default());
    let bytes = Bytes::from_static(b"some bytes");
    let digest = store.put_bytes(bytes.clone()).await.unwrap().digest();
    assert_eq!(store.delete_idle(&digest, HOUR).await.unwrap(), Deletion::InUse);
    // Nor the mark of a deletion that has just begun.
    line.put(&store.layout.fresh_mark(&digest), PutPayload::default()).await.unwrap();
    assert_eq!(store.sweep(HOUR).await.unwrap().objects, 0);
    assert!(store.put_bytes(bytes).await.unwrap_err().is_retryable(), "it waits for the end of the deletion");
}

#[tokio::test(start_paused = true)]
async fn a_put_outlasts_a_deletion_that_did_not_see_it() {
    let line = Arc::new(Line::default());
    let store = Arc::new(BlobStore::new(line.clone(), Path::default()));
    let bytes = Bytes::from_static(b"some bytes");
    let digest = store.put_bytes(bytes.clone()).await.unwrap().digest();
    // The deletion has seen that the artifact is old, and is about to delete it.
    let mark = store.layout.fresh_mark(&digest);
    line.put(&mark, PutPayload::default()).await.unwrap();
    let blob = deletion::blob_of(&store, &digest).await.unwrap();
    let put = tokio::spawn({
        let (store, bytes) = (store.clone(), bytes.clone());
        async move { store.put_bytes(bytes).await }
    });
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!put.is_finished(), "the artifact may be gone in a moment");
    deletion::erase(&store, &digest, blob).await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!put.is_finished(), "the deletion is not over");
    line.delete(&mark).await.unwrap();
    put.await.unwrap().unwrap();
    store.verify(&digest).await.unwrap();
    assert_ne!(deletion::blob_of(&store, &digest).await.unwrap(), blob);
    assert_eq!(line.objects.list(Some(&store.layout.blobs())).count().await, 1);

    // One that is never over: the put says so in the end.
    line.put(&mark, PutPayload::default()).await.unwrap();
    let Error::Backend(error) = store.put_bytes(bytes).await.unwrap_err() else { panic!("a backend's error") };
    assert!(error.is_retryable());
    store.verify(&digest).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_failed_may_yet_take_place_and_is_minded_until_then() {
    let line = Arc::new(Line::default());
    let store = BlobStore::new(line.clone(), Path::default());
    let digest = store.put_bytes(Bytes::from_static(b"some bytes")).await.unwrap().digest();
    let marks = async || line.objects.list(Some(&store.layout.deletions())).count().await;
    *line.keeps.lock().unwrap() = Some(store.layout.manifests());
    store.delete_idle(&digest, Duration::ZERO).await.unwrap_err();
    assert_eq!(marks().await, 1);
    let error = store.put_bytes(Bytes::from_static(b"some bytes")).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    *line.keeps.lock().unwrap() = None;
    assert_eq!(store.delete_idle(&digest, Duration::ZERO).await.unwrap(), Deletion::Gone);
    assert_eq!(marks().await, 1, "the first one's is left to the sweep");
}
