//! Sizes, rates, times and shares as people write them.

use std::time::Duration;

use serde::{Serialize, Serializer};

/// `10GB`, `200MiB`, `4096`: bytes, at least one.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size; write it like 10GB or 200MiB");
    let (number, unit) = number(text).ok_or_else(wrong)?;
    let (factor, rest) = prefix(unit);
    let bytes = whole(number * factor).ok_or_else(wrong)?;
    if rest == "B" || unit.is_empty() { Ok(bytes) } else { Err(wrong()) }
}

/// `1Gbps`, `100Mbit/s`, `125MB/s`: bytes a second, at least one. A small `b` is a bit, a large one a byte.
pub(super) fn rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no rate; write it like 1Gbps, 100Mbit/s or 125MB/s");
    let (number, unit) = number(text).ok_or_else(wrong)?;
    let unit = unit.strip_suffix("ps").or_else(|| unit.strip_suffix("/s")).ok_or_else(wrong)?;
    let (factor, rest) = prefix(unit);
    let bytes = match rest {
        "B" => number * factor,
        "b" | "bit" => number * factor / 8.0,
        _ => return Err(wrong()),
    };
    whole(bytes).ok_or_else(wrong)
}

/// A time, which results tell in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Time(pub(super) Duration);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0.as_secs_f64())
    }
}

/// `30s`, `250us`, `2.5`: without a unit, seconds.
pub(super) fn time(text: &str) -> Result<Time, String> {
    let wrong = || format!("{text:?} is no time; write it like 30s, 500ms or 2m");
    let (number, unit) = number(text).ok_or_else(wrong)?;
    let seconds = match unit {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" | "" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3_600.0,
        _ => return Err(wrong()),
    };
    // Far below where adding times would overflow.
    if seconds <= 1e9 { Ok(Time(Duration::from_secs_f64(seconds))) } else { Err(wrong()) }
}

/// `1%`, `0.01`: a part of one.
pub(super) fn share(text: &str) -> Result<f64, String> {
    let wrong = || format!("{text:?} is no share; write it like 1% or 0.01");
    let (number, unit) = number(text).ok_or_else(wrong)?;
    let share = match unit {
        "%" => number / 100.0,
        "" => number,
        _ => return Err(wrong()),
    };
    if share <= 1.0 { Ok(share) } else { Err(wrong()) }
}

/// `4`, `0.5`, `4x`: how many times, more than none.
pub(super) fn factor(text: &str) -> Result<f64, String> {
    let wrong = || format!("{text:?} is no factor; write it like 4 or 0.5");
    match number(text) {
        Some((number, "" | "x")) if (1e-6..=1e6).contains(&number) => Ok(number),
        _ => Err(wrong()),
    }
}

/// The number, zero or more, that a text begins with, and what follows it.
fn number(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim_start()))
}

/// What the unit's prefix multiplies by, and the unit without it.
fn prefix(unit: &str) -> (f64, &str) {
    for (power, letters) in (1..).zip([['k', 'K'], ['M', 'M'], ['G', 'G'], ['T', 'T']]) {
        if let Some(rest) = unit.strip_prefix(letters) {
            return match rest.strip_prefix('i') {
                Some(rest) => (1024_f64.powi(power), rest),
                None => (1000_f64.powi(power), rest),
            };
        }
    }
    (1.0, unit)
}

fn whole(value: f64) -> Option<u64> {
    (1.0..1e18).contains(&value).then(|| value.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_both_kinds() {
        for (text, bytes) in
            [("10GB", 10_000_000_000), ("200MiB", 200 << 20), ("1.5 kB", 1_500), ("7", 7), ("7B", 7), ("1KiB", 1_024)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "0", "0.4", "GB", "-1GB", "1GBps", "1Gb", "1G", "1e9", "1..2MB", "99999999TB", "1.é"] {
            assert!(size(wrong).unwrap_err().contains("10GB"), "{wrong}");
        }
    }

    #[test]
    fn the_unit_of_a_rate_tells_bits_from_bytes() {
        for (text, bytes) in [
            ("1Gbps", 125_000_000),
            ("25Gbps", 3_125_000_000),
            ("100Mbit/s", 12_500_000),
            ("100 Mb/s", 12_500_000),
            ("125MB/s", 125_000_000),
            ("125MBps", 125_000_000),
            ("10MiB/s", 10 << 20),
            ("8bps", 1),
        ] {
            assert_eq!(rate(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "0bps", "1bps", "1G", "1000", "1GB", "fast", "-1Gbps", "1Gbits"] {
            assert!(rate(wrong).unwrap_err().contains("1Gbps"), "{wrong}");
        }
    }

    #[test]
    fn times_are_seconds_unless_they_say() {
        for (text, millis) in
            [("30s", 30_000), ("500ms", 500), ("2m", 120_000), ("2.5", 2_500), ("0", 0), ("1h", 3_600_000)]
        {
            assert_eq!(time(text), Ok(Time(Duration::from_millis(millis))), "{text}");
        }
        assert_eq!(time("250us"), Ok(Time(Duration::from_micros(250))));
        for wrong in ["", "s", "-1s", "soon", "1d", "9999999999999h"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares_and_factors_have_bounds() {
        assert_eq!((share("1%"), share("0.25"), share("100%")), (Ok(0.01), Ok(0.25), Ok(1.0)));
        for wrong in ["", "%", "101%", "5", "-1%", "1x"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
        assert_eq!((factor("4"), factor("0.5x")), (Ok(4.0), Ok(0.5)));
        for wrong in ["", "0", "-2", "4%", "9999999999"] {
            assert!(factor(wrong).is_err(), "{wrong}");
        }
    }
}
