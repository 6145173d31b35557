//! How an artifact is cut into pieces and blocks.

use deploycore::model::{Digest, MAX_ARTIFACT_SIZE, Manifest, piece_size_for};

/// The largest block, 1 MiB: what one request asks for.
pub const MAX_BLOCK: u32 = 1 << 20;

/// An artifact's digest and size, and what follows from the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    digest: Digest,
    size: u64,
    piece_size: u64,
    max_block: u32,
}

impl Shape {
    /// The shape of an artifact of `size` bytes.
    pub fn new(digest: Digest, size: u64) -> Self {
        Self { digest, size, piece_size: piece_size_for(size), max_block: MAX_BLOCK }
    }

    /// The same artifact cut into blocks of up to `max_block` bytes. All members of a swarm must cut alike, so only a simulator does
    /// this, to have fewer events.
    #[must_use]
    pub fn with_max_block(self, max_block: u32) -> Self {
        Self { max_block: max_block.max(1), ..self }
    }

    /// The shape of an artifact of which a stranger says that it has `size` bytes; `None` when no artifact may have so many.
    pub fn claimed(digest: Digest, size: u64) -> Option<Self> {
        (size <= MAX_ARTIFACT_SIZE).then(|| Self::new(digest, size))
    }

    /// The shape that a manifest describes.
    pub fn of(manifest: &Manifest) -> Self {
        Self::new(manifest.digest(), manifest.size())
    }

    /// The artifact's name.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of each piece but the last.
    pub fn piece_size(&self) -> u64 {
        self.piece_size
    }

    /// How many pieces.
    pub fn pieces(&self) -> u32 {
        self.size.div_ceil(self.piece_size) as u32
    }

    /// Bytes of a piece; 0 past the end.
    pub fn piece_len(&self, piece: u32) -> u64 {
        self.size.saturating_sub(u64::from(piece) * self.piece_size).min(self.piece_size)
    }

    /// Bytes of each block but a piece's last.
    pub fn block_size(&self) -> u32 {
        self.piece_size.min(u64::from(self.max_block)) as u32
    }

    /// How many blocks a piece has.
    pub fn blocks(&self, piece: u32) -> u32 {
        self.piece_len(piece).div_ceil(u64::from(self.block_size())) as u32
    }

    /// Bytes of a block; 0 past the end of the piece.
    pub fn block_len(&self, piece: u32, block: u32) -> u32 {
        let size = u64::from(self.block_size());
        self.piece_len(piece).saturating_sub(u64::from(block) * size).min(size) as u32
    }

    /// Where a block starts in the artifact.
    pub fn offset(&self, piece: u32, block: u32) -> u64 {
        u64::from(piece) * self.piece_size + u64::from(block) * u64::from(self.block_size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_an_artifact_without_gap() {
        for size in [1, 300_000, 262_144, 3 << 20, (2 << 30) + 12_345] {
            let shape = Shape::new(Digest::of(b"x"), size);
            let mut end = 0;
            for piece in 0..shape.pieces() {
                for block in 0..shape.blocks(piece) {
                    assert_eq!(shape.offset(piece, block), end);
                    assert!((1..=MAX_BLOCK).contains(&shape.block_len(piece, block)));
                    end += u64::from(shape.block_len(piece, block));
                }
            }
            assert_eq!(end, size);
            assert_eq!((shape.piece_len(shape.pieces()), shape.blocks(shape.pieces())), (0, 0));
        }
    }
}
