//! A set of pieces, one bit each.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smallvec::{SmallVec, smallvec};

/// Words of a set that lie within it: those of an artifact of 10 GiB. A node looks at one bit of each neighbour's set for each piece that
/// it announces or hears of, and mostly waits for memory.
const INLINE: usize = 20;

/// A set of pieces of one artifact. Bits past the length are always clear.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bitfield {
    words: SmallVec<[u64; INLINE]>,
    len: u32,
    ones: u32,
}

impl Bitfield {
    /// The empty set over `len` pieces.
    pub fn new(len: u32) -> Self {
        Self { words: smallvec![0; len.div_ceil(64) as usize], len, ones: 0 }
    }

    /// All `len` pieces.
    pub fn full(len: u32) -> Self {
        let mut words: SmallVec<[u64; INLINE]> = smallvec![u64::MAX; len.div_ceil(64) as usize];
        if let (Some(last), true) = (words.last_mut(), !len.is_multiple_of(64)) {
            *last = (1 << (len % 64)) - 1;
        }
        Self { words, len, ones: len }
    }

    /// How many pieces there could be.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether no piece is in the set.
    pub fn is_empty(&self) -> bool {
        self.ones == 0
    }

    /// Whether all pieces are in the set.
    pub fn is_full(&self) -> bool {
        self.ones == self.len
    }

    /// How many pieces are in the set.
    pub fn count(&self) -> u32 {
        self.ones
    }

    /// Whether `piece` is in the set; `false` past the end.
    pub fn contains(&self, piece: u32) -> bool {
        piece < self.len && self.words[(piece / 64) as usize] >> (piece % 64) & 1 == 1
    }

    /// Adds a piece; whether it was new. A piece past the end is not added.
    pub fn insert(&mut self, piece: u32) -> bool {
        let new = piece < self.len && !self.contains(piece);
        if new {
            self.words[(piece / 64) as usize] |= 1 << (piece % 64);
            self.ones += 1;
        }
        new
    }

    /// Takes a piece out; whether it was there.
    pub fn remove(&mut self, piece: u32) -> bool {
        let there = self.contains(piece);
        if there {
            self.words[(piece / 64) as usize] &= !(1 << (piece % 64));
            self.ones -= 1;
        }
        there
    }

    /// The pieces in the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        ones(self.words.iter().copied())
    }

    /// The pieces that are not in the set, in order.
    pub fn missing(&self) -> impl Iterator<Item = u32> + '_ {
        ones(self.words.iter().map(|word| !word)).take_while(|piece| *piece < self.len)
    }

    /// The pieces that `self` has and `other` has not, in order. Both are over the same artifact.
    pub fn minus<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = u32> + 'a {
        ones(self.words.iter().zip(&other.words).map(|(have, not)| have & !not))
    }

    /// The pieces that either has. Both are over the same artifact.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let words: SmallVec<[u64; INLINE]> = self.words.iter().zip(&other.words).map(|(one, two)| one | two).collect();
        let ones = words.iter().map(|word| word.count_ones()).sum();
        Self { words, len: self.len, ones }
    }

    /// Whether `self` has a piece that `other` has not.
    pub fn exceeds(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).any(|(have, not)| have & !not != 0)
    }

    /// The words of the set, for loops over many pieces.
    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    /// The set as bytes, the least significant bit first: what travels.
    pub fn to_bytes(&self) -> Bytes {
        let bytes = self.words.iter().flat_map(|word| word.to_le_bytes());
        bytes.take(self.len.div_ceil(8) as usize).collect()
    }

    /// The set of `len` pieces that bytes describe, or `None` when their number or a bit past the end is wrong.
    pub fn from_bytes(bytes: &[u8], len: u32) -> Option<Self> {
        if bytes.len() != len.div_ceil(8) as usize {
            return None;
        }
        let word = |chunk: &[u8]| chunk.iter().rev().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
        let words: SmallVec<[u64; INLINE]> = bytes.chunks(8).map(word).collect();
        let stray = words.last().is_some_and(|last| !len.is_multiple_of(64) && last >> (len % 64) != 0);
        let ones = words.iter().map(|word| word.count_ones()).sum();
        (!stray).then_some(Self { words, len, ones })
    }
}

fn ones(words: impl Iterator<Item = u64>) -> impl Iterator<Item = u32> {
    words.enumerate().flat_map(|(index, mut word)| {
        std::iter::from_fn(move || {
            (word != 0).then(|| {
                let bit = word.trailing_zeros();
                word &= word - 1;
                index as u32 * 64 + bit
            })
        })
    })
}

/// A set as it travels: its bytes, whose meaning depends on an artifact that the receiver looks up first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackedBits(Bytes);

impl PackedBits {
    /// Unpacks a set of `len` pieces, or `None` when it is not one.
    pub fn unpack(&self, len: u32) -> Option<Bitfield> {
        Bitfield::from_bytes(&self.0, len)
    }

    /// Bytes.
    pub fn byte_len(&self) -> usize {
        self.0.len()
    }
}

impl From<&Bitfield> for PackedBits {
    fn from(bits: &Bitfield) -> Self {
        Self(bits.to_bytes())
    }
}

impl Serialize for PackedBits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for PackedBits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Bytes::deserialize(deserializer).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_behaves_as_a_set(len in 0_u32..300, steps in prop::collection::vec((0_u32..320, any::<bool>()), 0..200)) {
            let (mut bits, mut model) = (Bitfield::new(len), BTreeSet::new());
            for (piece, add) in steps {
                if add {
                    prop_assert_eq!(bits.insert(piece), piece < len && model.insert(piece));
                } else {
                    prop_assert_eq!(bits.remove(piece), model.remove(&piece));
                }
            }
            prop_assert_eq!(bits.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(bits.count() as usize, model.len());
            let missing: Vec<u32> = (0..len).filter(|piece| !model.contains(piece)).collect();
            prop_assert_eq!(bits.missing().collect::<Vec<_>>(), missing.clone());
            prop_assert_eq!(Bitfield::full(len).minus(&bits).collect::<Vec<_>>(), missing);
            prop_assert_eq!(PackedBits::from(&bits).unpack(len), Some(bits.clone()));
            prop_assert_eq!(bits.is_full(), bits == Bitfield::full(len));
            let mut rest = Bitfield::new(len);
            bits.missing().for_each(|piece| { rest.insert(piece); });
            prop_assert_eq!(bits.union(&rest), Bitfield::full(len));
            prop_assert_eq!(bits.union(&bits), bits);
        }

        #[test]
        fn any_bytes_are_a_set_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..50), len in 0_u32..400) {
            if let Some(bits) = Bitfield::from_bytes(&bytes, len) {
                prop_assert!(bits.iter().all(|piece| piece < len));
                prop_assert_eq!(bits.iter().count() as u32, bits.count());
                prop_assert_eq!(&bits.to_bytes()[..], &bytes[..]);
            }
        }
    }
}
