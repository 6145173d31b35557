//! Time as the state machines see it.

use std::ops::Add;
use std::time::Duration;

/// Microseconds since whoever drives the machines started. The machines never read a clock: each input brings its instant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The start.
    pub const ZERO: Self = Self(0);
    /// Later than any other.
    pub const FAR: Self = Self(u64::MAX);

    /// The instant `since_start` after the start.
    pub const fn at(since_start: Duration) -> Self {
        Self(since_start.as_micros() as u64)
    }

    /// How long after the start.
    pub const fn since_start(self) -> Duration {
        Duration::from_micros(self.0)
    }

    /// How long after `earlier`; zero when it is not after it.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_micros() as u64))
    }
}

/// A token bucket: what a rate limit allows now.
///
/// It may go into debt by what is asked for or sent at once, a block at the most, so that what is larger than the burst still passes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    rate: Option<u64>,
    level: f64,
    filled: Instant,
}

impl Bucket {
    /// A bucket of `rate` bytes a second, or without limit. It starts full: a twentieth of a second's worth.
    pub(crate) fn new(rate: Option<u64>, now: Instant) -> Self {
        Self { rate, level: rate.map_or(0.0, Self::burst), filled: now }
    }

    fn burst(rate: u64) -> f64 {
        rate as f64 / 20.0
    }

    /// Changes the rate. What was saved up is kept within the new burst; a debt takes no longer to be paid than before.
    pub(crate) fn set_rate(&mut self, rate: Option<u64>, now: Instant) {
        self.refill(now);
        let slower = self.rate.zip(rate).map_or(1.0, |(old, new)| (new as f64 / old.max(1) as f64).min(1.0));
        self.level = if self.level < 0.0 { self.level * slower } else { self.level };
        self.rate = rate;
        self.level = self.level.min(rate.map_or(0.0, Self::burst));
    }

    fn refill(&mut self, now: Instant) {
        if let Some(rate) = self.rate {
            let gained = now.since(self.filled).as_secs_f64() * rate as f64;
            self.level = (self.level + gained).min(Self::burst(rate));
        }
        self.filled = now;
    }

    /// Takes `bytes` if the limit allows something now; otherwise says when it will.
    pub(crate) fn take(&mut self, bytes: u64, now: Instant) -> Result<(), Instant> {
        self.allows(now)?;
        self.owe(bytes);
        Ok(())
    }

    /// Whether the limit allows something now; otherwise when it will.
    pub(crate) fn allows(&mut self, now: Instant) -> Result<(), Instant> {
        let Some(rate) = self.rate else {
            return Ok(());
        };
        self.refill(now);
        if self.level > 0.0 {
            return Ok(());
        }
        let wait = (1.0 - self.level) / (rate.max(1)) as f64;
        Err(now + Duration::from_secs_f64(wait.min(3600.0)) + Duration::from_micros(1))
    }

    /// Takes `bytes`, beyond what the limit allows now if need be: it allows nothing before they are paid off.
    pub(crate) fn owe(&mut self, bytes: u64) {
        if self.rate.is_some() {
            self.level -= bytes as f64;
        }
    }

    /// Gives back what was taken for nothing.
    pub(crate) fn give_back(&mut self, bytes: u64) {
        if self.rate.is_some() {
            self.level += bytes as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_its_rate_through() {
        let mut bucket = Bucket::new(Some(1_000_000), Instant::ZERO);
        let (mut now, mut taken) = (Instant::ZERO, 0_u64);
        while now < Instant::at(Duration::from_secs(10)) {
            match bucket.take(100_000, now) {
                Ok(()) => taken += 100_000,
                Err(when) => now = when,
            }
        }
        assert!((9_900_000..=10_300_000).contains(&taken), "{taken}");
    }

    #[test]
    fn a_debt_is_paid_no_later_when_the_rate_changes() {
        let when = |rate, then| {
            let mut bucket = Bucket::new(Some(rate), Instant::ZERO);
            bucket.take(rate + rate / 20, Instant::ZERO).unwrap();
            bucket.set_rate(Some(then), Instant::ZERO);
            bucket.allows(Instant::ZERO).unwrap_err().since_start()
        };
        let about = |span: Duration, millis: u64| span.as_millis().abs_diff(millis.into()) <= 1;
        assert!(about(when(1_000_000, 1_000_000), 1_000));
        assert!(about(when(1_000_000, 1_000), 1_001), "{:?}", when(1_000_000, 1_000));
        assert!(about(when(1_000_000, 100_000_000), 10));
    }
}
