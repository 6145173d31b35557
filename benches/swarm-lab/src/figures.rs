//! A case, and how fast it could be.

use std::fmt::{Display, Formatter};
use std::str::FromStr;

use bytesize::ByteSize;
use serde::Serialize;

/// Bits a second, as `tc` writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Rate(u64);

impl Rate {
    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    pub(crate) fn bytes(self) -> f64 {
        self.0 as f64 / 8.0
    }
}

const UNITS: [(&str, u64); 4] = [("kbit", 1_000), ("mbit", 1_000_000), ("gbit", 1_000_000_000), ("bit", 1)];
/// Less would not carry a connection's beginning in time; a host of today shapes no more.
const BOUNDS: std::ops::RangeInclusive<u64> = 100_000..=100_000_000_000;

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.trim().to_lowercase();
        let found = UNITS.iter().find_map(|(unit, factor)| Some((lower.strip_suffix(unit)?, factor)));
        let (number, factor) = found.ok_or("wants kbit, mbit or gbit")?;
        let number: f64 = number.trim().parse().map_err(|_| "not a rate".to_owned())?;
        let bits = (number * *factor as f64).round();
        if bits >= *BOUNDS.start() as f64 && bits <= *BOUNDS.end() as f64 {
            Ok(Self(bits as u64))
        } else {
            Err("from 100kbit to 100gbit".to_owned())
        }
    }
}

impl Display for Rate {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        if self.0 >= 1_000_000_000 {
            write!(f, "{} Gbit/s", self.0 as f64 / 1e9)
        } else {
            write!(f, "{} Mbit/s", self.0 as f64 / 1e6)
        }
    }
}

/// One file, one store, some hosts, all with links of their own.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Case {
    pub(crate) fetchers: u16,
    /// The store's link, each way.
    pub(crate) store: Rate,
    /// Each other host's, each way.
    pub(crate) rate: Rate,
    /// Bytes of the file.
    pub(crate) size: u64,
    /// Programs in place of random bytes.
    pub(crate) real: bool,
}

impl Case {
    /// Seconds below which nothing can come: the store must give the file once, each host must take it once, and all copies must leave
    /// some host.
    pub(crate) fn bound(&self) -> f64 {
        let (size, n) = (self.size as f64, f64::from(self.fetchers));
        let all = self.store.bytes() + n * self.rate.bytes();
        (size / self.store.bytes()).max(size / self.rate.bytes()).max(n * size / all)
    }

    pub(crate) fn bytes_kind(&self) -> &'static str {
        if self.real { "real" } else { "random" }
    }
}

impl Display for Case {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "1 + {} at {}", self.fetchers, self.rate)?;
        if self.store != self.rate {
            write!(f, " (store {})", self.store)?;
        }
        write!(f, ", {}", ByteSize(self.size).display().iec())
    }
}

/// The middle one; of an even number the higher of the two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(fetchers: u16, store: &str, rate: &str) -> f64 {
        let (store, rate) = (store.parse().unwrap(), rate.parse().unwrap());
        Case { fetchers, store, rate, size: 100_000_000, real: false }.bound()
    }

    #[test]
    fn the_slowest_of_three_bounds_counts() {
        // The links of the hosts: 100 MB at 10 MB/s.
        assert!((bound(7, "80mbit", "80mbit") - 10.0).abs() < 1e-9);
        // The store's link.
        assert!((bound(7, "8mbit", "80mbit") - 100.0).abs() < 1e-9);
        // What all can send together: one host, which has nobody to send to, and a store.
        assert!((bound(1, "80mbit", "800mbit") - 10.0).abs() < 1e-9);
        assert!((bound(1, "800mbit", "80mbit") - 10.0).abs() < 1e-9);
    }

    #[test]
    fn rates_are_read_as_tc_writes_them() {
        assert_eq!("100mbit".parse(), Ok(Rate(100_000_000)));
        assert_eq!("2.5Gbit".parse(), Ok(Rate(2_500_000_000)));
        assert_eq!("500kbit".parse(), Ok(Rate(500_000)));
        for wrong in ["", "100", "mbit", "-5mbit", "1kbit", "1000gbit", "NaNmbit"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
        assert_eq!(Rate(25_000_000).to_string(), "25 Mbit/s");
    }

    #[test]
    fn a_median_is_one_of_its_values() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0]) - 4.0).abs() < 1e-9);
        assert!(median(vec![]).is_nan());
    }
}
