//! Storing by parts. A store that cannot passes.

use bytes::Bytes;
use futures::future::join_all;

use super::steps::*;
use crate::model::{MAX_ARTIFACT_SIZE, piece_size_for};
use crate::port::store::multipart::MAX_PARTS;
use crate::port::store::{Multipart, PartTag, UploadId};

/// Bytes of two parts and a short third.
fn three_parts(parts: &dyn Multipart, seed: u64) -> Bytes {
    let size = parts.part_size(SEVERAL as u64) as usize;
    let bytes = bytes(2 * size + 12_345, seed);
    assert_eq!(parts.part_size(bytes.len() as u64), size as u64, "the size of parts stays for a while");
    assert!((size as u64).is_multiple_of(Manifest::of(&bytes).piece_size()), "a part is whole pieces");
    bytes
}

/// Stores part `index`, in spans of uneven size.
async fn put_part(parts: &dyn Multipart, upload: &UploadId, bytes: &Bytes, index: u32) -> Result<PartTag, Error> {
    let size = parts.part_size(bytes.len() as u64) as usize;
    let start = index as usize * size;
    let part = bytes.slice(start..bytes.len().min(start + size));
    parts.put_part(upload, index, part.chunks(70_001).map(Bytes::copy_from_slice).collect()).await
}

async fn put_all(parts: &dyn Multipart, upload: &UploadId, bytes: &Bytes) -> Vec<PartTag> {
    let mut tags = Vec::new();
    for index in [2, 0, 1] {
        tags.push(put_part(parts, upload, bytes, index).await.expect("a part"));
    }
    tags.rotate_left(1);
    tags
}

/// Of artifacts of any size: a part is whole pieces, and there are not too many.
pub async fn parts_of_any_artifact_are_whole_pieces(subject: Subject) {
    let store = subject.store();
    let Some(parts) = store.multipart() else { return };
    let gib = 1 << 30;
    for size in [1, gib, gib + 1, 2 * gib + 1, 5 * gib, 10 * gib, 80 * gib, 500 * gib, MAX_ARTIFACT_SIZE] {
        let part = parts.part_size(size);
        assert!(part > 0 && part.is_multiple_of(piece_size_for(size)), "parts of {part} for {size} bytes");
        assert!(size.div_ceil(part) <= u64::from(MAX_PARTS), "parts of {part} for {size} bytes");
    }
}

/// The artifact is that of one put.
pub async fn parts_in_any_order_make_the_artifact(subject: Subject) {
    let store = subject.store();
    let Some(parts) = store.multipart() else { return };
    let bytes = three_parts(parts, 1);
    let manifest = Manifest::of(&bytes);
    let upload = parts.begin().await.expect("an upload");
    let tags = put_all(parts, &upload, &bytes).await;
    assert_absent(&*store, &manifest.digest()).await;
    assert_eq!(parts.finish(&upload, &manifest, tags).await.expect("all parts are there"), manifest);
    assert_there(&*store, &bytes).await;
    assert_there(&*subject.reopen().await, &bytes).await;
}

/// What another process began goes on here, by the ids alone.
pub async fn another_process_goes_on(subject: Subject) {
    let (store, other) = (subject.store(), subject.reopen().await);
    let (Some(parts), Some(others)) = (store.multipart(), other.multipart()) else { return };
    let bytes = three_parts(parts, 1);
    let manifest = Manifest::of(&bytes);
    let upload = parts.begin().await.expect("an upload");
    let first = put_part(parts, &upload, &bytes, 0).await.expect("a part");
    let (upload, first) = (UploadId::new(upload.as_str()), PartTag::new(first.as_str()));
    let mut tags = vec![first];
    for index in [1, 2] {
        tags.push(put_part(others, &upload, &bytes, index).await.expect("a part"));
    }
    others.finish(&upload, &manifest, tags).await.expect("all parts are there");
    assert_there(&*store, &bytes).await;
}

/// A part whose reply was lost is sent again.
pub async fn a_part_may_be_sent_again(subject: Subject) {
    let store = subject.store();
    let Some(parts) = store.multipart() else { return };
    let bytes = three_parts(parts, 1);
    let upload = parts.begin().await.expect("an upload");
    put_part(parts, &upload, &bytes, 1).await.expect("a part");
    let tags = put_all(parts, &upload, &bytes).await;
    parts.finish(&upload, &Manifest::of(&bytes), tags).await.expect("all parts are there");
    assert_there(&*store, &bytes).await;
}

/// A reply to the end was lost, or two replicators came there.
pub async fn finishing_again_gives_the_same_answer(subject: Subject) {
    let store = subject.store();
    let Some(parts) = store.multipart() else { return };
    let bytes = three_parts(parts, 1);
    let manifest = Manifest::of(&bytes);
    let upload = parts.begin().await.expect("an upload");
    let tags = put_all(parts, &upload, &bytes).await;
    for _ in 0..2 {
        assert_eq!(parts.finish(&upload, &manifest, tags.clone()).await.expect("a repeat"), manifest);
    }
    assert_there(&*store, &bytes).await;
    assert_eq!(list(&*store).await.len(), 1);
}

/// An artifact that is there already stays, and the upload succeeds.
pub async fn an_artifact_that_is_there_stays(subject: Subject) {
    let store = subject.store();
    let Some(parts) = store.multipart() else { return };
    let bytes = three_parts(parts, 1);
    let manifest = put(&*store, &bytes).await;
    let upload = parts.begin().await.expect("an upload");
    let tags = put_all(parts, &upload, &bytes).await;
    assert_eq!(parts.finish(&upload, &manifest, tags).await.expect("a second publisher"), manifest);
    assert_there(&*store, &bytes).await;
    assert_eq!(list(&*store).await.len(), 1);
}

/// A replicator sends several at once, and one of them again while the first call is under way.
pub async fn parts_sent_at_once_make_the_artifact(subject: Subject) {
    let store = subject.store();
    let Some(parts) = store.multipart() else { return };
    let bytes = three_parts(parts, 1);
    let manifest = Manifest::of(&bytes);
    let upload = parts.begin().await.expect("an upload");
    let sent = [2, 0, 1, 2].map(|index| put_part(parts, &upload, &bytes, index));
    let sent: Vec<_> = join_all(sent).await.into_iter().map(|sent| sent.expect("a part")).collect();
    // Of two calls either may have been the last: the tag of a third counts in any case.
    let last = put_part(parts, &upload, &bytes, 2).await.expect("a part");
    let tags = vec![sent[1].clone(), sent[2].clone(), last];
    assert_eq!(parts.finish(&upload, &manifest, tags).await.expect("all parts are there"), manifest);
    assert_there(&*store, &bytes).await;
}

/// A manifest whose bytes are gone is no artifact that stays. It passes where the harness cannot take bytes away.
pub async fn bytes_that_were_lost_are_stored_anew(subject: Subject) {
    let store = subject.store();
    let Some(parts) = store.multipart() else { return };
    let bytes = three_parts(parts, 1);
    let manifest = put(&*store, &bytes).await;
    if !subject.lose(&manifest.digest()).await {
        return;
    }
    let upload = parts.begin().await.expect("an upload");
    let tags = put_all(parts, &upload, &bytes).await;
    assert_eq!(parts.finish(&upload, &manifest, tags).await.expect("all parts are there"), manifest);
    assert_there(&*store, &bytes).await;
    assert_there(&*subject.reopen().await, &bytes).await;
}

/// Parts that do not make the whole are no artifact.
pub async fn a_missing_part_is_no_artifact(subject: Subject) {
    let store = subject.store();
    let Some(parts) = store.multipart() else { return };
    let bytes = three_parts(parts, 1);
    let upload = parts.begin().await.expect("an upload");
    let first = put_part(parts, &upload, &bytes, 0).await.expect("a part");
    parts.finish(&upload, &Manifest::of(&bytes), vec![first]).await.expect_err("two parts are missing");
    assert_absent(&*store, &Manifest::of(&bytes).digest()).await;
}

/// A part that was sent anew by somebody else, or was lost, makes the upload of no use where the store goes by tags. It says so in the words that are
/// for that: whoever hears them starts over, and for any other failure keeps what is there.
pub async fn a_part_that_the_store_does_not_have_makes_the_upload_of_no_use(subject: Subject) {
    let store = subject.store();
    let Some(parts) = store.multipart() else { return };
    let bytes = three_parts(parts, 1);
    let manifest = Manifest::of(&bytes);
    let upload = parts.begin().await.expect("an upload");
    let mut tags = put_all(parts, &upload, &bytes).await;
    let another = parts.begin().await.expect("an upload");
    let other = put_part(parts, &another, &three_parts(parts, 2), 1).await.expect("a part");
    // Tags may be of the place alone.
    tags[1] = if other == tags[1] { PartTag::new(other.as_str().chars().rev().collect::<String>()) } else { other };
    match parts.finish(&upload, &manifest, tags).await {
        Ok(stored) => {
            assert_eq!(stored, manifest);
            assert_there(&*store, &bytes).await;
        }
        Err(Error::NoUpload { .. } | Error::Corrupt { .. }) => assert_absent(&*store, &manifest.digest()).await,
        Err(error) => panic!("it does not say that the upload is of no use: {error:?}"),
    }
}

/// Ending an upload leaves nothing, and may be repeated. An upload that is finished is not ended.
pub async fn an_aborted_upload_leaves_nothing(subject: Subject) {
    let store = subject.store();
    let Some(parts) = store.multipart() else { return };
    let bytes = three_parts(parts, 1);
    let manifest = Manifest::of(&bytes);
    let upload = parts.begin().await.expect("an upload");
    put_all(parts, &upload, &bytes).await;
    for _ in 0..2 {
        parts.abort(&upload).await.expect("an end");
    }
    parts.abort(&UploadId::new("of another store")).await.expect("an unknown upload stays");
    assert_absent(&*store, &manifest.digest()).await;

    let upload = parts.begin().await.expect("an upload");
    let tags = put_all(parts, &upload, &bytes).await;
    parts.finish(&upload, &manifest, tags).await.expect("all parts are there");
    parts.abort(&upload).await.expect("a finished upload stays");
    assert_there(&*store, &bytes).await;
}
