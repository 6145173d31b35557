//! The manifest: size, digest and the BLAKE3 chaining value of each piece.
//!
//! BLAKE3 is a binary tree over 1 KiB chunks. A piece spans a power of two of chunks, so that its chaining value is the
//! root of a whole subtree, and merging the chaining values of all pieces in the shape that the BLAKE3 paper gives (the
//! left side is the largest power of two that leaves something on the right) yields the digest of the whole. A manifest is
//! therefore its own proof: no signature ties it to its digest.

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use serde::{Deserialize, Serialize};

use super::Digest;

/// The smallest piece, 256 KiB: also the unit in which bytes of unknown number are hashed.
pub const MIN_PIECE_SIZE: u64 = 256 << 10;
/// The largest piece, 8 MiB.
pub const MAX_PIECE_SIZE: u64 = 8 << 20;
/// The largest artifact, 1 TiB: its manifest has 131,072 pieces, 4 MiB.
pub const MAX_ARTIFACT_SIZE: u64 = 1 << 40;

/// Aimed at by [`piece_size_for`]: enough pieces for a swarm to work on in parallel, few enough for a small manifest.
const PIECES_AIMED_AT: u64 = 1024;

/// The piece size of an artifact of `size` bytes: the smallest power of two within
/// [`MIN_PIECE_SIZE`]..=[`MAX_PIECE_SIZE`] that makes at most 1,024 pieces, or the largest.
///
/// A function of the size alone, so that the same bytes have the same manifest everywhere and for ever.
pub fn piece_size_for(size: u64) -> u64 {
    size.div_ceil(PIECES_AIMED_AT).next_power_of_two().clamp(MIN_PIECE_SIZE, MAX_PIECE_SIZE)
}

/// Size, digest and the chaining value of each piece; checked when made, so that a value of this type proves its digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct Manifest {
    size: u64,
    digest: Digest,
    pieces: Vec<ChainingValue>,
}

/// Why parts do not make a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidManifest {
    /// The artifact is larger than [`MAX_ARTIFACT_SIZE`].
    #[error("an artifact of {size} bytes is larger than the limit of {MAX_ARTIFACT_SIZE}")]
    TooLarge {
        /// Bytes.
        size: u64,
    },
    /// The number of pieces does not follow from the size.
    #[error("{size} bytes make {expected} pieces, not {found}")]
    PieceCount {
        /// Bytes.
        size: u64,
        /// What the size gives.
        expected: u64,
        /// What was found.
        found: u64,
    },
    /// The chaining values merge to another digest.
    #[error("the pieces merge to {found}, not to {expected}")]
    Digest {
        /// The digest that was claimed.
        expected: Digest,
        /// What the pieces merge to.
        found: Digest,
    },
}

impl Manifest {
    /// Checks parts that came from elsewhere: the number of pieces follows from the size and the pieces merge to the digest.
    pub fn new(size: u64, digest: Digest, pieces: Vec<[u8; 32]>) -> Result<Self, InvalidManifest> {
        if size > MAX_ARTIFACT_SIZE {
            return Err(InvalidManifest::TooLarge { size });
        }
        let (expected, found) = (size.div_ceil(piece_size_for(size)), pieces.len() as u64);
        if expected != found {
            return Err(InvalidManifest::PieceCount { size, expected, found });
        }
        let found = merge(&pieces);
        if found != digest {
            return Err(InvalidManifest::Digest { expected: digest, found });
        }
        Ok(Self { size, digest, pieces })
    }

    /// The manifest of bytes that are at hand whole.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = ManifestHasher::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// Bytes of the artifact.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The digest that the pieces merge to.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Bytes of each piece but the last, which may be shorter.
    pub fn piece_size(&self) -> u64 {
        piece_size_for(self.size)
    }

    /// How many pieces there are; 0 for the empty artifact.
    pub fn piece_count(&self) -> u32 {
        self.pieces.len() as u32
    }

    /// The chaining value of each piece; of an artifact of one piece, its digest.
    pub fn pieces(&self) -> &[[u8; 32]] {
        &self.pieces
    }

    /// The bytes that piece `index` spans, or `None` past the end.
    pub fn piece_range(&self, index: u32) -> Option<std::ops::Range<u64>> {
        let start = u64::from(index) * self.piece_size();
        (start < self.size).then(|| start..self.size.min(start + self.piece_size()))
    }

    /// Whether `bytes` are exactly piece `index`.
    pub fn verify_piece(&self, index: u32, bytes: &[u8]) -> bool {
        self.check_piece(index).is_some_and(|mut check| {
            check.update(bytes);
            check.holds()
        })
    }

    /// Starts to check piece `index`, whose bytes come in spans; `None` past the end.
    pub fn check_piece(&self, index: u32) -> Option<PieceCheck> {
        let range = self.piece_range(index)?;
        let (mut hasher, is_root) = (Hasher::new(), self.pieces.len() == 1);
        if !is_root {
            hasher.set_input_offset(range.start);
        }
        let expected = self.pieces[index as usize];
        Some(PieceCheck { hasher, expected, is_root, left: Some(range.end - range.start) })
    }
}

/// Compares one piece with its manifest while the bytes come.
#[derive(Debug, Clone)]
pub struct PieceCheck {
    hasher: Hasher,
    expected: ChainingValue,
    /// The only piece of an artifact is the root of the tree.
    is_root: bool,
    /// Bytes still to come; `None` after too many.
    left: Option<u64>,
}

impl PieceCheck {
    /// Takes the next bytes, at memory speed and without suspending, as [`ManifestHasher::update`] does.
    pub fn update(&mut self, bytes: &[u8]) {
        self.left = self.left.and_then(|left| left.checked_sub(bytes.len() as u64));
        if self.left.is_some() {
            self.hasher.update(bytes);
        }
    }

    /// Whether the bytes taken are exactly the piece.
    pub fn holds(self) -> bool {
        let value = || {
            if self.is_root { *self.hasher.finalize().as_bytes() } else { self.hasher.finalize_non_root() }
        };
        self.left == Some(0) && value() == self.expected
    }
}

/// Makes the digest and all chaining values in one pass over bytes whose number is not known in advance.
///
/// Memory: 32 bytes for each [`MIN_PIECE_SIZE`] at first; whenever the size so far calls for larger pieces the values are
/// merged in pairs, so that about 2,048 of them are kept until pieces reach [`MAX_PIECE_SIZE`].
#[derive(Debug, Clone)]
pub struct ManifestHasher {
    /// Chaining values of whole units of `unit` bytes.
    values: Vec<ChainingValue>,
    unit: u64,
    /// The unit under way, with the bytes it has; it is closed only when a further byte comes, because the last unit
    /// of an artifact may be its root.
    open: Hasher,
    open_len: u64,
    size: u64,
}

impl Default for ManifestHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl ManifestHasher {
    /// Starts with no bytes.
    pub fn new() -> Self {
        Self { values: Vec::new(), unit: MIN_PIECE_SIZE, open: Hasher::new(), open_len: 0, size: 0 }
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Takes the next bytes, at memory speed and without suspending: callers on a reactor pass at most about 1 MiB at once.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.open_len == self.unit {
                self.close_unit();
            }
            let room = (self.unit - self.open_len).min(bytes.len() as u64) as usize;
            self.open.update(&bytes[..room]);
            self.open_len += room as u64;
            self.size += room as u64;
            bytes = &bytes[room..];
        }
    }

    /// The manifest of all bytes taken.
    ///
    /// # Panics
    ///
    /// When more than [`MAX_ARTIFACT_SIZE`] bytes were taken; callers refuse such input by [`ManifestHasher::size`].
    pub fn finish(mut self) -> Manifest {
        assert!(self.size <= MAX_ARTIFACT_SIZE, "the caller bounds the size");
        if self.values.is_empty() {
            let digest = Digest::from_bytes(*self.open.finalize().as_bytes());
            let pieces = if self.size == 0 { vec![] } else { vec![*digest.as_bytes()] };
            return Manifest { size: self.size, digest, pieces };
        }
        self.values.push(self.open.finalize_non_root());
        while self.unit < piece_size_for(self.size) {
            self.double_unit();
        }
        Manifest { size: self.size, digest: merge(&self.values), pieces: self.values }
    }

    fn close_unit(&mut self) {
        self.values.push(self.open.finalize_non_root());
        if self.values.len().is_multiple_of(2) && self.unit < piece_size_for(self.size) {
            self.double_unit();
        }
        self.open = Hasher::new();
        self.open.set_input_offset(self.size);
        self.open_len = 0;
    }

    /// Merges neighbours; a last value without a neighbour is already the root of what it spans.
    fn double_unit(&mut self) {
        self.values = self.values.chunks(2).map(merge_subtree).collect();
        self.unit *= 2;
    }
}

/// The digest that chaining values merge to. One value is the digest itself; none is the digest of no bytes.
fn merge(values: &[ChainingValue]) -> Digest {
    match values {
        [] => Digest::of(&[]),
        [one] => Digest::from_bytes(*one),
        _ => {
            let (left, right) = values.split_at(left_len(values.len()));
            let root = merge_subtrees_root(&merge_subtree(left), &merge_subtree(right), Mode::Hash);
            Digest::from_bytes(*root.as_bytes())
        }
    }
}

fn merge_subtree(values: &[ChainingValue]) -> ChainingValue {
    if let [one] = values {
        return *one;
    }
    let (left, right) = values.split_at(left_len(values.len()));
    merge_subtrees_non_root(&merge_subtree(left), &merge_subtree(right), Mode::Hash)
}

/// The largest power of two below `len`, which is at least 2.
fn left_len(len: usize) -> usize {
    len.next_power_of_two() / 2
}

#[derive(Serialize, Deserialize)]
struct Unchecked {
    size: u64,
    digest: Digest,
    #[serde(with = "piece_list")]
    pieces: Vec<ChainingValue>,
}

impl TryFrom<Unchecked> for Manifest {
    type Error = InvalidManifest;
    fn try_from(parts: Unchecked) -> Result<Self, InvalidManifest> {
        Self::new(parts.size, parts.digest, parts.pieces)
    }
}

impl From<Manifest> for Unchecked {
    fn from(manifest: Manifest) -> Self {
        Self { size: manifest.size, digest: manifest.digest, pieces: manifest.pieces }
    }
}

/// Chaining values are written as digests are: text for people, 32 bytes for machines.
mod piece_list {
    use super::{ChainingValue, Digest};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(pieces: &[ChainingValue], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(pieces.iter().map(|piece| Digest::from_bytes(*piece)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ChainingValue>, D::Error> {
        let digests = Vec::<Digest>::deserialize(deserializer)?;
        Ok(digests.iter().map(|digest| *digest.as_bytes()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(len: usize, seed: u8) -> Vec<u8> {
        let mut out = vec![0; len];
        Hasher::new().update(&[seed]).finalize_xof().fill(&mut out);
        out
    }

    #[test]
    fn piece_sizes_are_powers_of_two_and_about_a_thousand_pieces() {
        assert_eq!(piece_size_for(0), MIN_PIECE_SIZE);
        assert_eq!(piece_size_for(256 << 20), MIN_PIECE_SIZE);
        assert_eq!(piece_size_for((256 << 20) + 1), MIN_PIECE_SIZE * 2);
        assert_eq!(piece_size_for(10_000_000_000), MAX_PIECE_SIZE);
        assert_eq!(10_000_000_000_u64.div_ceil(MAX_PIECE_SIZE), 1193);
        assert_eq!(piece_size_for(MAX_ARTIFACT_SIZE), MAX_PIECE_SIZE);
    }

    #[test]
    fn sizes_around_the_borders_hash_as_b3sum_does() {
        let unit = MIN_PIECE_SIZE as usize;
        for len in [0, 1, 1024, unit - 1, unit, unit + 1, 2 * unit, 2 * unit + 1, 3 * unit, 7 * unit + 5] {
            let bytes = bytes(len, 1);
            let manifest = Manifest::of(&bytes);
            assert_eq!(manifest.digest(), Digest::of(&bytes), "{len} bytes");
            assert_eq!(u64::from(manifest.piece_count()), (len as u64).div_ceil(MIN_PIECE_SIZE));
        }
    }

    #[test]
    fn growing_pieces_keep_the_digest() {
        // Past 256 MiB the units double while bytes still come.
        let block = bytes(1 << 20, 2);
        let (mut hasher, mut whole) = (ManifestHasher::new(), Hasher::new());
        for _ in 0..300 {
            hasher.update(&block);
            whole.update(&block);
        }
        hasher.update(&block[..77]);
        whole.update(&block[..77]);
        let manifest = hasher.finish();
        assert_eq!(manifest.piece_size(), 2 * MIN_PIECE_SIZE);
        assert_eq!(manifest.digest(), Digest::from_bytes(*whole.finalize().as_bytes()));
        let again = Manifest::new(manifest.size(), manifest.digest(), manifest.pieces().to_vec());
        assert_eq!(again.unwrap(), manifest);
        assert!(manifest.verify_piece(600, &block[..77]));
        assert!(manifest.verify_piece(0, &block[..512 << 10]));
        assert!(!manifest.verify_piece(1, &block[..512 << 10]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_manifest_survives_its_codecs_and_each_piece_verifies(len in 0_usize..2_000_000, cut in 1_usize..400_000, seed: u8) {
            let bytes = bytes(len, seed);
            let mut hasher = ManifestHasher::new();
            bytes.chunks(cut).for_each(|chunk| hasher.update(chunk));
            let manifest = hasher.finish();
            prop_assert_eq!(manifest.digest(), Digest::of(&bytes));
            let json = serde_json::to_string(&manifest).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Manifest>(&json).unwrap(), &manifest);
            for index in 0..manifest.piece_count() {
                let range = manifest.piece_range(index).unwrap();
                let piece = &bytes[range.start as usize..range.end as usize];
                prop_assert!(manifest.verify_piece(index, piece));
                let mut check = manifest.check_piece(index).unwrap();
                piece.chunks(cut).for_each(|span| check.update(span));
                let mut longer = check.clone();
                longer.update(b"x");
                prop_assert!(check.holds() && !longer.holds());
                prop_assert!(!manifest.verify_piece(index, &piece[1..]));
            }
            prop_assert_eq!(manifest.piece_range(manifest.piece_count()), None);
        }

        #[test]
        fn a_changed_manifest_does_not_merge(len in 1_usize..2_000_000, flip: u8, at: prop::sample::Index) {
            let manifest = Manifest::of(&bytes(len, 3));
            let mut pieces = manifest.pieces().to_vec();
            let piece = at.index(pieces.len());
            pieces[piece][usize::from(flip) % 32] ^= 1;
            prop_assert!(Manifest::new(manifest.size(), manifest.digest(), pieces).is_err());
        }
    }
}
