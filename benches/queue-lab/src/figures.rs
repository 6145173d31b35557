//! Figures of many measurements.

use std::time::Duration;

use serde::Serialize;

/// How long calls took, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Half of them took no longer.
    pub p50: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
    /// How many there were.
    pub samples: usize,
}

impl Spread {
    /// Of measured times; `None` when there are none.
    pub fn of(mut times: Vec<Duration>) -> Option<Self> {
        times.sort_unstable();
        let rank = |share: f64| {
            let at = (share * times.len() as f64).ceil() as usize;
            times.get(at.max(1) - 1).map(|time| millis(*time))
        };
        Some(Self { p50: rank(0.5)?, p99: rank(0.99)?, samples: times.len() })
    }
}

/// In milliseconds.
pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// `n` in this time, a second.
pub fn per_second(n: usize, time: Duration) -> f64 {
    n as f64 / time.as_secs_f64().max(1e-9)
}

/// The machine's load of the last minute: figures of a busy machine are of the machine as much as of the queue.
pub fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_of_the_nearest_sample_above() {
        let times = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(Spread::of(times), Some(Spread { p50: 100.0, p99: 198.0, samples: 200 }));
        let one = Spread::of(vec![Duration::from_millis(3)]);
        assert_eq!(one, Some(Spread { p50: 3.0, p99: 3.0, samples: 1 }));
        assert_eq!(Spread::of(vec![]), None);
    }
}
