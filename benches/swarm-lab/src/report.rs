//! What is told of the runs: a line each, and a table that keeps the rows of earlier cases.

use std::fmt::Write;

use anyhow::{Context, Result};
use bytesize::ByteSize;
use serde::Serialize;

use crate::figures::{Case, median};
use crate::run::Run;
use crate::tool::Tool;

/// All that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Json<'a> {
    pub(crate) case: &'a Case,
    pub(crate) runs: &'a [Run],
}

/// One row of the table: all runs of a tool.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    /// Case, bytes, tool: a new row replaces one with the same.
    key: [String; 3],
    cells: Vec<String>,
}

const HEAD: &str = "\
| case | bytes | tool | T of the last | T/T_bound | store copies, on the wire | by swarm-node's count | CPU, all processes | peak memory of a host | load |
|---|---|---|---|---|---|---|---|---|---|
";
const BEGIN: &str = "<!-- swarm-lab: rows are written by --write-docs -->\n";
const END: &str = "<!-- swarm-lab: end -->";

pub(crate) fn line(case: &Case, run: &Run) -> String {
    format!(
        "{}, {}: {:.2} s, {:.3} x the bound, store {:.2} x, {:.1} s CPU, {} dropped, load {:.2} {:.2}",
        run.tool,
        case,
        run.seconds,
        run.ratio,
        run.store_copies,
        run.cpu_seconds,
        run.dropped,
        run.load[0],
        run.load[1]
    )
}

/// A row for each tool, in the order in which they first ran.
pub(crate) fn rows(case: &Case, runs: &[Run]) -> Vec<Row> {
    let mut tools: Vec<Tool> = Vec::new();
    for run in runs {
        if !tools.contains(&run.tool) {
            tools.push(run.tool);
        }
    }
    let of = |tool: Tool| runs.iter().filter(|run| run.tool == tool).collect::<Vec<_>>();
    tools.into_iter().map(|tool| row(case, tool, &of(tool))).collect()
}

fn row(case: &Case, tool: Tool, runs: &[&Run]) -> Row {
    let all = |value: &dyn Fn(&Run) -> f64| runs.iter().map(|run| value(run)).collect::<Vec<f64>>();
    let (seconds, ratio) = (all(&|run| run.seconds), all(&|run| run.ratio));
    let told: Option<Vec<f64>> = runs.iter().map(|run| run.store_copies_told).collect();
    let peak = runs.iter().map(|run| run.peak_bytes).max().unwrap_or_default();
    let load = all(&|run| run.load[0].max(run.load[1]));
    Row {
        key: [case.to_string(), case.bytes_kind().to_owned(), tool.to_string()],
        cells: vec![
            format!("{} s", spread(&seconds, 2)),
            spread(&ratio, 3),
            spread(&all(&|run| run.store_copies), 2),
            told.map_or("-".to_owned(), |told| spread(&told, 3)),
            format!("{:.1} s", median(all(&|run| run.cpu_seconds))),
            ByteSize(peak).display().iec().to_string(),
            format!("{:.1}", load.iter().copied().fold(0.0, f64::max)),
        ],
    }
}

/// The median, and of several the least and the most.
fn spread(values: &[f64], digits: usize) -> String {
    let (least, most) =
        values.iter().fold((f64::MAX, f64::MIN), |(least, most), value| (least.min(*value), most.max(*value)));
    let middle = median(values.to_vec());
    if values.len() > 1 {
        format!("{middle:.digits$} ({least:.digits$}-{most:.digits$})")
    } else {
        format!("{middle:.digits$}")
    }
}

pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = HEAD.to_owned();
    for row in rows {
        let cells: Vec<&str> = row.key.iter().chain(&row.cells).map(String::as_str).collect();
        writeln!(text, "| {} |", cells.join(" | ")).expect("a string takes all");
    }
    text
}

/// The document with the rows in its table: in place of those of the same case, bytes and tool, else behind the last of the case, else at
/// the end.
pub(crate) fn merge(document: &str, rows: &[Row]) -> Result<String> {
    let (before, rest) =
        document.split_once(BEGIN).with_context(|| format!("there is no line {}", BEGIN.trim_end()))?;
    let (old, after) = rest.split_once(END).with_context(|| format!("there is no line {END}"))?;
    let mut all: Vec<Row> = old.lines().skip(HEAD.lines().count()).filter_map(parse).collect();
    for row in rows {
        let of_case = |other: &Row| other.key[..2] == row.key[..2];
        if let Some(same) = all.iter_mut().find(|other| other.key == row.key) {
            *same = row.clone();
        } else {
            let at = all.iter().rposition(of_case).map_or(all.len(), |last| last + 1);
            all.insert(at, row.clone());
        }
    }
    Ok(format!("{before}{BEGIN}{}{END}{after}", table(&all)))
}

fn parse(line: &str) -> Option<Row> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    let mut cells = inner.split('|').map(|cell| cell.trim().to_owned());
    let key = [cells.next()?, cells.next()?, cells.next()?];
    Some(Row { key, cells: cells.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(fetchers: u16) -> Case {
        let rate = "100mbit".parse().unwrap();
        Case { fetchers, store: rate, rate, size: 200 << 20, real: false }
    }

    fn run(tool: Tool, seconds: f64) -> Run {
        Run {
            tool,
            seconds,
            ratio: seconds / 10.0,
            store_copies: 1.05,
            store_copies_told: (tool == Tool::Swarm).then_some(1.0),
            cpu_seconds: 3.0,
            peak_bytes: 64 << 20,
            dropped: 0,
            load: [0.5, 1.5],
            store: vec![],
            hosts: vec![],
            samples: vec![],
        }
    }

    #[test]
    fn runs_of_a_tool_make_a_row() {
        let runs = [run(Tool::Swarm, 12.0), run(Tool::Star, 70.0), run(Tool::Swarm, 11.0), run(Tool::Swarm, 13.0)];
        let rows = rows(&case(7), &runs);
        assert_eq!(
            table(&rows).lines().skip(2).collect::<Vec<_>>(),
            [
                "| 1 + 7 at 100 Mbit/s, 200.0 MiB | random | swarm | 12.00 (11.00-13.00) s | 1.200 (1.100-1.300) | 1.05 (1.05-1.05) \
                 | 1.000 (1.000-1.000) | 3.0 s | 64.0 MiB | 1.5 |",
                "| 1 + 7 at 100 Mbit/s, 200.0 MiB | random | HTTP star | 70.00 s | 7.000 | 1.05 | - | 3.0 s | 64.0 MiB | 1.5 |",
            ]
        );
    }

    #[test]
    fn rows_go_into_the_table_of_a_document() {
        let document = format!("# Title\n\n{BEGIN}{END}\n\nAfter.\n");
        let first = merge(&document, &rows(&case(7), &[run(Tool::Swarm, 12.0)])).unwrap();
        let second = merge(&first, &rows(&case(15), &[run(Tool::Swarm, 14.0)])).unwrap();
        // One in place of the old, one behind it, the other case as it was.
        let third = merge(&second, &rows(&case(7), &[run(Tool::Star, 70.0), run(Tool::Swarm, 11.0)])).unwrap();
        assert!(third.starts_with("# Title\n\n<!--") && third.ends_with("end -->\n\nAfter.\n"), "{third}");
        let seen: Vec<_> = third
            .lines()
            .filter_map(parse)
            .skip(2)
            .map(|row| row.key[0][4..6].trim().to_owned() + &row.cells[0])
            .collect();
        assert_eq!(seen, ["711.00 s", "770.00 s", "1514.00 s"]);
        assert_eq!(merge(&third, &[]).unwrap(), third);
        assert!(merge("no table", &[]).is_err());
    }
}
