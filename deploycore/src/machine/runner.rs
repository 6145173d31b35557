//! How a build is started on a machine, and how it is known again.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::model::{RunSpec, ServiceName};

/// What can go wrong with a runner.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The build cannot be started as it is specified.
    #[error("{service} cannot be started: {detail}")]
    Unstartable {
        /// The service.
        service: ServiceName,
        /// What is wrong.
        detail: String,
    },
    /// A process does not end, not even when it is killed.
    #[error("process {pid} does not end")]
    Unstoppable {
        /// The process.
        pid: u32,
    },
    /// The instance is not one that waits to be let go.
    #[error("process {pid} does not wait to be released")]
    NotPrepared {
        /// The process.
        pid: u32,
    },
    /// The system refused.
    #[error("{what} failed")]
    System {
        /// What was tried.
        what: String,
        /// Why.
        source: std::io::Error,
    },
}

/// A process, so named that it is never mistaken for another that got the same number later.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// The process, which leads a process group of its own.
    pub pid: u32,
    /// When it started, in the ticks of its boot.
    pub start_time: u64,
    /// The boot of the host that it belongs to.
    pub boot: String,
    /// The port that it was given, if it has one.
    pub port: Option<u16>,
}

/// What to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The service.
    pub service: ServiceName,
    /// The verified file to execute.
    pub executable: PathBuf,
    /// The folder of the service: it may hold its log and its working folder.
    pub folder: PathBuf,
    /// How.
    pub run: RunSpec,
}

/// Starts builds. A host may supply its own, for instance for a container engine.
///
/// A start has two steps, so that no crash leaves a process that nobody knows: [`prepare`](Self::prepare) makes a process that
/// waits, the agent writes it down, [`release`](Self::release) lets it go.
#[async_trait]
pub trait Runner: Send + Sync + Debug + 'static {
    /// Makes a process that has not yet executed anything of the build. If the agent dies before the release, it ends by itself.
    ///
    /// Errors: `Unstartable`, `System`.
    async fn prepare(&self, launch: &Launch) -> Result<Instance, Error>;

    /// Lets a prepared process execute the build.
    ///
    /// Errors: `NotPrepared`, also when it was released before; `System`.
    async fn release(&self, instance: &Instance) -> Result<(), Error>;

    /// Whether the instance, perhaps one of an earlier agent, is alive.
    async fn is_alive(&self, instance: &Instance) -> bool;

    /// Resolves when the instance has ended, with its exit code: 128 and the signal's number where a signal ended it. `None` is for
    /// an instance of an earlier agent alone, whose code nobody can know: what is to be run once is then run again, at once and without
    /// an end to it. May be called by several at once. Cancel safe.
    async fn ended(&self, instance: &Instance) -> Option<i32>;

    /// Called when an instance of the service with this folder starts or is taken over, from time to time while it runs, and when it has ended: a runner
    /// that keeps logs there bounds them. Cancel safe; one that was given up may still be at work when the next is called.
    async fn tend(&self, _folder: &Path) {}

    /// Whether `GET` on `path` of the instance's port answers with a 2xx status now. Bounded in time.
    async fn answers(&self, instance: &Instance, path: &str) -> bool;

    /// Ends the instance and all that it started: asks, waits for `grace`, kills. Returns when nothing is left. Idempotent, also
    /// for an instance that is not alive.
    ///
    /// Errors: `Unstoppable`, `System`.
    async fn stop(&self, instance: &Instance, grace: Duration) -> Result<(), Error>;
}
