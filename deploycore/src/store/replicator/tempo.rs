//! How fast a lane has been lately, and what follows from it: how many parts go at once, and how long one may take.
//!
//! A part has no time limit of its own. On a lane of 100 KB/s a part of 16 MiB takes minutes, and sixteen at once an hour; on a fast one a
//! part that takes minutes hangs.

use std::time::Duration;

use tokio::time::Instant;

/// A part may take so many times as long as the bytes on their way should.
const PATIENCE: f64 = 4.0;
/// No part is faster.
const MOMENT: Duration = Duration::from_millis(1);
/// How much of the rate is left after each part that was slower.
const MEMORY: f64 = 0.9;

/// What is known of a lane.
#[derive(Debug, Clone)]
pub(super) struct Tempo {
    /// How long a part may take in any case.
    base: Duration,
    /// The longest that a part may take while nothing is known.
    most: Duration,
    /// Bytes a second of the whole lane, since the last time when nothing moved.
    rate: Option<f64>,
    /// Parts at once while no rate is known.
    ahead: usize,
    /// Times the base, while no rate is known.
    stretch: u32,
    /// Bytes that went over so far.
    moved: u64,
    /// When parts were given up because nothing moved.
    cut_at: Option<Instant>,
}

/// What there was when a part began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begun {
    pub(super) at: Instant,
    moved: u64,
}

impl Tempo {
    pub(super) fn new(base: Duration, most: Duration, ahead: usize) -> Self {
        Self { base, most: most.max(base), rate: None, ahead, stretch: 1, moved: 0, cut_at: None }
    }

    pub(super) fn begin(&self, now: Instant) -> Begun {
        Begun { at: now, moved: self.moved }
    }

    /// A part of `bytes` went over.
    pub(super) fn note_moved(&mut self, begun: Begun, bytes: u64, now: Instant) {
        self.moved += bytes;
        let time = now.duration_since(begun.at).max(MOMENT);
        let rate = (self.moved - begun.moved) as f64 / time.as_secs_f64();
        // The first of several parts that began together sees only itself: the last tells.
        self.rate = Some(self.rate.map_or(rate, |known| rate.max(known * MEMORY)));
        self.stretch = 1;
    }

    /// A part took longer than it might, with `parts` on their way.
    pub(super) fn note_late(&mut self, begun: Begun, parts: usize, now: Instant) {
        let others_moved = self.moved > begun.moved;
        // Those that were given up together count once.
        if others_moved || self.cut_at.is_some_and(|at| at > begun.at) {
            return;
        }
        (self.rate, self.cut_at) = (None, Some(now));
        self.ahead = (parts.min(self.ahead) / 2).max(1);
        self.stretch = self.stretch.saturating_mul(2);
    }

    /// How long a part may take while so many bytes of the lane are on their way.
    pub(super) fn limit(&self, in_flight: u64) -> Duration {
        match self.rate {
            Some(rate) => {
                let expected = Duration::try_from_secs_f64(PATIENCE * in_flight as f64 / rate);
                self.base.max(expected.unwrap_or(Duration::MAX))
            }
            None => self.base.saturating_mul(self.stretch).min(self.most),
        }
    }

    /// How many parts of a size go at once, at most: so many that each should take half of the base.
    pub(super) fn ahead(&self, part: u64, most: usize) -> usize {
        let ahead = match self.rate {
            Some(rate) => (rate * self.base.as_secs_f64() / 2.0 / part.max(1) as f64) as usize,
            None => self.ahead,
        };
        ahead.clamp(1, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_mins(2);
    const MOST: Duration = Duration::from_mins(5);
    const PART: u64 = 16 << 20;

    /// Sends parts over a lane of `rate` bytes a second, as many at once as it may; how many were given up before one went over, and how
    /// many go at once then.
    fn settle(rate: f64) -> (usize, usize, Duration) {
        let (mut tempo, mut now, mut given_up) = (Tempo::new(BASE, MOST, 8), Instant::now(), 0);
        for _ in 0..20 {
            let parts = tempo.ahead(PART, 8);
            let bytes = PART * parts as u64;
            let (begun, takes) = (tempo.begin(now), Duration::from_secs_f64(bytes as f64 / rate));
            now += takes.min(tempo.limit(bytes));
            if takes <= tempo.limit(bytes) {
                (0..parts).for_each(|_| tempo.note_moved(begun, PART, now));
                return (given_up, tempo.ahead(PART, 8), tempo.limit(PART * tempo.ahead(PART, 8) as u64));
            }
            (0..parts).for_each(|_| tempo.note_late(begun, parts, now));
            given_up += parts;
        }
        panic!("no part goes over at {rate} bytes a second");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_lane_is_given_time_and_few_parts_at_once() {
        assert_eq!(settle(50e6), (0, 8, BASE));
        assert_eq!(settle(1e6).0, 8, "134 s for eight parts, then four in 67 s");
        let (given_up, ahead, limit) = settle(60e3);
        assert_eq!((given_up, ahead), (8 + 4 + 2, 1));
        assert!(limit > Duration::from_mins(15), "{limit:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_hangs_beside_others_that_move_costs_no_parallelism() {
        let (mut tempo, start) = (Tempo::new(BASE, MOST, 8), Instant::now());
        let hung = tempo.begin(start);
        let other = tempo.begin(start);
        tempo.note_moved(other, PART, start + Duration::from_secs(1));
        assert_eq!(tempo.limit(2 * PART), BASE);
        tempo.note_late(hung, 2, start + BASE);
        assert_eq!((tempo.ahead(PART, 8), tempo.limit(PART)), (8, BASE));
    }
}
