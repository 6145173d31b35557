//! What a user may ask for.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use deploycore::port::swarm::Priority;
use serde::Serialize;

use super::units::{self, Time};
use crate::sim::Settings;

/// Puts one artifact on the machines of simulated regions, in virtual time: the production state machines on a network of queues.
///
/// SIZE is like 10GB or 200MiB, RATE like 1Gbps, 100Mbit/s or 125MB/s, TIME like 30s or 500ms, SHARE (of a region's machines, drawn
/// from the seed, rounded up) like 1% or 0.01.
#[derive(Debug, Clone, Parser, Serialize)]
#[command(
    name = "swarm-sim",
    after_help = "Exit codes: 0 all machines that should complete did; 1 some did not, or the results could not be written; 2 wrong \
                  command line."
)]
pub(super) struct Options {
    /// Machines in all regions together
    #[arg(long, value_name = "N")]
    pub(super) machines: usize,
    /// Regions among which the machines are divided evenly; each has a store, a gate and a tracker
    #[arg(long, value_name = "N", default_value = "1")]
    pub(super) regions: usize,
    /// Of the artifact
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(super) size: u64,
    /// Of each machine's downlink
    #[arg(long, value_name = "RATE", default_value = "1Gbps", value_parser = units::rate)]
    pub(super) down: u64,
    /// Of each machine's uplink
    #[arg(long, value_name = "RATE", default_value = "1Gbps", value_parser = units::rate)]
    pub(super) up: u64,
    /// Of each region's store
    #[arg(long, value_name = "RATE", default_value = "25Gbps", value_parser = units::rate)]
    pub(super) store: u64,
    /// Zones of each region, over which its machines are spread evenly; the machines know theirs
    #[arg(long, value_name = "N")]
    pub(super) zones: Option<usize>,
    /// What all machines of a zone together send to other zones, and what they receive from them [default: no bound]
    #[arg(long, value_name = "RATE", value_parser = units::rate, requires = "zones")]
    pub(super) between: Option<u64>,
    /// One way, for messages and for a block's last byte
    #[arg(long, value_name = "TIME", default_value = "250us", value_parser = units::time)]
    pub(super) latency: Time,
    /// Machines start within this time
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = units::time)]
    pub(super) arrivals: Time,
    /// What travels as one: a real swarm sends 1MiB, which takes several times as long to simulate [default: a piece]
    #[arg(long, value_name = "SIZE", value_parser = block)]
    pub(super) block: Option<u32>,
    /// A region is given up after this time [default: 20 times the bound of the slowest machine, and a minute]
    #[arg(long, value_name = "TIME", value_parser = units::time)]
    pub(super) horizon: Option<Time>,
    /// Seeds all choices of all regions
    #[arg(long, value_name = "N", default_value = "1")]
    pub(super) seed: u64,
    /// Regions are simulated side by side, each on several threads where there are enough for all; the results do not depend on it
    /// [default: as many as there are processors]
    #[arg(long, value_name = "N")]
    #[serde(skip)]
    pub(super) threads: Option<usize>,
    /// Written, whole, at the end: settings and results
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(super) json: Option<PathBuf>,
    /// Written, whole, at the end: completion over time, as SVG
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(super) plot: Option<PathBuf>,

    /// Machines that die for good at random times within the bound
    #[arg(long, value_name = "SHARE", value_parser = units::share, help_heading = "Faults")]
    pub(super) crash: Option<f64>,
    /// Machines whose links are FACTOR times as slow, both ways [default factor: 4]
    #[arg(long, value_name = "SHARE[:FACTOR]", value_parser = slow, help_heading = "Faults")]
    pub(super) slow: Option<Links>,
    /// Machines in each region that give bad blocks
    #[arg(long, value_name = "N", help_heading = "Faults")]
    pub(super) corrupt: Option<usize>,
    /// When the trackers die and start anew with nothing known; may be given several times
    #[arg(long, value_name = "TIME", value_parser = units::time, help_heading = "Faults")]
    pub(super) tracker_death: Vec<Time>,
    /// When the gates die and start anew from their durable counts; may be given several times
    #[arg(long, value_name = "TIME", value_parser = units::time, help_heading = "Faults")]
    pub(super) gate_death: Vec<Time>,
    /// Machines that start at TIME; theirs counts from then [default time: half the bound]
    #[arg(long, value_name = "SHARE[:TIME]", value_parser = late, help_heading = "Faults")]
    pub(super) late: Option<Late>,
    /// Machines that die at random times within the bound and start again 2 seconds later with the pieces they had
    #[arg(long, value_name = "SHARE", value_parser = units::share, help_heading = "Faults")]
    pub(super) restart: Option<f64>,
    /// Machines that between the times reach each other only; may be given several times
    #[arg(long, value_name = "SHARE:FROM:TO", value_parser = cut, help_heading = "Faults")]
    pub(super) partition: Vec<Cut>,
    /// When all machines start to fetch a second artifact of the same size
    #[arg(long, value_name = "TIME", value_parser = units::time, help_heading = "Faults")]
    pub(super) second: Option<Time>,
    /// How urgent the second artifact is: normal, high or rollback
    #[arg(
        long,
        value_name = "PRIORITY",
        value_parser = priority,
        default_value = "normal",
        requires = "second",
        help_heading = "Faults"
    )]
    pub(super) second_priority: Priority,
    /// Machines whose links are FACTOR times as fast, both ways
    #[arg(long, value_name = "SHARE:FACTOR", value_parser = spread, help_heading = "Faults")]
    pub(super) spread: Option<Links>,
}

/// Machines with other links.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Links {
    pub(super) share: f64,
    pub(super) factor: f64,
}

/// Machines that start late, by default at half the bound.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Late {
    pub(super) share: f64,
    pub(super) at: Option<Time>,
}

/// Machines that are cut off.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Cut {
    pub(super) share: f64,
    pub(super) from: Time,
    pub(super) to: Time,
}

impl Options {
    /// What the parser cannot see: how the options stand to each other. The error names the option and the way out.
    pub(super) fn check(&self) -> Result<(), String> {
        let wrong = |option: &str, what: String| Err(format!("--{option}: {what}"));
        if self.regions == 0 {
            return wrong("regions", "there must be at least 1".to_owned());
        }
        if self.machines < self.regions {
            let (machines, regions) = (self.machines, self.regions);
            return wrong(
                "machines",
                format!("{machines} for {regions} regions; give at least 1 a region, or fewer --regions"),
            );
        }
        if self.threads == Some(0) {
            return wrong("threads", "there must be at least 1".to_owned());
        }
        if self.size > deploycore::model::MAX_ARTIFACT_SIZE {
            return wrong("size", "an artifact has at most 1TiB; give a smaller one".to_owned());
        }
        if self.json.is_some() && self.json == self.plot {
            return wrong("plot", "is the file of --json too; give another".to_owned());
        }
        for cut in &self.partition {
            if cut.from >= cut.to {
                return wrong("partition", "ends before it begins; write it like 10%:5s:20s".to_owned());
            }
        }
        let smallest = self.machines / self.regions;
        let (corrupt, others) =
            (self.corrupt.unwrap_or(0), [self.crash, self.restart, self.late.map(|late| late.share)]);
        let taken: usize = others.into_iter().flatten().map(|share| count(share, smallest)).sum();
        if corrupt.saturating_add(taken) > smallest {
            let what = format!(
                "with --crash, --restart and --late, more than the {smallest} machines of a region; give less of them"
            );
            return wrong("corrupt", what);
        }
        Ok(())
    }

    /// How many machines a region has: the first ones take the remainder.
    pub(super) fn machines_of(&self, region: usize) -> usize {
        self.machines / self.regions + usize::from(region < self.machines % self.regions)
    }

    /// A region's settings without faults.
    pub(super) fn base(&self, region: usize) -> Settings {
        // Two regions or two seeds have nothing in common. 53 bits: every reader of JSON gets the same number.
        let mixed =
            fastrand::Rng::with_seed(self.seed).u64(..) ^ (region as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let seed = mixed >> 11;
        let mut settings = Settings::equal(self.machines_of(region), self.size, self.down, seed);
        settings.up = self.up;
        settings.store = self.store;
        settings.zones = self.zones.unwrap_or_default();
        settings.between = self.between;
        settings.latency = self.latency.0;
        settings.arrivals = self.arrivals.0;
        settings.set_max_block(self.block.unwrap_or(u32::MAX));
        settings
    }

    /// When a region is given up: late enough that whoever is not done by then never will be.
    pub(super) fn horizon(&self, bound: Duration) -> Duration {
        let slow = |links: Option<Links>| links.map_or(1.0, |links| links.factor.min(1.0).recip());
        let last = self.partition.iter().map(|cut| cut.to).chain(self.second).chain(self.late.and_then(|late| late.at));
        let last = last.chain(self.tracker_death.iter().chain(&self.gate_death).copied()).max();
        let last = last.map_or(Duration::ZERO, |last| last.0);
        let slowest = bound.mul_f64(20.0 * slow(self.slow) * slow(self.spread));
        self.horizon.map_or(last + self.arrivals.0 + slowest + Duration::from_mins(1), |horizon| horizon.0)
    }
}

/// How many machines a share is.
pub(super) fn count(share: f64, machines: usize) -> usize {
    // 0.07 × 100 is a little more than 7.
    ((share * machines as f64 - 1e-9).ceil() as usize).min(machines)
}

fn block(text: &str) -> Result<u32, String> {
    let bytes = units::size(text)?;
    let bytes = u32::try_from(bytes).ok().filter(|bytes| *bytes >= 1 << 10);
    bytes.ok_or_else(|| format!("{text:?} is no block; give 1KiB to 1GiB, a piece at most"))
}

fn priority(text: &str) -> Result<Priority, String> {
    match text {
        "normal" => Ok(Priority::Normal),
        "high" => Ok(Priority::High),
        "rollback" => Ok(Priority::Rollback),
        _ => Err(format!("{text:?} is no priority; give normal, high or rollback")),
    }
}

fn slow(text: &str) -> Result<Links, String> {
    let (share, factor) = text.split_once(':').unwrap_or((text, "4"));
    Ok(Links { share: units::share(share)?, factor: units::factor(factor)?.recip() })
}

fn spread(text: &str) -> Result<Links, String> {
    let (share, factor) = text.split_once(':').ok_or_else(|| format!("{text:?} has no factor; write it like 10%:2"))?;
    Ok(Links { share: units::share(share)?, factor: units::factor(factor)? })
}

fn late(text: &str) -> Result<Late, String> {
    let (share, at) = text.split_once(':').map_or((text, None), |(share, at)| (share, Some(at)));
    Ok(Late { share: units::share(share)?, at: at.map(units::time).transpose()? })
}

fn cut(text: &str) -> Result<Cut, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let [share, from, to] = parts[..] else {
        return Err(format!("{text:?} is no partition; write it like 10%:5s:20s"));
    };
    Ok(Cut { share: units::share(share)?, from: units::time(from)?, to: units::time(to)? })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(more: &[&str]) -> Result<Options, String> {
        let base = ["swarm-sim", "--machines", "10", "--size", "1MB"];
        let options = Options::try_parse_from(base.iter().chain(more)).map_err(|error| error.to_string())?;
        options.check()?;
        Ok(options)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn the_first_regions_take_the_remainder() {
        let options = parse(&["--regions", "3"]).unwrap();
        assert_eq!([0, 1, 2].map(|region| options.machines_of(region)), [4, 3, 3]);
        assert_ne!(options.base(0).seed, options.base(1).seed);
    }

    #[test]
    fn faults_have_parts() {
        assert_eq!(slow("5%"), Ok(Links { share: 0.05, factor: 0.25 }));
        assert_eq!(slow("5%:10"), Ok(Links { share: 0.05, factor: 0.1 }));
        assert_eq!(spread("10%:2"), Ok(Links { share: 0.1, factor: 2.0 }));
        assert!(spread("10%").is_err() && slow("5%:0").is_err() && slow(":4").is_err());
        assert_eq!(late("10%"), Ok(Late { share: 0.1, at: None }));
        assert_eq!(late("10%:3s"), Ok(Late { share: 0.1, at: Some(Time(Duration::from_secs(3))) }));
        assert!(cut("10%:1s").is_err() && cut("10%:1s:2s:3s").is_err() && cut("10%:1s:x").is_err());
        assert_eq!((count(0.07, 100), count(0.01, 20), count(0.0, 20), count(1.0, 20)), (7, 1, 0, 20));
    }

    #[test]
    fn what_cannot_be_is_told_by_option() {
        for (wrong, option) in [
            (&["--regions", "11"][..], "--machines"),
            (&["--regions", "0"], "--regions"),
            (&["--threads", "0"], "--threads"),
            (&["--block", "5GiB"], "--block"),
            (&["--partition", "10%:5s:5s"], "--partition"),
            (&["--second", "1s", "--second-priority", "urgent"], "--second-priority"),
            (&["--second-priority", "high"], "--second"),
            (&["--corrupt", "11"], "--corrupt"),
            (&["--crash", "60%", "--late", "50%"], "--crash"),
            (&["--json", "x", "--plot", "x"], "--plot"),
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains(option), "{wrong:?}: {error}");
        }
    }
}
