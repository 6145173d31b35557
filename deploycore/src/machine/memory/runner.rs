//! Processes in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::Instant;

use crate::machine::runner::{Error, Instance, Launch, Runner};

/// The code of a process that was killed.
const KILLED: i32 = 128 + 9;

/// What a build does once it is let go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Program {
    /// When it answers; `None` for never.
    pub answers_after: Option<Duration>,
    /// When it ends by itself, and with which code; `None` for never.
    pub ends_after: Option<(Duration, i32)>,
}

type Programs = dyn Fn(&Launch) -> Program + Send + Sync;

/// A [`Runner`] of processes that are only written down, in tokio's time; clones are the same host.
#[derive(Clone)]
pub struct MemoryRunner {
    programs: Arc<Programs>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    started: u32,
    agent: u32,
    processes: BTreeMap<u32, Process>,
}

#[derive(Debug)]
struct Process {
    instance: Instance,
    launch: Launch,
    program: Program,
    /// Which agent may learn its exit code.
    agent: u32,
    released: Option<Instant>,
    killed: watch::Sender<bool>,
}

impl Process {
    fn is_alive(&self) -> bool {
        !*self.killed.borrow() && self.end().is_none_or(|(at, _)| at > Instant::now())
    }

    fn end(&self) -> Option<(Instant, i32)> {
        let (after, code) = self.program.ends_after?;
        Some((self.released? + after, code))
    }
}

impl fmt::Debug for MemoryRunner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRunner").field("state", &self.state).finish_non_exhaustive()
    }
}

impl MemoryRunner {
    /// A host on which each build behaves as `programs` says.
    pub fn new(programs: impl Fn(&Launch) -> Program + Send + Sync + 'static) -> Self {
        Self { programs: Arc::new(programs), state: Arc::default() }
    }

    /// What the end of an agent does: processes that were not let go end, and the next agent learns no exit codes.
    pub fn lose_agent(&self) {
        let mut state = self.lock();
        state.agent += 1;
        state.processes.retain(|_, process| process.released.is_some());
    }

    /// What a restart of the host does.
    pub fn reboot(&self) {
        self.lose_agent();
        self.lock().processes.clear();
    }

    /// The processes that execute a build now.
    pub fn running(&self) -> Vec<(Instance, Launch)> {
        let state = self.lock();
        let running = state.processes.values().filter(|process| process.released.is_some() && process.is_alive());
        running.map(|process| (process.instance.clone(), process.launch.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Runner for MemoryRunner {
    async fn prepare(&self, launch: &Launch) -> Result<Instance, Error> {
        yield_now().await;
        let program = (self.programs)(launch);
        let mut state = self.lock();
        state.started += 1;
        let (pid, agent) = (state.started, state.agent);
        let port = (launch.run.port != crate::model::Port::None).then_some(1);
        let instance = Instance { pid, start_time: u64::from(pid), boot: "memory".to_owned(), port };
        let process = Process {
            instance: instance.clone(),
            launch: launch.clone(),
            program,
            agent,
            released: None,
            killed: watch::Sender::new(false),
        };
        state.processes.insert(pid, process);
        Ok(instance)
    }

    async fn release(&self, instance: &Instance) -> Result<(), Error> {
        yield_now().await;
        let mut state = self.lock();
        match state.processes.get_mut(&instance.pid) {
            Some(process) if process.released.is_none() => process.released = Some(Instant::now()),
            _ => return Err(Error::NotPrepared { pid: instance.pid }),
        }
        Ok(())
    }

    async fn is_alive(&self, instance: &Instance) -> bool {
        self.lock().processes.get(&instance.pid).is_some_and(Process::is_alive)
    }

    async fn ended(&self, instance: &Instance) -> Option<i32> {
        let (end, known, mut killed) = {
            let state = self.lock();
            let process = state.processes.get(&instance.pid)?;
            (process.end(), process.agent == state.agent, process.killed.subscribe())
        };
        let at_end = async {
            match end {
                Some((at, code)) => {
                    tokio::time::sleep_until(at).await;
                    code
                }
                None => std::future::pending().await,
            }
        };
        let code = tokio::select! {
            biased;
            // Also when the host was started anew and nothing is left of it.
            _ = killed.wait_for(|killed| *killed) => KILLED,
            code = at_end => code,
        };
        known.then_some(code)
    }

    async fn answers(&self, instance: &Instance, _path: &str) -> bool {
        yield_now().await;
        let state = self.lock();
        let Some(process) = state.processes.get(&instance.pid).filter(|process| process.is_alive()) else {
            return false;
        };
        let at = process.released.zip(process.program.answers_after).map(|(released, after)| released + after);
        at.is_some_and(|at| at <= Instant::now())
    }

    async fn stop(&self, instance: &Instance, _grace: Duration) -> Result<(), Error> {
        yield_now().await;
        if let Some(process) = self.lock().processes.remove(&instance.pid) {
            process.killed.send_replace(true);
        }
        yield_now().await;
        Ok(())
    }
}
