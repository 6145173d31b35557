//! The board of a region: what its machines last said.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::model::{
    Digest, Goal, KnownMachine, LastReport, MachineKey, MachinePage, MachineReport, MachineStanding, Tally, friendly,
};
use crate::port::{BackendError, MachineDirectory, ReportSink};

/// How long a [`ReportBoard`] remembers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReportBoardSettings {
    /// A machine that is silent for longer is not live; 30 s by default, three times what agents let pass between reports.
    #[serde(with = "friendly")]
    pub live_for: Duration,
    /// A machine that is silent for longer is forgotten; 1 h by default.
    #[serde(with = "friendly")]
    pub forget_after: Duration,
    /// The most machines; 200,000 by default. A full board makes room by forgetting the machine that is silent for longest, if it is
    /// not live, and otherwise refuses new machines.
    pub max_machines: usize,
    /// The most services in one report; 1,000 by default. A report with more is refused.
    pub max_services: usize,
}

impl Default for ReportBoardSettings {
    fn default() -> Self {
        Self {
            live_for: Duration::from_secs(30),
            forget_after: Duration::from_hours(1),
            max_machines: 200_000,
            max_services: 1_000,
        }
    }
}

impl ReportBoardSettings {
    /// Sets how long a silent machine counts as live.
    #[must_use]
    pub fn with_live_for(mut self, span: Duration) -> Self {
        self.live_for = span;
        self
    }

    /// Sets how long a silent machine is remembered.
    #[must_use]
    pub fn with_forget_after(mut self, span: Duration) -> Self {
        self.forget_after = span;
        self
    }

    /// Sets the most machines.
    #[must_use]
    pub fn with_max_machines(mut self, machines: usize) -> Self {
        self.max_machines = machines;
        self
    }
}

/// Machine reports in memory. It is soft state: after a restart it is empty until the machines report again, and says that it is
/// [settling](MachinePage::settling) until each live machine has had the time to.
#[derive(Debug)]
pub struct ReportBoard {
    settings: ReportBoardSettings,
    since: Instant,
    machines: Mutex<BTreeMap<MachineKey, Heard>>,
}

#[derive(Debug)]
struct Heard {
    report: MachineReport,
    digest: Digest,
    at: Instant,
}

impl Default for ReportBoard {
    fn default() -> Self {
        Self::new(ReportBoardSettings::default())
    }
}

impl ReportBoard {
    /// An empty board that listens from now on.
    pub fn new(settings: ReportBoardSettings) -> Self {
        Self { settings, since: Instant::now(), machines: Mutex::default() }
    }

    fn take(&self, report: &MachineReport, now: Instant) -> Result<(), BackendError> {
        let services = report.services.len();
        if services > self.settings.max_services {
            let text = format!("a report of {services} services; at most {} are taken", self.settings.max_services);
            return Err(BackendError::permanent("report board", text));
        }
        let mut machines = self.heard();
        let key = report.key();
        if !machines.contains_key(&key) && machines.len() >= self.settings.max_machines {
            self.make_room(&mut machines, now)?;
        }
        machines.insert(key, Heard { report: report.clone(), digest: LastReport::of(report).digest, at: now });
        Ok(())
    }

    fn make_room(&self, machines: &mut BTreeMap<MachineKey, Heard>, now: Instant) -> Result<(), BackendError> {
        let quietest = machines.iter().min_by_key(|(_, heard)| heard.at);
        match quietest.map(|(key, heard)| (key.clone(), now - heard.at)) {
            Some((key, silent_for)) if silent_for > self.settings.live_for => {
                machines.remove(&key);
                Ok(())
            }
            _ => {
                let text = format!("the board is full: {} machines are live", machines.len());
                Err(BackendError::retryable("report board", text))
            }
        }
    }

    fn touch(&self, last: &LastReport, now: Instant) -> bool {
        let mut machines = self.heard();
        let heard = machines.get_mut(&MachineKey { region: last.region.clone(), machine: last.machine.clone() });
        match heard.filter(|heard| heard.digest == last.digest) {
            Some(heard) => {
                heard.at = now;
                true
            }
            None => false,
        }
    }

    /// A page of what `see` makes of each machine that is not forgotten, by its report, how long it has been silent and whether it is live. What it
    /// leaves out does not count towards `limit`.
    fn page<T>(
        &self,
        after: Option<&MachineKey>,
        limit: usize,
        mut see: impl FnMut(&MachineReport, Duration, bool) -> Option<T>,
    ) -> MachinePage<T> {
        let (now, mut heard) = (Instant::now(), self.heard());
        let is_known = |heard: &Heard| now - heard.at <= self.settings.forget_after;
        if after.is_none() {
            heard.retain(|_, heard| is_known(heard));
        }
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut page =
            MachinePage { machines: Vec::new(), settling: now - self.since < self.settings.live_for, next: None };
        let mut last: Option<&MachineKey> = None;
        for (key, heard) in heard.range((from, Bound::Unbounded)).filter(|(_, heard)| is_known(heard)) {
            let silent_for = now - heard.at;
            let Some(seen) = see(&heard.report, silent_for, silent_for <= self.settings.live_for) else { continue };
            if page.machines.len() >= limit.max(1) {
                page.next = last.cloned();
                break;
            }
            page.machines.push(seen);
            last = Some(key);
        }
        page
    }

    fn heard(&self) -> MutexGuard<'_, BTreeMap<MachineKey, Heard>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ReportSink for ReportBoard {
    async fn report(&self, report: &MachineReport) -> Result<(), BackendError> {
        self.take(report, Instant::now())
    }

    async fn still_holds(&self, last: &LastReport) -> Result<bool, BackendError> {
        Ok(self.touch(last, Instant::now()))
    }
}

#[async_trait]
impl MachineDirectory for ReportBoard {
    async fn machines(
        &self,
        after: Option<&MachineKey>,
        limit: usize,
    ) -> Result<MachinePage<KnownMachine>, BackendError> {
        Ok(self.page(after, limit, |report, silent_for, live| {
            Some(KnownMachine { report: report.clone(), silent_for, live })
        }))
    }

    async fn standings(
        &self,
        goal: &Goal,
        after: Option<&MachineKey>,
        limit: usize,
    ) -> Result<MachinePage<MachineStanding>, BackendError> {
        Ok(self
            .page(after, limit, |report, silent_for, live| MachineStanding::of_report(goal, report, silent_for, live)))
    }

    async fn tally(&self, goal: &Goal) -> Result<Tally, BackendError> {
        let mut tally = Tally::default();
        let page = self.page(None, usize::MAX, |report, silent_for, live| {
            MachineStanding::of_report(goal, report, silent_for, live).map(|machine| tally.add(machine))
        });
        tally.settling = page.settling;
        Ok(tally)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Labels, MachineName, RegionName};

    fn report(machine: &str, pid: u32) -> MachineReport {
        MachineReport {
            machine: MachineName::new(machine).unwrap(),
            region: RegionName::new("r1").unwrap(),
            labels: Labels::default(),
            agent_pid: pid,
            services: Vec::new(),
        }
    }

    async fn shown(board: &ReportBoard) -> Vec<(String, u32, bool)> {
        let known = board.machines(None, 9).await.unwrap().machines;
        known.iter().map(|one| (one.report.machine.to_string(), one.report.agent_pid, one.live)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_machine_is_absent_first_and_forgotten_later() {
        let board = ReportBoard::default();
        board.report(&report("a", 1)).await.unwrap();
        tokio::time::advance(Duration::from_secs(20)).await;
        board.report(&report("b", 1)).await.unwrap();
        board.report(&report("b", 2)).await.unwrap();
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(shown(&board).await, [("a".to_owned(), 1, false), ("b".to_owned(), 2, true)]);
        tokio::time::advance(Duration::from_secs(3580)).await;
        assert_eq!(shown(&board).await, [("b".to_owned(), 2, false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_word_that_the_last_report_holds_keeps_a_machine_live_and_another_report_is_wanted_whole() {
        let board = ReportBoard::default();
        let (one, two) = (report("a", 1), report("a", 2));
        assert!(!board.still_holds(&LastReport::of(&one)).await.unwrap());
        board.report(&one).await.unwrap();
        for _ in 0..3 {
            tokio::time::advance(Duration::from_secs(25)).await;
            assert!(!board.still_holds(&LastReport::of(&two)).await.unwrap());
            assert!(board.still_holds(&LastReport::of(&one)).await.unwrap());
        }
        assert_eq!(shown(&board).await, [("a".to_owned(), 1, true)]);
        tokio::time::advance(Duration::from_secs(31)).await;
        assert!(!board.still_holds(&LastReport::of(&two)).await.unwrap());
        assert_eq!(shown(&board).await, [("a".to_owned(), 1, false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_board_settles_for_as_long_as_a_live_machine_may_be_silent() {
        let board = ReportBoard::new(ReportBoardSettings::default().with_live_for(Duration::from_secs(7)));
        for (after, settling) in [(0, true), (6, true), (1, false)] {
            tokio::time::advance(Duration::from_secs(after)).await;
            let found = board.machines(None, 9).await.unwrap();
            assert_eq!(found, MachinePage { machines: Vec::new(), settling, next: None });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_board_forgets_the_silent_and_never_the_live() {
        let board = ReportBoard::new(ReportBoardSettings::default().with_max_machines(1));
        board.report(&report("a", 1)).await.unwrap();
        assert!(board.report(&report("b", 1)).await.unwrap_err().is_retryable());
        board.report(&report("a", 2)).await.unwrap();
        tokio::time::advance(Duration::from_secs(31)).await;
        board.report(&report("b", 1)).await.unwrap();
        assert_eq!(shown(&board).await, [("b".to_owned(), 1, true)]);
    }
}
