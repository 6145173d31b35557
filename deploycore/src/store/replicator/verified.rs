//! Bytes of the main store, verified piece by piece before any of them is handed on.

use std::ops::Range;

use bytes::Bytes;
use futures::stream::TryStreamExt;

use super::copy::Fault;
use crate::model::{Manifest, PieceCheck};
use crate::port::store::{ArtifactStore, Error};

/// Reads a range of whole pieces in one request, and verifies each.
pub(super) async fn read(
    main: &dyn ArtifactStore,
    manifest: &Manifest,
    range: Range<u64>,
) -> Result<Vec<Bytes>, Fault> {
    let mut pieces = Pieces::new(manifest, &range)?;
    let mut chunks = main.read(&manifest.digest(), range).await.map_err(main_fault)?;
    let mut spans = Vec::new();
    while let Some(span) = chunks.try_next().await.map_err(main_fault)? {
        pieces.take(&span)?;
        spans.push(span);
        tokio::task::yield_now().await;
    }
    pieces.end()?;
    Ok(spans)
}

/// Checks bytes that come in order, from the start of a piece on.
struct Pieces<'a> {
    manifest: &'a Manifest,
    index: u32,
    check: PieceCheck,
    /// Bytes that the piece under way still wants.
    wants: u64,
    /// Bytes that the range still wants.
    left: u64,
}

impl<'a> Pieces<'a> {
    fn new(manifest: &'a Manifest, range: &Range<u64>) -> Result<Self, Fault> {
        let index = (range.start / manifest.piece_size()) as u32;
        let (check, wants) = Self::start(manifest, index)?;
        Ok(Self { manifest, index, check, wants, left: range.end - range.start })
    }

    fn start(manifest: &Manifest, index: u32) -> Result<(PieceCheck, u64), Fault> {
        match (manifest.check_piece(index), manifest.piece_range(index)) {
            (Some(check), Some(range)) => Ok((check, range.end - range.start)),
            _ => Err(damaged(manifest, index)),
        }
    }

    /// A store that yields more than it was asked for must not fill the memory.
    fn take(&mut self, mut span: &[u8]) -> Result<(), Fault> {
        self.left = self.left.checked_sub(span.len() as u64).ok_or_else(|| damaged(self.manifest, self.index))?;
        while !span.is_empty() {
            if self.wants == 0 {
                self.next()?;
            }
            let (piece, rest) = span.split_at(span.len().min(usize::try_from(self.wants).unwrap_or(usize::MAX)));
            self.check.update(piece);
            self.wants -= piece.len() as u64;
            span = rest;
        }
        Ok(())
    }

    fn next(&mut self) -> Result<(), Fault> {
        let (check, wants) = Self::start(self.manifest, self.index + 1)?;
        let done = std::mem::replace(&mut self.check, check);
        if !done.holds() {
            return Err(damaged(self.manifest, self.index));
        }
        (self.index, self.wants) = (self.index + 1, wants);
        Ok(())
    }

    fn end(self) -> Result<(), Fault> {
        if self.left == 0 && self.check.holds() { Ok(()) } else { Err(damaged(self.manifest, self.index)) }
    }
}

fn damaged(manifest: &Manifest, index: u32) -> Fault {
    let (digest, count) = (manifest.digest(), manifest.piece_count());
    Fault::MainDamaged(Error::Corrupt { digest, detail: format!("piece {index} of {count} does not verify") })
}

pub(super) fn main_fault(error: Error) -> Fault {
    match error {
        Error::NotFound { .. } => Fault::MainLost,
        Error::Corrupt { .. } => Fault::MainDamaged(error),
        error => Fault::Main(error),
    }
}
