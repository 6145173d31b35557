//! One region: simulated, and what is told of it.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::faults;
use super::options::Options;
use crate::sim::{Report, Second, Settings, run};

/// What is told of a region.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) region: usize,
    pub(super) machines: usize,
    seed: u64,
    pub(super) bound_seconds: f64,
    binding_term: &'static str,
    ratio_p50: f64,
    ratio_p99: f64,
    ratio_max: f64,
    healthy_ratio_max: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    second_ratio_max: Option<f64>,
    /// How the artifacts shared each of the first seconds after the second one's start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    second_shares: Vec<Second>,
    store_copies: f64,
    /// What entered the zone that received most from others.
    #[serde(skip_serializing_if = "Option::is_none")]
    zone_copies: Option<f64>,
    pub(super) incomplete: usize,
    wasted_bytes: u64,
    quarantined: usize,
    events: u64,
    cpu_seconds: f64,
    wall_seconds: f64,
}

/// What came of a region.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) row: Row,
    /// When machines were complete, from the start of the run, in order.
    pub(super) completions: Vec<Duration>,
    pub(super) stuck: Vec<String>,
}

/// Simulates a region on so many threads.
pub(super) fn simulate(options: &Options, region: usize, threads: usize) -> Outcome {
    let settings = Settings { threads, ..faults::region(options, region) };
    let wall = Instant::now();
    let report = run(settings.clone());
    let wall_seconds = wall.elapsed().as_secs_f64();
    let slow = |machine: &usize| settings.links.get(machine).is_some_and(|factor| *factor < 1.0);
    let healthy =
        |machine: &usize| settings.must_complete(*machine) && !slow(machine) && !settings.lates.contains_key(machine);
    let times = (0..settings.machines).filter(healthy).filter_map(|machine| report.completed[machine]);
    let row = Row {
        region,
        machines: settings.machines,
        seed: settings.seed,
        bound_seconds: report.bound.time.as_secs_f64(),
        binding_term: report.bound.term.as_str(),
        ratio_p50: report.ratio(0.5),
        ratio_p99: report.ratio(0.99),
        ratio_max: report.ratio_max(),
        healthy_ratio_max: report.ratio_of(1.0, times),
        second_ratio_max: settings.second.map(|_| report.ratio_of(1.0, report.second.iter().flatten().copied())),
        second_shares: report.seconds(),
        store_copies: report.store_bytes as f64 / settings.size as f64,
        zone_copies: report.crossed.iter().max().map(|bytes| *bytes as f64 / settings.size as f64),
        incomplete: incomplete(&settings, &report),
        wasted_bytes: report.wasted,
        quarantined: report.quarantined,
        events: report.events,
        cpu_seconds: report.cpu.as_secs_f64(),
        wall_seconds,
    };
    Outcome { row, completions: completions(&settings, &report), stuck: report.stuck }
}

fn incomplete(settings: &Settings, report: &Report) -> usize {
    let lacks = |times: &[Option<Duration>], machine: usize| times.get(machine).is_some_and(Option::is_none);
    let any = |machine: &usize| lacks(&report.completed, *machine) || lacks(&report.second, *machine);
    (0..settings.machines).filter(|machine| settings.must_complete(*machine)).filter(any).count()
}

fn completions(settings: &Settings, report: &Report) -> Vec<Duration> {
    let since_start = |(machine, time): (usize, &Option<Duration>)| Some((*time)? + settings.counts_from(machine));
    let mut completions: Vec<Duration> = report.completed.iter().enumerate().filter_map(since_start).collect();
    completions.sort_unstable();
    completions
}

const COLUMNS: [&str; 15] = [
    "region",
    "machines",
    "bound",
    "term",
    "p50",
    "p99",
    "max",
    "healthy",
    "second",
    "store",
    "zone",
    "incomplete",
    "wasted",
    "events",
    "cpu",
];

impl Row {
    /// What is said when the region ends.
    pub(super) fn line(&self) -> String {
        let Self { region, machines, ratio_max, bound_seconds, incomplete, wall_seconds, .. } = self;
        format!(
            "region {region}: {machines} machines, {ratio_max:.3} times the bound of {bound_seconds:.3} s, \
             {incomplete} incomplete, simulated in {wall_seconds:.1} s"
        )
    }

    fn cells(&self) -> [String; COLUMNS.len()] {
        [
            self.region.to_string(),
            self.machines.to_string(),
            format!("{:.3} s", self.bound_seconds),
            self.binding_term.to_owned(),
            format!("{:.3}", self.ratio_p50),
            format!("{:.3}", self.ratio_p99),
            format!("{:.3}", self.ratio_max),
            format!("{:.3}", self.healthy_ratio_max),
            self.second_ratio_max.map_or("-".to_owned(), |ratio| format!("{ratio:.3}")),
            format!("{:.3}", self.store_copies),
            self.zone_copies.map_or("-".to_owned(), |copies| format!("{copies:.3}")),
            self.incomplete.to_string(),
            format!("{:.1} MiB", self.wasted_bytes as f64 / f64::from(1 << 20)),
            self.events.to_string(),
            format!("{:.1} s", self.cpu_seconds),
        ]
    }
}

const SHARE_COLUMNS: [&str; 5] = ["region", "second", "machines", "share", "least"];

/// Prints a table, a line a region, and below it how two artifacts shared the bandwidth, a line a region and second.
pub(super) fn print<'a>(mut out: impl Write, rows: impl Iterator<Item = &'a Row> + Clone) -> io::Result<()> {
    print_table(&mut out, COLUMNS, rows.clone().map(Row::cells))?;
    let shares =
        |row: &'a Row| row.second_shares.iter().enumerate().map(|(at, second)| share_cells(row.region, at, second));
    if rows.clone().any(|row| !row.second_shares.is_empty()) {
        writeln!(out)?;
        print_table(&mut out, SHARE_COLUMNS, rows.flat_map(shares))?;
    }
    out.flush()
}

fn share_cells(region: usize, at: usize, second: &Second) -> [String; SHARE_COLUMNS.len()] {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let Second { machines, share, least } = *second;
    [region.to_string(), at.to_string(), machines.to_string(), percent(share), percent(least)]
}

fn print_table<const N: usize>(
    out: &mut impl Write,
    columns: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> io::Result<()> {
    let mut table = vec![columns.map(str::to_owned)];
    table.extend(rows);
    let widths: Vec<usize> =
        (0..N).map(|at| table.iter().map(|cells| cells[at].len()).max().unwrap_or_default()).collect();
    for cells in &table {
        let cells: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
        writeln!(out, "{}", cells.join("  "))?;
    }
    Ok(())
}
