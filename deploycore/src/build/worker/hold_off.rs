//! When a worker holds off. Where build after build fails for reasons around it, the reason is likely the worker's own host (a full disk, a key
//! that has expired), and each job that it goes on to claim loses an attempt that another host might have used.

use tokio::task::Id;
use tokio::time::Instant;

use crate::pace::Pace;

/// What the end of an attempt says of the host that it ran on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// The host can build.
    Sound,
    /// Something around the build failed.
    Unsound,
    /// Nothing.
    Mute,
}

/// Failures around builds in a row, and what follows from them: no claim for a delay, then one job, by which the host is tried. Each one that
/// fails doubles the delay. The first that says that the host can build ends it.
#[derive(Debug)]
pub(super) struct HoldOff {
    in_a_row: u32,
    pace: Pace,
    /// No claim before.
    until: Option<Instant>,
    /// The build by which the host is tried.
    trial: Option<Id>,
}

/// One failure is the weather.
const SUSPICIOUS: u32 = 2;

impl HoldOff {
    /// Delays are the backoff of `pace`.
    pub(super) fn new(pace: Pace) -> Self {
        Self { in_a_row: 0, pace, until: None, trial: None }
    }

    /// How many of `free` slots may be filled now.
    pub(super) fn room(&self, free: usize, now: Instant) -> usize {
        match self.until {
            None => free,
            Some(until) if now < until || self.trial.is_some() => 0,
            Some(_) => free.min(1),
        }
    }

    /// The end of the delay that is under way.
    pub(super) fn ends_at(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| now < *until)
    }

    pub(super) fn started(&mut self, build: Id) {
        if self.until.is_some() {
            self.trial = Some(build);
        }
    }

    pub(super) fn ended(&mut self, build: Id, sign: Sign, now: Instant) {
        let was_trial = self.trial.take_if(|trial| *trial == build).is_some();
        match sign {
            Sign::Mute => {}
            Sign::Sound => {
                self.pace.note(true);
                (self.in_a_row, self.until, self.trial) = (0, None, None);
            }
            Sign::Unsound => {
                self.in_a_row = self.in_a_row.saturating_add(1);
                // The others were under way when it began, and say nothing new: a worker of many slots must not wait for minutes at once.
                if self.in_a_row == SUSPICIOUS || was_trial {
                    self.begin(now);
                }
            }
        }
    }

    fn begin(&mut self, now: Instant) {
        self.pace.note(false);
        let delay = self.pace.delay();
        self.until = Some(now + delay);
        tracing::warn!(in_a_row = self.in_a_row, ?delay, "builds in a row failed around their commits; claims wait");
        metrics::counter!("deploycore_worker_hold_offs_total").increment(1);
    }
}
