//! Why a server is not there.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// Why a server did not start, or a tool of it failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A program is not installed.
    #[error("{program} is not installed: install {package} of Debian (scripts/test does), or its like elsewhere")]
    Missing {
        /// What was looked for.
        program: String,
        /// Where it comes from.
        package: &'static str,
    },
    /// A program that no package of Debian holds is not there.
    #[error("{program} is not in {}: scripts/test puts it there", .folder.display())]
    NotInstalled {
        /// What was looked for.
        program: String,
        /// Where.
        folder: PathBuf,
    },
    /// Root was to run the program as another user, whom this machine does not have.
    #[error("there is no user {user} on this machine, and {program} does not run as root")]
    NoUser {
        /// Who.
        user: String,
        /// What.
        program: String,
    },
    /// The process ended before it was ready.
    #[error("{program} ended before it was ready, {status}; it said:\n{log}")]
    Ended {
        /// Which program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// All that it said, or the end of it.
        log: String,
    },
    /// The process was not ready in time, and was killed.
    #[error("{program} was not ready after {waited:?}; it said:\n{log}")]
    NotReady {
        /// Which program.
        program: String,
        /// How long it was waited for.
        waited: Duration,
        /// All that it said, or the end of it.
        log: String,
    },
    /// A tool of the server failed.
    #[error("{program} failed, {status}: {said}")]
    Tool {
        /// Which tool.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        said: String,
    },
    /// A file or a process could not be handled.
    #[error("{}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
