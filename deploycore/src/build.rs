//! From a commit to stored bytes: the worker with its builder, and the reaper.

mod builder;
#[cfg(feature = "process")]
mod command;
mod log;
mod reaper;
mod settings;
mod worker;

pub use builder::{BuildContext, BuildError, BuildOutput, Builder};
#[cfg(feature = "process")]
pub use command::{BuildCommand, CommandBuilder, CommandBuilderSettings, OpenError};
pub use log::BuildLog;
pub use reaper::{Reaped, Reaper, ReaperSettings};
pub use settings::InvalidSettings;
pub use worker::{RunningBuild, Worker, WorkerSettings};
