//! The table of a run.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::queue::{Figures, Mode, Queue};

const BEGIN: &str = "<!-- queue-peers: the table is written by --write-docs -->\n";
const END: &str = "<!-- queue-peers: end -->";

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(crate) settings: Settings,
    /// The server's own limit.
    pub(crate) commits_per_s: f64,
    pub(crate) rows: Vec<Row>,
    /// One-minute load of the machine, before and after.
    pub(crate) load: [f64; 2],
}

#[derive(Debug, Serialize)]
pub(crate) struct Settings {
    pub(crate) workers: u16,
    pub(crate) jobs: u32,
    pub(crate) batch_jobs: u32,
    /// Jobs of a call in mode batch.
    pub(crate) batch: u16,
    pub(crate) rounds: u16,
}

/// What a queue did in the rounds so far, in their order.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) queue: Queue,
    pub(crate) mode: Mode,
    version: Option<String>,
    enqueue_per_s: Vec<f64>,
    drain_per_s: Vec<f64>,
}

impl Row {
    pub(crate) fn new(queue: Queue, mode: Mode) -> Self {
        Self { queue, mode, version: None, enqueue_per_s: vec![], drain_per_s: vec![] }
    }

    pub(crate) fn add(&mut self, figures: Figures) {
        self.version = figures.version;
        self.enqueue_per_s.push(figures.enqueue_per_s);
        self.drain_per_s.extend(figures.drain_per_s);
    }

    pub(crate) fn line(&self, commits_per_s: f64) -> String {
        let version = self.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
        let [enqueued, drained] = [&self.enqueue_per_s, &self.drain_per_s].map(|rates| cells(rates, commits_per_s));
        format!("| {} | {}{version} | {enqueued} | {drained} |", self.mode.name(), self.queue.name())
    }
}

/// The median of some rates, with the least and the most if there are several, and the median by the server's limit. Of two the lower counts.
fn cells(rates: &[f64], limit: f64) -> String {
    let mut sorted = rates.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match *sorted {
        [] => "- | -".to_owned(),
        [rate] => format!("{rate:.0} | {:.2}", rate / limit),
        [least, .., most] => {
            let median = sorted[(sorted.len() - 1) / 2];
            format!("{median:.0} ({least:.0}-{most:.0}) | {:.2}", median / limit)
        }
    }
}

impl Report {
    pub(crate) fn table(&self) -> String {
        let Settings { workers, jobs, batch_jobs, batch, rounds } = &self.settings;
        let mut text = format!(
            "`benches/peers/run --workers {workers} --jobs {jobs} --batch-jobs {batch_jobs} --batch {batch} --rounds {rounds} --write-docs`: the \
             server's own limit was {:.0} commits a second; load {:.1} before, {:.1} after.\n\n",
            self.commits_per_s, self.load[0], self.load[1]
        );
        text += "| mode | queue | enqueued a second | by the limit | claimed and completed a second | by the limit |\n|---|---|---|---|---|---|\n";
        for row in &self.rows {
            writeln!(text, "{}", row.line(self.commits_per_s)).expect("a string takes all");
        }
        text
    }

    /// The document with this table in place of the one before.
    pub(crate) fn put_into(&self, document: &str) -> Result<String> {
        let (before, rest) =
            document.split_once(BEGIN).with_context(|| format!("there is no line {}", BEGIN.trim_end()))?;
        let (_, after) = rest.split_once(END).with_context(|| format!("there is no line {END}"))?;
        Ok(format!("{before}{BEGIN}{}{END}{after}", self.table()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_takes_the_place_of_the_one_before() {
        let mut row = Row::new(Queue::PgBoss, Mode::Batch);
        let figures =
            |enqueue_per_s, drain_per_s| Figures { version: Some("1.2".to_owned()), enqueue_per_s, drain_per_s };
        row.add(figures(2_000.0, None));
        assert_eq!(row.line(4_000.0), "| batch | pg-boss 1.2 | 2000 | 0.50 | - | - |");
        row.add(figures(1_000.0, Some(8_000.0)));
        row.add(figures(4_000.0, Some(6_000.0)));
        let line = "| batch | pg-boss 1.2 | 2000 (1000-4000) | 0.50 | 6000 (6000-8000) | 1.50 |";
        assert_eq!(row.line(4_000.0), line);
        let settings = Settings { workers: 2, jobs: 500, batch_jobs: 1_000, batch: 10, rounds: 3 };
        let report = Report { settings, commits_per_s: 4_000.0, rows: vec![row], load: [0.5, 1.5] };
        let document = format!("# Title\n\n{BEGIN}old\n{END}\nAfter.\n");
        let first = report.put_into(&document).unwrap();
        assert!(first.starts_with("# Title\n\n<!--") && first.ends_with("end -->\nAfter.\n"), "{first}");
        assert!(first.contains(line) && !first.contains("old"), "{first}");
        assert_eq!(report.put_into(&first).unwrap(), first);
        assert!(report.put_into("no table").is_err());
    }
}
