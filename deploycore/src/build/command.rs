//! The builder that runs a command on a commit of a git repository.
//!
//! ```text
//! mirror of the repository ─► checkout in a scratch folder ─► command ─► output file
//! (one per repository, shared)   (one per attempt)             (own process group, watched)
//! ```
//!
//! Three things see to it that no process outlives its build: the worker ends the build's process group whenever it lets go of
//! the build; a watchdog process holds a pipe from the worker and ends the group when the worker is gone, however it went; and on Linux
//! each process of a build carries the name of its scratch folder in its environment (`DEPLOYCORE_BUILD`), by which a builder
//! finds and ends what left its group, at the end of the build or when it sweeps the folder of a worker that died.

mod origin;
mod process;
mod repository;
mod scratch;
mod settings;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use self::settings::{BuildCommand, CommandBuilderSettings, OpenError};

use self::process::{Exit, Program, Sink};
use self::repository::Repository;
use self::scratch::{Folder, Scratch};
use super::{BuildContext, BuildError, BuildLog, BuildOutput, Builder};
use crate::model::Job;

/// Builds by running a command in a checkout of the job's commit and taking one file that it leaves.
///
/// The commit may be abbreviated if it is unique. Submodules are not checked out. Hooks never run.
#[derive(Debug)]
pub struct CommandBuilder {
    settings: CommandBuilderSettings,
    scratch: Arc<Scratch>,
    repository: Repository,
}

impl CommandBuilder {
    /// Checks the settings and that `git` and `sh` run, makes the scratch folder, and sweeps it: what dead workers left there is
    /// ended and deleted. Several builders, in one process or in several, may share a scratch folder.
    pub async fn open(settings: CommandBuilderSettings) -> Result<Self, OpenError> {
        settings.check()?;
        let scratch = Arc::new(Scratch::open(&settings.scratch).await?);
        let repository = Repository::new(&settings, &scratch);
        repository.check_git().await?;
        scratch.sweep(&CancellationToken::new()).await?;
        Ok(Self { settings, scratch, repository })
    }

    async fn run_command(
        &self,
        job: &Job,
        checkout: &Path,
        folder: &Folder,
        context: &BuildContext,
    ) -> Result<(), BuildError> {
        let settings = &self.settings;
        let mut program = Program::new(settings.command.argv(), checkout).marked(&folder.mark());
        program.env(settings.inherited());
        program.env([
            ("DEPLOYCORE_SERVICE", job.spec.service.as_str()),
            ("DEPLOYCORE_COMMIT", job.spec.commit.as_str()),
            ("DEPLOYCORE_JOB", &job.spec.id.to_string()),
        ]);
        program.env(&settings.env);
        context.log.line(format!("$ {}", settings.command));
        let stop = context.stop.child_token();
        let run = program.run(Sink::log(&context.log), settings.stop_grace, &stop);
        tokio::pin!(run);
        let limit = settings.time_limit.unwrap_or(Duration::MAX);
        let Ok(exit) = timeout(limit, &mut run).await else {
            stop.cancel();
            let _ = run.await;
            let text = format!("the build command was stopped after its time limit of {limit:?}");
            return Err(BuildError::Timeout(text));
        };
        let exit = exit.map_err(|error| BuildError::infrastructure("the build command could not be started", error))?;
        judge(exit, &context.log, &settings.command)
    }

    /// Why the disk of the scratch folder has no room for a build, if it has none.
    async fn shortage(&self) -> Option<String> {
        let shortage = self.scratch.shortage(self.settings.keep_free).await;
        shortage.unwrap_or_else(|error| Some(format!("the disk of the scratch folder cannot be looked at: {error}")))
    }

    /// A build that fails where the disk is full need not fail by its commit: what could not be written looks as if it had been left out.
    async fn blame(&self, why: String) -> BuildError {
        match self.shortage().await {
            Some(shortage) => BuildError::infrastructure(shortage, why),
            None => BuildError::Build(why),
        }
    }

    /// The output file, if it is one and lies within the checkout.
    fn output(&self, checkout: &Path) -> Result<PathBuf, BuildError> {
        let wanted = self.settings.output.display();
        let missing = |error| BuildError::Build(format!("the build left no output file {wanted}: {error}"));
        let root = checkout.canonicalize().map_err(missing)?;
        let path = root.join(&self.settings.output).canonicalize().map_err(missing)?;
        if !path.starts_with(&root) {
            return Err(BuildError::Build(format!("the output file {wanted} leads out of the checkout")));
        }
        if !path.metadata().map_err(missing)?.is_file() {
            return Err(BuildError::Build(format!("the output {wanted} is no file")));
        }
        Ok(path)
    }
}

#[async_trait]
impl Builder for CommandBuilder {
    async fn build(&self, job: &Job, context: &BuildContext) -> Result<BuildOutput, BuildError> {
        let around = |error| BuildError::infrastructure("the scratch folder could not be used", error);
        // A worker that died while this one runs leaves processes too.
        if let Err(error) = self.scratch.sweep(&context.stop).await {
            tracing::warn!(%error, "the scratch folder could not be swept");
        }
        if let Some(message) = self.shortage().await {
            return Err(BuildError::Infrastructure { message, source: None });
        }
        let folder = self.scratch.folder(&context.lease, &context.stop).await.map_err(around)?;
        let folder = folder.ok_or(BuildError::Stopped)?;
        let checkout = self.repository.checkout(&job.spec.commit, &folder, context).await?;
        let built = self.run_command(job, &checkout, &folder, context).await;
        folder.end_processes().await;
        match built.and_then(|()| self.output(&checkout)) {
            Ok(output) => Ok(BuildOutput::file(output).keeping(folder)),
            Err(BuildError::Build(why)) => Err(self.blame(why).await),
            Err(error) => Err(error),
        }
    }
}

/// SIGKILL, which the kernel sends when memory runs out.
const SIGKILL: i32 = 9;
/// How a shell, or whatever else stands between, tells that the program under it had a SIGKILL.
const TOLD_SIGKILL: i32 = 128 + SIGKILL;
/// The program is there and cannot be run, or is not there.
const NOT_RUN: std::ops::RangeInclusive<i32> = 126..=127;

fn judge(exit: Exit, log: &BuildLog, command: &BuildCommand) -> Result<(), BuildError> {
    let end = match exit {
        Exit::Stopped => return Err(BuildError::Stopped),
        Exit::Code(0) => return Ok(()),
        Exit::Signal(SIGKILL) | Exit::Code(TOLD_SIGKILL) => {
            let message = format!("the build command `{command}` was killed from outside, perhaps for lack of memory");
            return Err(BuildError::Infrastructure { message, source: None });
        }
        // The program is of this worker and not of the commit: another worker may have it. What a script of the commit calls is the
        // commit's own mistake.
        Exit::Code(code) if NOT_RUN.contains(&code) && matches!(command, BuildCommand::Program(_)) => {
            let message = format!("the build command `{command}` does not run here: is it installed?");
            return Err(BuildError::infrastructure(message, log.last_lines(3, 1024)));
        }
        Exit::Code(code) => format!("ended with exit code {code}"),
        Exit::Signal(signal) => format!("was ended by signal {signal}"),
    };
    Err(BuildError::Build(format!("the build command `{command}` {end}:\n{}", log.last_lines(10, 2048))))
}
