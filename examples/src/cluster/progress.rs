//! Progress for people: bars on a terminal, a line per step elsewhere.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// The bars of one run.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    bars: MultiProgress,
    terminal: bool,
    /// What is being waited for, for the message of a time limit.
    last: Arc<Mutex<String>>,
}

/// One bar.
#[derive(Debug)]
pub(super) struct Step {
    bar: ProgressBar,
    title: String,
    terminal: bool,
    last: Arc<Mutex<String>>,
}

impl Progress {
    pub(super) fn new() -> Self {
        use std::io::IsTerminal;
        Self { bars: MultiProgress::new(), terminal: std::io::stderr().is_terminal(), last: Arc::default() }
    }

    /// Starts a step of `total` units.
    pub(super) fn step(&self, title: impl Into<String>, total: u64) -> Step {
        let (title, terminal) = (title.into(), self.terminal);
        let bar = self.bars.add(ProgressBar::new(total));
        let template = "{prefix:<34} [{bar:30}] {pos:>3}/{len:<3} {elapsed:>4}  {msg}";
        bar.set_style(ProgressStyle::with_template(template).expect("the template is constant").progress_chars("=> "));
        bar.set_prefix(title.clone());
        bar.enable_steady_tick(Duration::from_millis(200));
        Step { bar, title, terminal, last: self.last.clone() }
    }

    /// Where the newest step stands.
    pub(super) fn last(&self) -> String {
        self.last.lock().expect("no holder panics").clone()
    }

    /// Says something above the bars.
    pub(super) fn say(&self, line: impl AsRef<str>) {
        if self.terminal {
            let _ = self.bars.println(line);
        } else {
            eprintln!("{}", line.as_ref());
        }
    }
}

impl Step {
    pub(super) fn set(&self, position: u64, message: impl Into<String>) {
        let message = message.into();
        self.bar.set_position(position);
        let total = self.bar.length().unwrap_or(0);
        *self.last.lock().expect("no holder panics") = format!("{}: {position} of {total}. {message}", self.title);
        self.bar.set_message(message);
    }

    pub(super) fn finish(self, message: impl Into<String>) {
        let message = message.into();
        if !self.terminal {
            eprintln!("{}: {message} ({:.1} s)", self.title, self.bar.elapsed().as_secs_f64());
        }
        self.bar.set_position(self.bar.length().unwrap_or(0));
        self.bar.finish_with_message(message);
    }
}
