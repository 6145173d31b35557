//! Reading ranges of a blob in bounded chunks.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::{GetOptions, GetRange, GetResult, GetResultPayload};

use super::BlobStore;
use super::fault::{fault, io_fault, is_missing, retryable};
use super::layout::{BlobKey, Header};
use crate::model::Digest;
use crate::port::store::{Chunks, Error, MAX_CHUNK};

/// A blob may vanish between the look at its place and the read, when the artifact is deleted and stored again; more often than
/// this is no accident.
const MAX_LOOKS: usize = 3;

pub(super) async fn read(store: &BlobStore, digest: &Digest, range: Range<u64>) -> Result<Chunks, Error> {
    let mut missing: Option<BlobKey> = None;
    for _ in 0..MAX_LOOKS {
        // What is remembered may be deleted by now. A blob that is gone tells; a range that reads no blob cannot.
        let reads = |place: &Header| missing.is_none() && range.start < range.end && range.end <= place.size;
        let place = store.remembered(digest).filter(reads);
        let place = match place {
            Some(place) => place,
            None => look_up(store, digest).await?,
        };
        if missing == Some(place.blob) {
            store.forget(digest);
            return Err(corrupt(digest, "its blob is missing"));
        }
        if range.start > range.end || range.end > place.size {
            let (start, end, size) = (range.start, range.end, place.size);
            return Err(Error::Invalid(format!("bytes {start}..{end} of an artifact of {size} bytes")));
        }
        if range.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        match store.objects.get_opts(&store.layout.blob(place.blob), options).await {
            Ok(found) if found.meta.size == place.size && found.range == range => return Ok(chunks(*digest, found)),
            Ok(found) => return Err(wrong_size(digest, place, found.meta.size)),
            Err(error) if is_missing(&error) => missing = Some(place.blob),
            // A range past the end of a cut blob is no more than a generic error below.
            Err(error) => match store.blob_size(place.blob).await {
                Ok(Some(size)) if size != place.size => return Err(wrong_size(digest, place, size)),
                _ => return Err(fault(error)),
            },
        }
    }
    Err(retryable("the artifact is deleted and stored again and again"))
}

async fn look_up(store: &BlobStore, digest: &Digest) -> Result<Header, Error> {
    let place = store.header(digest).await?.ok_or(Error::NotFound { digest: *digest })?;
    store.remember(digest, place);
    Ok(place)
}

fn chunks(digest: Digest, found: GetResult) -> Chunks {
    match found.payload {
        GetResultPayload::File(file, _) => file_chunks(digest, file, found.range),
        GetResultPayload::Stream(bytes) => {
            bytes.map_err(fault).map_ok(|bytes| stream::iter(spans(bytes).map(Ok))).try_flatten().boxed()
        }
    }
}

/// The library's own stream reads a file 8 KiB at a time, each on another trip to a blocking thread.
fn file_chunks(digest: Digest, file: File, range: Range<u64>) -> Chunks {
    stream::try_unfold((file, range), move |(file, left)| async move {
        if left.is_empty() {
            return Ok(None);
        }
        let len = (left.end - left.start).min(MAX_CHUNK as u64);
        let from = left.start;
        let read = tokio::task::spawn_blocking(move || read_span(file, from, len as usize)).await.map_err(retryable)?;
        match read {
            Ok((bytes, file)) => Ok(Some((bytes, (file, from + len..left.end)))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(corrupt(&digest, "its blob was cut")),
            Err(error) => Err(io_fault(error)),
        }
    })
    .boxed()
}

fn read_span(mut file: File, from: u64, len: usize) -> io::Result<(Bytes, File)> {
    let mut bytes = vec![0; len];
    file.seek(SeekFrom::Start(from))?;
    file.read_exact(&mut bytes)?;
    Ok((bytes.into(), file))
}

/// Cuts a buffer without copying it.
fn spans(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let len = bytes.len().min(MAX_CHUNK);
        (len > 0).then(|| bytes.split_to(len))
    })
}

fn wrong_size(digest: &Digest, place: Header, size: u64) -> Error {
    corrupt(digest, &format!("its blob has {size} bytes instead of {}", place.size))
}

fn corrupt(digest: &Digest, detail: &str) -> Error {
    Error::Corrupt { digest: *digest, detail: detail.to_owned() }
}
