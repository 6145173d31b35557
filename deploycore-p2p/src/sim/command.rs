//! The tool `swarm-sim`: simulates regions side by side and tells what came of them.

mod faults;
mod options;
mod plot;
mod region;
mod units;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Parser;
use clap::error::ErrorKind;
use serde::Serialize;
use tempfile::NamedTempFile;

use self::options::Options;
use self::region::Outcome;
use crate::core::{gate, peer, tracker};

/// What `--json` writes.
#[derive(Serialize)]
struct Results<'a> {
    settings: Shown<'a>,
    regions: Vec<&'a region::Row>,
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    options: &'a Options,
    peer: &'a peer::Settings,
    gate: &'a gate::Settings,
    tracker: &'a tracker::Settings,
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => error.exit(),
        Err(error) => return wrong(&one_line(&error.to_string())),
    };
    if let Err(error) = options.check() {
        return wrong(&format!("error: {error}"));
    }
    // Before the work, not after it.
    let unfinished = |option, path: &Option<_>| path.as_deref().map(|path| begin(option, path)).transpose();
    let (json, plot) = match (unfinished("json", &options.json), unfinished("plot", &options.plot)) {
        (Ok(json), Ok(plot)) => (json, plot),
        (Err(error), _) | (_, Err(error)) => return wrong(&format!("error: {error}")),
    };

    let outcomes = simulate(&options);
    // Whoever closed the pipe has seen enough; the files are still wanted.
    let _ = region::print(io::stdout().lock(), outcomes.iter().map(|outcome| &outcome.row));
    let written = write(&options, &outcomes, json, plot);
    let complete = tell_incomplete(&outcomes);
    match written {
        Ok(()) if complete => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn wrong(line: &str) -> ExitCode {
    eprintln!("{line}");
    ExitCode::from(2)
}

/// What clap says, without its paragraphs.
fn one_line(error: &str) -> String {
    let told =
        error.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let told: Vec<&str> = told.filter(|line| !line.is_empty()).collect();
    format!("{}; see swarm-sim --help", told.join(" "))
}

/// A region of fewer is not divided further: its threads would mostly wait for each other.
const MACHINES_A_THREAD: usize = 500;

/// Simulates all regions, in their order whatever the threads did.
fn simulate(options: &Options) -> Vec<Outcome> {
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = options.threads.unwrap_or_else(processors);
    let at_once = threads.min(options.regions);
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let work = || {
        loop {
            let region = next.fetch_add(1, Ordering::Relaxed);
            if region >= options.regions {
                break;
            }
            let threads = (threads / at_once).min(options.machines_of(region) / MACHINES_A_THREAD).max(1);
            let outcome = region::simulate(options, region, threads);
            eprintln!("{}", outcome.row.line());
            done.lock().expect("nobody panics with the lock").push(outcome);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(work);
        }
    });
    let mut outcomes = done.into_inner().expect("nobody panics with the lock");
    outcomes.sort_by_key(|outcome| outcome.row.region);
    outcomes
}

fn write(
    options: &Options,
    outcomes: &[Outcome],
    json: Option<NamedTempFile>,
    plot: Option<NamedTempFile>,
) -> Result<(), String> {
    if let (Some(file), Some(path)) = (json, &options.json) {
        let base = options.base(0);
        let settings = Shown { options, peer: &base.peer, gate: &base.gate, tracker: &base.tracker };
        let results = Results { settings, regions: outcomes.iter().map(|outcome| &outcome.row).collect() };
        let mut text = serde_json::to_vec_pretty(&results).map_err(|error| error.to_string())?;
        text.push(b'\n');
        finish("json", file, path, &text)?;
    }
    if let (Some(file), Some(path)) = (plot, &options.plot) {
        finish("plot", file, path, plot::svg(outcomes)?.as_bytes())?;
    }
    Ok(())
}

/// Says on standard error how many machines did not complete, and what some of them wait for.
fn tell_incomplete(outcomes: &[Outcome]) -> bool {
    let incomplete: usize = outcomes.iter().map(|outcome| outcome.row.incomplete).sum();
    if incomplete == 0 {
        return true;
    }
    eprintln!("error: machines that should have completed by the horizon (--horizon) and did not: {incomplete}");
    let stuck = outcomes.iter().flat_map(|outcome| outcome.stuck.iter().map(|text| (outcome.row.region, text)));
    for (region, text) in stuck.take(10) {
        eprintln!("  region {region}, {text}");
    }
    false
}

/// A file beside its target, that takes its name in the end.
fn begin(option: &str, path: &Path) -> Result<NamedTempFile, String> {
    if path.is_dir() {
        return Err(format!("--{option}: {} is a folder; name a file", path.display()));
    }
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    let file = tempfile::Builder::new().prefix(".unfinished-").permissions(permissions).tempfile_in(folder_of(path));
    file.map_err(|error| format!("--{option}: {} cannot be written: {error}; name another file", path.display()))
}

fn finish(option: &str, mut file: NamedTempFile, path: &Path, bytes: &[u8]) -> Result<(), String> {
    let mut write = || {
        file.write_all(bytes)?;
        file.as_file().sync_all()
    };
    write()
        .and_then(|()| Ok(file.persist(path)?))
        .and_then(|_| File::open(folder_of(path))?.sync_all())
        .map_err(|error| format!("--{option}: {} could not be written: {error}", path.display()))
}

/// A bare file name has an empty parent: the working folder.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_that_names_the_option() {
        for wrong in [&["--size", "big", "--machines", "1"][..], &["--machines", "1"], &["--no-such"]] {
            let error = Options::try_parse_from(["swarm-sim"].iter().chain(wrong)).unwrap_err();
            let line = one_line(&error.to_string());
            assert!(line.starts_with("error: ") && line.contains("--") && !line.contains('\n'), "{line}");
        }
    }
}
