//! The table of a run.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::queue::{Figures, Queue};

const BEGIN: &str = "<!-- queue-peers: the table is written by --write-docs -->\n";
const END: &str = "<!-- queue-peers: end -->";

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) workers: u16,
    pub(crate) jobs: u32,
    /// Jobs of a call in mode batch.
    pub(crate) batch: u16,
    /// The server's own limit.
    pub(crate) commits_per_s: f64,
    pub(crate) rows: Vec<Row>,
    /// One-minute load of the machine, before and after.
    pub(crate) load: [f64; 2],
}

#[derive(Debug, Serialize)]
pub(crate) struct Row {
    queue: &'static str,
    mode: String,
    #[serde(flatten)]
    figures: Figures,
    enqueue_by_limit: f64,
    drain_by_limit: Option<f64>,
}

impl Row {
    pub(crate) fn new(queue: Queue, mode: &str, figures: Figures, commits_per_s: f64) -> Self {
        let (enqueue, drain) = (figures.enqueue_per_s, figures.drain_per_s);
        Self {
            queue: queue.name(),
            mode: mode.to_owned(),
            figures,
            enqueue_by_limit: enqueue / commits_per_s,
            drain_by_limit: drain.map(|drain| drain / commits_per_s),
        }
    }

    pub(crate) fn line(&self) -> String {
        let cell =
            |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
        format!(
            "| {} | {} {} | {:.0} | {:.2} | {} | {} |",
            self.mode,
            self.queue,
            self.figures.version.as_deref().unwrap_or_default(),
            self.figures.enqueue_per_s,
            self.enqueue_by_limit,
            cell(self.figures.drain_per_s, 0),
            cell(self.drain_by_limit, 2),
        )
        .replace("  ", " ")
    }
}

impl Report {
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "`benches/peers/run --workers {} --jobs {} --batch {} --write-docs`: the server's own limit was {:.0} commits a second; load {:.1} before, \
             {:.1} after.\n\n",
            self.workers, self.jobs, self.batch, self.commits_per_s, self.load[0], self.load[1]
        );
        text += "| mode | queue | enqueued a second | by the limit | claimed and completed a second | by the limit |\n|---|---|---|---|---|---|\n";
        for row in &self.rows {
            writeln!(text, "{}", row.line()).expect("a string takes all");
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
        let figures = Figures { version: Some("1.2".to_owned()), enqueue_per_s: 2_000.0, drain_per_s: None };
        let row = Row::new(Queue::PgBoss, "batch", figures, 4_000.0);
        assert_eq!(row.line(), "| batch | pg-boss 1.2 | 2000 | 0.50 | - | - |");
        let report =
            Report { workers: 2, jobs: 500, batch: 10, commits_per_s: 4_000.0, rows: vec![row], load: [0.5, 1.5] };
        let document = format!("# Title\n\n{BEGIN}old\n{END}\nAfter.\n");
        let first = report.put_into(&document).unwrap();
        assert!(first.starts_with("# Title\n\n<!--") && first.ends_with("end -->\nAfter.\n"), "{first}");
        assert!(first.contains("| batch | pg-boss 1.2 |") && !first.contains("old"), "{first}");
        assert_eq!(report.put_into(&first).unwrap(), first);
        assert!(report.put_into("no table").is_err());
    }
}
