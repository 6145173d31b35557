//! The processes of a machine.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use deploycore::machine::runner::{Error, Launch};
use deploycore::machine::{Instance, Runner};
use deploycore::model::{Digest, Readiness, RunSpec, ServiceName};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::Machine;
use crate::simulation::fault::{Life, Link};

/// How far a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It has executed nothing of the build. It ends with the agent that made it.
    Waiting,
    Running {
        since: Instant,
    },
    Ended {
        code: Option<i32>,
    },
}

/// A process that was made on a machine.
#[derive(Debug)]
pub struct Process {
    pub instance: Instance,
    pub service: ServiceName,
    pub executable: PathBuf,
    pub run: RunSpec,
    /// What it executes.
    pub digest: Digest,
    /// Whether it ever becomes ready.
    works: bool,
    /// The life of the agent that made it.
    maker: Arc<Life>,
    phase: watch::Sender<Phase>,
}

impl Process {
    /// Whether it executes the build.
    pub fn is_running(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Running { .. })
    }

    /// Whether the agent that made it is another one, or gone.
    pub fn is_adopted(&self, life: &Arc<Life>) -> bool {
        !Arc::ptr_eq(&self.maker, life)
    }

    /// It ends by itself, or is killed.
    pub fn end(&self, code: Option<i32>) {
        self.phase.send_if_modified(|phase| {
            let ends = !matches!(phase, Phase::Ended { .. });
            if ends {
                *phase = Phase::Ended { code };
            }
            ends
        });
    }

    fn is_alive(&self) -> bool {
        match *self.phase.borrow() {
            Phase::Waiting => self.maker.is_alive(),
            Phase::Running { .. } => true,
            Phase::Ended { .. } => false,
        }
    }
}

/// Starts processes, as one life of an agent does.
#[derive(Debug)]
pub struct VirtualRunner {
    machine: Arc<Machine>,
    link: Link,
}

impl VirtualRunner {
    /// The processes of `machine`.
    pub fn new(machine: Arc<Machine>, link: Link) -> Self {
        Self { machine, link }
    }

    fn find(&self, instance: &Instance) -> Option<Arc<Process>> {
        self.machine.lock().processes.iter().find(|process| process.instance == *instance).cloned()
    }

    fn make(&self, launch: &Launch) -> Result<Instance, Error> {
        let Some(bytes) = self.machine.files.read(&launch.executable) else {
            let detail = format!("{} is not there", launch.executable.display());
            return Err(Error::Unstartable { service: launch.service.clone(), detail });
        };
        let digest = Digest::of(&bytes);
        let works = self.machine.checker.truth(&digest).is_some_and(|built| built.works);
        let mut state = self.machine.lock();
        state.pids += 1;
        let (pid, boot) = (state.pids, state.boot.to_string());
        let instance = Instance { pid, start_time: u64::from(pid), boot, port: None };
        state.processes.retain(|process| process.is_alive());
        state.processes.push(Arc::new(Process {
            instance: instance.clone(),
            service: launch.service.clone(),
            executable: launch.executable.clone(),
            run: launch.run.clone(),
            digest,
            works,
            maker: self.link.life.clone(),
            phase: watch::Sender::new(Phase::Waiting),
        }));
        Ok(instance)
    }

    fn let_go(&self, instance: &Instance) -> Result<(), Error> {
        let process = self.find(instance).filter(|process| *process.phase.borrow() == Phase::Waiting);
        let Some(process) = process else { return Err(Error::NotPrepared { pid: instance.pid }) };
        process.phase.send_replace(Phase::Running { since: Instant::now() });
        self.machine.checker.started(&self.machine, &process);
        let ends = match process.run.readiness {
            Readiness::Exit => Some(i32::from(!process.works)),
            Readiness::Alive(_) if !process.works => Some(1),
            _ => None,
        };
        if let Some(code) = ends {
            let mut timers = self.machine.timers.lock().unwrap_or_else(PoisonError::into_inner);
            timers.spawn(async move {
                sleep(Duration::from_millis(800)).await;
                process.end(Some(code));
            });
        }
        Ok(())
    }
}

#[async_trait]
impl Runner for VirtualRunner {
    async fn prepare(&self, launch: &Launch) -> Result<Instance, Error> {
        self.link.act("runner.prepare", async { self.make(launch) }).await
    }

    async fn release(&self, instance: &Instance) -> Result<(), Error> {
        self.link.act("runner.release", async { self.let_go(instance) }).await
    }

    async fn is_alive(&self, instance: &Instance) -> bool {
        let find = async { self.find(instance).is_some_and(|process| process.is_alive()) };
        self.link.act("runner.is_alive", find).await
    }

    async fn ended(&self, instance: &Instance) -> Option<i32> {
        let process = self.find(instance)?;
        let mut phase = process.phase.subscribe();
        let ended = phase.wait_for(|phase| matches!(phase, Phase::Ended { .. })).await.map(|phase| *phase);
        self.link.life.awake().await;
        match ended {
            Ok(Phase::Ended { code }) if !process.is_adopted(&self.link.life) => code,
            _ => None,
        }
    }

    async fn answers(&self, instance: &Instance, _path: &str) -> bool {
        let look = async {
            let process = self.find(instance);
            process.is_some_and(|process| match *process.phase.borrow() {
                Phase::Running { since } => process.works && since.elapsed() > Duration::from_millis(500),
                _ => false,
            })
        };
        self.link.act("runner.answers", look).await
    }

    async fn stop(&self, instance: &Instance, grace: Duration) -> Result<(), Error> {
        let stop = async {
            let Some(process) = self.find(instance) else { return };
            if process.is_running() {
                self.machine.checker.stopping(&self.machine, &process, &self.link.life);
            }
            sleep(grace.min(Duration::from_millis(700))).await;
            process.end(None);
        };
        self.link.act("runner.stop", stop).await;
        Ok(())
    }
}
