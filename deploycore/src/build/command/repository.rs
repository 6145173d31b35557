//! The git repository that commits come from.
//!
//! Each repository has one bare mirror in the scratch folder, shared by all slots and all worker processes there. A checkout is a clone
//! that shares the mirror's objects, so that it costs its files and no copy of the history. A mirror that cannot be brought up to date although
//! the repository answers is made anew: it is a copy, and no worker shall wait for an operator to delete it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::origin::Origin;
use super::process::{Exit, Program, Sink};
use super::scratch::{Folder, Scratch, blocking, lock_within, remove_all};
use super::settings::{CommandBuilderSettings, OpenError};
use crate::build::{BuildContext, BuildError, BuildLog};
use crate::model::{CommitId, Digest};

#[derive(Debug)]
pub(super) struct Repository {
    /// What the operator named; made absolute where it is a local path.
    url: Origin,
    mirror: PathBuf,
    lock: PathBuf,
    env: Vec<(OsString, OsString)>,
    fetch_limit: Duration,
    stop_grace: Duration,
    scratch: PathBuf,
}

/// Settings of every git call: no hooks, whatever a configuration says; packs instead of loose objects, which are there whole or
/// not at all; housekeeping in the foreground, where its time is bounded; and no question of who owns the folders, which
/// are those that the operator named.
const GIT: [&str; 15] = [
    "git",
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "fetch.unpackLimit=1",
    "-c",
    "gc.autoDetach=false",
    "-c",
    "maintenance.autoDetach=false",
    "-c",
    "safe.directory=*",
    "-c",
    "advice.detachedHead=false",
];

/// What git needs beyond what builds get, if it is set.
const GIT_INHERITS: [&str; 3] = ["SSH_AUTH_SOCK", "GIT_SSH_COMMAND", "GIT_SSL_CAINFO"];

impl Repository {
    pub(super) fn new(settings: &CommandBuilderSettings, scratch: &Scratch) -> Self {
        let url = match Path::new(&settings.repository).canonicalize() {
            Ok(path) => path.to_string_lossy().into_owned(),
            Err(_) => settings.repository.clone(),
        };
        let key = Digest::of(url.as_bytes()).short();
        let inherited = settings.inherited().map(|(name, value)| (name.into(), value));
        let own = GIT_INHERITS.iter().filter_map(|name| Some(((*name).into(), std::env::var_os(name)?)));
        let fixed = [("GIT_TERMINAL_PROMPT", "0"), ("LC_ALL", "C")].map(|(name, value)| (name.into(), value.into()));
        Self {
            url: Origin::new(url),
            mirror: scratch.mirrors().join(format!("{key}.git")),
            lock: scratch.mirrors().join(format!("{key}.lock")),
            env: inherited.chain(own).chain(fixed).collect(),
            fetch_limit: settings.fetch_limit,
            stop_grace: settings.stop_grace,
            scratch: scratch.root().to_owned(),
        }
    }

    pub(super) async fn check_git(&self) -> Result<(), OpenError> {
        let program = self.program(&self.scratch, &["--version"]);
        let (sink, stop) = (Sink::capture(&BuildLog::new(0)), CancellationToken::new());
        let refuse = |source| OpenError::Program { program: "git", source };
        match program.run(sink, self.stop_grace, &stop).await {
            Ok(Exit::Code(0)) => Ok(()),
            Ok(exit) => Err(refuse(io::Error::other(format!("`git --version`: {exit:?}")))),
            Err(error) => Err(refuse(error)),
        }
    }

    /// Checks `commit` out in a new folder within `folder`.
    pub(super) async fn checkout(
        &self,
        commit: &CommitId,
        folder: &Folder,
        context: &BuildContext,
    ) -> Result<PathBuf, BuildError> {
        let call = Call { repository: self, mark: folder.mark(), context };
        let commit = match call.resolve(commit).await? {
            Some(found) => found,
            None => call.fetch(commit).await?,
        };
        let checkout = folder.path().join("checkout");
        let (mirror, to) = (self.mirror.to_string_lossy(), checkout.to_string_lossy());
        let clone = ["clone", "--quiet", "--shared", "--no-checkout", "--template=", "--", &*mirror, &*to];
        call.git_or(&self.scratch, &clone, "the checkout could not be made").await?;
        let switch = ["checkout", "--quiet", "--detach", &commit];
        call.git_or(&checkout, &switch, "the checkout could not be made").await?;
        context.log.line(format!("checked out {commit} of {}", self.url));
        Ok(checkout)
    }

    fn program(&self, folder: &Path, args: &[&str]) -> Program {
        let mut program = Program::new(GIT.iter().chain(args), folder);
        program.env(self.env.iter().map(|(name, value)| (name, value)));
        if folder == self.mirror {
            // In a damaged mirror git would look for a repository in the folders above, and might find one to write to.
            program.env([("GIT_DIR", ".")]);
        }
        program
    }
}

/// What is kept of the messages of one call.
const SAID: usize = 16 << 10;

/// Calls of git for one build.
struct Call<'a> {
    repository: &'a Repository,
    mark: String,
    context: &'a BuildContext,
}

impl Call<'_> {
    /// The full id of a commit, if the mirror has it.
    async fn resolve(&self, commit: &CommitId) -> Result<Option<String>, BuildError> {
        let mirror = &self.repository.mirror;
        if !mirror.exists() {
            return Ok(None);
        }
        let name = format!("{commit}^{{commit}}");
        let (exit, found, _) =
            self.git(mirror, &["rev-parse", "--verify", "--quiet", "--end-of-options", &name]).await?;
        // A branch may have a name that looks like an abbreviated commit.
        Ok((exit == Exit::Code(0) && found.starts_with(commit.as_str())).then_some(found))
    }

    /// Brings the mirror up to date and gives the full id of a commit. One process at a time does it per mirror.
    async fn fetch(&self, commit: &CommitId) -> Result<String, BuildError> {
        let repository = self.repository;
        let _locked = self.lock().await?;
        // Whoever held the lock before may have brought it.
        if let Some(found) = self.resolve(commit).await? {
            return Ok(found);
        }
        self.clear().await;
        self.context.log.line(format!("fetching {}", repository.url));
        let failed = format!("repository {} could not be fetched", repository.url);
        let fetched = repository.mirror.exists() && self.fetch_all().await?;
        // The commits may be there although git failed: one reference that it could not move is enough for that.
        if let Some(found) = self.resolve(commit).await? {
            return Ok(found);
        }
        if !fetched {
            // Whose fault was it? Where the repository answers, it is the mirror's, which a host that lost its power may have damaged.
            let ask = ["ls-remote", "--quiet", "--", repository.url.for_git(), "HEAD"];
            self.git_or(&repository.scratch, &ask, &failed).await?;
            self.make_mirror(&failed).await?;
            if let Some(found) = self.resolve(commit).await? {
                return Ok(found);
            }
        }
        self.fetch_alone(commit, &failed).await?;
        let unknown = || {
            let what = if is_full(commit) { "is not in" } else { "is not in, or is not unique in," };
            BuildError::Build(format!("commit {commit} {what} repository {}", repository.url))
        };
        self.resolve(commit).await?.ok_or_else(unknown)
    }

    /// Deletes what git calls left in the mirror that ran out of time or were stopped: git itself keeps it for weeks, and each may have left as
    /// much as the repository is large. The lock is held: nobody else writes there, for a build shares the mirror's objects and has a folder
    /// of its own for new ones.
    async fn clear(&self) {
        let mirror = self.repository.mirror.clone();
        if let Err(error) = blocking(move || remove_unfinished(&mirror)).await {
            tracing::warn!(%error, mirror = %self.repository.mirror.display(), "unfinished files of git could not be deleted");
        }
    }

    /// Whether git brought everything that branches and tags lead to.
    async fn fetch_all(&self) -> Result<bool, BuildError> {
        let repository = self.repository;
        let fetch = ["fetch", "--quiet", "--no-write-fetch-head", "--no-tags", "--prune", "--force", "--"];
        let all = [repository.url.for_git(), "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];
        let (exit, ..) = self.git(&repository.mirror, &[&fetch[..], &all[..]].concat()).await?;
        Ok(exit == Exit::Code(0))
    }

    /// A fresh mirror, in the place of a damaged one if there is one.
    async fn make_mirror(&self, failed: &str) -> Result<(), BuildError> {
        let repository = self.repository;
        let new = repository.mirror.with_extension("new");
        let clear = new.clone();
        let around = |error| BuildError::infrastructure("the mirror of the repository could not be made", error);
        // What a clone that died left there.
        blocking(move || remove_all(&clear)).await.map_err(around)?;
        let to = new.to_string_lossy();
        let clone = ["clone", "--quiet", "--bare", "--no-local", "--template=", "--", repository.url.for_git(), &*to];
        self.git_or(&repository.scratch, &clone, failed).await?;
        let mirror = repository.mirror.clone();
        let replace = move || {
            let damaged = mirror.with_extension("damaged");
            remove_all(&damaged)?;
            match fs::rename(&mirror, &damaged) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => fs::rename(new, &mirror)?,
            }
            remove_all(&damaged)
        };
        blocking(replace).await.map_err(around)
    }

    /// Asks for a commit by its full id: no branch or tag leads to it, but most servers give it all the same.
    async fn fetch_alone(&self, commit: &CommitId, failed: &str) -> Result<(), BuildError> {
        let (url, mirror) = (self.repository.url.for_git(), &self.repository.mirror);
        if !is_full(commit) {
            return Ok(());
        }
        let fetch = ["fetch", "--quiet", "--no-write-fetch-head", "--no-tags", "--", url, commit.as_str()];
        let (exit, ..) = self.git(mirror, &fetch).await?;
        if exit != Exit::Code(0) {
            // Refused, or gone silent since the fetch before? Only the first says something of the commit.
            self.git_or(mirror, &["ls-remote", "--quiet", "--", url, "HEAD"], failed).await?;
        }
        Ok(())
    }

    async fn lock(&self) -> Result<File, BuildError> {
        let repository = self.repository;
        let lock = lock_within(repository.lock.clone(), File::try_lock, repository.fetch_limit, &self.context.stop);
        let around = |error| BuildError::infrastructure("the mirror of the repository could not be locked", error);
        lock.await.map_err(around)?.ok_or(BuildError::Stopped)
    }

    /// Runs git, which must succeed.
    async fn git_or(&self, folder: &Path, args: &[&str], failed: &str) -> Result<String, BuildError> {
        let (exit, out, log) = self.git(folder, args).await?;
        match exit {
            Exit::Code(0) => Ok(out),
            _ => Err(BuildError::infrastructure(failed, format!("git {}: {}", args[0], log.last_lines(5, 1024)))),
        }
    }

    /// How git ended, its output, and its messages, which go to the build's log too.
    async fn git(&self, folder: &Path, args: &[&str]) -> Result<(Exit, String, BuildLog), BuildError> {
        let program = self.repository.program(folder, args).marked(&self.mark);
        let (log, limit) = (BuildLog::new(SAID), self.repository.fetch_limit);
        let sink = Sink::capture(&log);
        let run = program.run(sink.clone(), self.repository.stop_grace, &self.context.stop);
        let late = |_| {
            BuildError::infrastructure(
                format!("git {} took longer than {limit:?}", args[0]),
                self.repository.url.to_string(),
            )
        };
        let exit = timeout(limit, run).await.map_err(late)?;
        let said = BuildLog::new(SAID);
        said.write(self.repository.url.hide(&String::from_utf8_lossy(&log.contents())).as_bytes());
        self.context.log.write(&said.contents());
        match exit {
            Ok(Exit::Stopped) => Err(BuildError::Stopped),
            Ok(exit) => Ok((exit, sink.captured(), said)),
            Err(error) => Err(BuildError::infrastructure("git could not be started", error)),
        }
    }
}

/// How the names of files begin that git renames when they are whole, in these folders of a mirror.
const UNFINISHED: [&str; 2] = ["tmp_", ".tmp-"];
const UNFINISHED_IN: [&str; 2] = ["objects", "objects/pack"];

fn remove_unfinished(mirror: &Path) -> io::Result<()> {
    for folder in UNFINISHED_IN.map(|folder| mirror.join(folder)).iter().filter(|folder| folder.exists()) {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_unfinished = UNFINISHED.iter().any(|start| name.as_encoded_bytes().starts_with(start.as_bytes()));
            if is_unfinished && entry.file_type()?.is_file() {
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

/// A commit id of full length, of either hash that git knows.
fn is_full(commit: &CommitId) -> bool {
    matches!(commit.as_str().len(), 40 | 64)
}
