//! Which piece to begin next.

use fastrand::Rng;

use super::bitfield::Bitfield;

/// Which of the possible pieces is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Any: while one has nearly nothing, anything is good, and all beginners doing the same would be bad.
    Random,
    /// The one that the fewest neighbours have, ties broken at random.
    RarestFirst,
}

/// Picks a piece that `theirs` has and `taken` has not, or `None`. `availability` counts neighbours that have each piece.
pub fn pick(theirs: &Bitfield, taken: &Bitfield, availability: &[u16], order: Order, rng: &mut Rng) -> Option<u32> {
    let (mut best, mut least, mut ties) = (None, u16::MAX, 0_u32);
    for (index, (have, not)) in theirs.words().iter().zip(taken.words()).enumerate() {
        let mut word = have & !not;
        while word != 0 {
            let piece = index as u32 * 64 + word.trailing_zeros();
            word &= word - 1;
            let count = match order {
                Order::Random => 0,
                Order::RarestFirst => availability[piece as usize],
            };
            if best.is_none() || count < least {
                (best, least, ties) = (Some(piece), count, 1);
            } else if count == least {
                ties += 1;
                if rng.u32(..ties) == 0 {
                    best = Some(piece);
                }
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_never_picks_what_is_taken_or_not_there(
            cells in prop::collection::vec((any::<bool>(), any::<bool>(), 0_u16..5), 1..300),
            random: bool,
            seed: u64,
        ) {
            let len = cells.len() as u32;
            let (mut theirs, mut taken, mut availability) = (Bitfield::new(len), Bitfield::new(len), vec![]);
            for (piece, (have, not, count)) in (0..).zip(&cells) {
                if *have { theirs.insert(piece); }
                if *not { taken.insert(piece); }
                availability.push(*count);
            }
            let order = if random { Order::Random } else { Order::RarestFirst };
            let picked = pick(&theirs, &taken, &availability, order, &mut Rng::with_seed(seed));
            let possible: Vec<u32> = theirs.minus(&taken).collect();
            match picked {
                None => prop_assert!(possible.is_empty()),
                Some(piece) => {
                    prop_assert!(possible.contains(&piece));
                    let least = possible.iter().map(|piece| availability[*piece as usize]).min();
                    prop_assert!(random || Some(availability[piece as usize]) == least);
                }
            }
        }
    }

    #[test]
    fn ties_are_broken_evenly() {
        let (theirs, taken) = (Bitfield::full(4), Bitfield::new(4));
        let mut rng = Rng::with_seed(7);
        let mut hits = [0_u32; 4];
        for _ in 0..4_000 {
            let piece = pick(&theirs, &taken, &[1, 1, 9, 1], Order::RarestFirst, &mut rng).unwrap();
            hits[piece as usize] += 1;
        }
        assert_eq!(hits[2], 0);
        assert!(hits.iter().all(|count| *count == 0 || (1_200..1_500).contains(count)), "{hits:?}");
    }
}
