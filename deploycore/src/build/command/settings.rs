//! Settings of the command builder.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::origin::Origin;
use crate::model::{friendly, friendly_option};

/// What a [`CommandBuilder`](super::CommandBuilder) builds and how. Its `Debug` leaves out what may be secret: a password in the URL, and
/// the values of the environment.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandBuilderSettings {
    /// The git repository: a path or whatever `git fetch` takes. It is only read. A password in a URL is never shown in logs and errors, but
    /// git keeps it in the mirror and shows it among the host's processes.
    pub repository: String,
    /// What to run, in the root of the checkout, with no input.
    pub command: BuildCommand,
    /// The file that the command leaves, relative to the root of the checkout. A symbolic link must not lead out of the checkout.
    pub output: PathBuf,
    /// Where checkouts and the mirror of the repository live. Local, with room for both.
    pub scratch: PathBuf,
    /// Bytes that must be free on the disk of `scratch`; 1 GiB by default. Where there are fewer, or next to no files can be made, no build starts,
    /// and one that fails or leaves no output did so for a reason around it: another worker may have room. 0 turns it off.
    #[serde(default = "default_keep_free")]
    pub keep_free: ByteSize,
    /// Added to the environment of the command, on top of `DEPLOYCORE_SERVICE`, `DEPLOYCORE_COMMIT` and `DEPLOYCORE_JOB`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Variables that the command has from the worker, if they are set. Nothing else of the worker's environment reaches a build.
    #[serde(default = "default_inherit")]
    pub inherit: Vec<String>,
    /// How long the command may run; by default only the job's own timeout counts.
    #[serde(default, with = "friendly_option")]
    pub time_limit: Option<Duration>,
    /// How long git may take to fetch; 10 min by default.
    #[serde(default = "default_fetch_limit", with = "friendly")]
    pub fetch_limit: Duration,
    /// From SIGTERM to SIGKILL when a build is stopped; 5 s by default. Keep it below the worker's own grace.
    #[serde(default = "default_stop_grace", with = "friendly")]
    pub stop_grace: Duration,
}

impl fmt::Debug for CommandBuilderSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandBuilderSettings")
            .field("repository", &Origin::new(&self.repository))
            .field("command", &self.command)
            .field("output", &self.output)
            .field("scratch", &self.scratch)
            .field("env", &self.env.keys())
            .finish_non_exhaustive()
    }
}

fn default_inherit() -> Vec<String> {
    let names = "PATH HOME USER LOGNAME LANG LC_ALL TZ TMPDIR CARGO_HOME RUSTUP_HOME SSL_CERT_FILE SSL_CERT_DIR \
                 http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY";
    names.split_whitespace().map(str::to_owned).collect()
}

fn default_keep_free() -> ByteSize {
    ByteSize::gib(1)
}

fn default_fetch_limit() -> Duration {
    Duration::from_mins(10)
}

fn default_stop_grace() -> Duration {
    Duration::from_secs(5)
}

/// What a build runs. In a configuration: a text for a shell, a list for a program with its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum BuildCommand {
    /// Run by `sh -c`. What it cannot find or run is the commit's doing.
    Shell(String),
    /// A program, looked for in `PATH`, and its arguments. Where it cannot be run (exit codes 126 and 127) the job is tried again: another
    /// worker may have it.
    Program(Vec<String>),
}

impl BuildCommand {
    pub(super) fn argv(&self) -> Vec<String> {
        match self {
            Self::Shell(script) => vec!["sh".to_owned(), "-c".to_owned(), script.clone()],
            Self::Program(argv) => argv.clone(),
        }
    }
}

impl fmt::Display for BuildCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shell(script) => f.write_str(script),
            Self::Program(argv) => f.write_str(&argv.join(" ")),
        }
    }
}

impl CommandBuilderSettings {
    /// Builds `repository` with the shell script `command`, which leaves `output`, with checkouts under `scratch`.
    pub fn new(
        repository: impl Into<String>,
        command: impl Into<String>,
        output: impl Into<PathBuf>,
        scratch: impl Into<PathBuf>,
    ) -> Self {
        Self {
            repository: repository.into(),
            command: BuildCommand::Shell(command.into()),
            output: output.into(),
            scratch: scratch.into(),
            keep_free: default_keep_free(),
            env: BTreeMap::new(),
            inherit: default_inherit(),
            time_limit: None,
            fetch_limit: default_fetch_limit(),
            stop_grace: default_stop_grace(),
        }
    }

    /// Sets what to run.
    #[must_use]
    pub fn with_command(mut self, command: BuildCommand) -> Self {
        self.command = command;
        self
    }

    /// Sets how many bytes must be free on the disk of the scratch folder; 0 for any number.
    #[must_use]
    pub fn with_keep_free(mut self, keep_free: ByteSize) -> Self {
        self.keep_free = keep_free;
        self
    }

    /// Adds a variable to the environment of the command.
    #[must_use]
    pub fn with_env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Sets how long the command may run.
    #[must_use]
    pub fn with_time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// Sets the time from SIGTERM to SIGKILL.
    #[must_use]
    pub fn with_stop_grace(mut self, grace: Duration) -> Self {
        self.stop_grace = grace;
        self
    }

    pub(super) fn check(&self) -> Result<(), OpenError> {
        let refuse = |what: &str| Err(OpenError::Invalid(what.to_owned()));
        if self.repository.is_empty() || self.repository.starts_with('-') {
            return refuse("`repository` must be a path or a URL");
        }
        if self.command.argv().first().is_none_or(String::is_empty) {
            return refuse("`command` must name a program");
        }
        let is_plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if self.output.as_os_str().is_empty() || !self.output.components().all(is_plain) {
            return refuse("`output` must be a path within the checkout, without `..`");
        }
        let is_name = |name: &String| !name.is_empty() && !name.contains(['=', '\0']);
        if !self.env.keys().all(is_name) || self.env.values().any(|value| value.contains('\0')) {
            return refuse("`env` has a name or a value that no environment can hold");
        }
        Ok(())
    }

    /// What the command has from this process's environment.
    pub(super) fn inherited(&self) -> impl Iterator<Item = (&str, std::ffi::OsString)> {
        self.inherit.iter().filter_map(|name| Some((name.as_str(), std::env::var_os(name)?)))
    }
}

/// Why a [`CommandBuilder`](super::CommandBuilder) cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A setting makes no sense.
    #[error("invalid settings of the command builder: {0}")]
    Invalid(String),
    /// The scratch folder cannot be used.
    #[error("the scratch folder {} cannot be used", path.display())]
    Scratch {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A program that every build needs does not run.
    #[error("`{program}` does not run: install it, or put it in PATH")]
    Program {
        /// The program.
        program: &'static str,
        /// Why.
        source: std::io::Error,
    },
}
