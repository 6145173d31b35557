//! PostgreSQL: a server of its own for a test binary, a database of its own for a test.

use std::mem;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Error, Folder, Launch, Port, Process, Signal, User};

const PACKAGE: &str = "postgresql";
const DEBIAN: &str = "/usr/lib/postgresql";
/// Of the owner of the server and of all its databases.
const USER: &str = "deploycore";
const PASSWORD: &str = "of-a-test";

/// How a server is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Whether commits are on the disk before they are acknowledged; true by default.
    pub fsync: bool,
    /// Further settings, by name.
    pub settings: Vec<(String, String)>,
}

impl Default for Options {
    /// Durable, with the server's own defaults.
    fn default() -> Self {
        Self { fsync: true, settings: Vec::new() }
    }
}

impl Options {
    /// Adds a setting of `postgresql.conf`.
    #[must_use]
    pub fn with_setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }
}

/// A server, and its data. Dropped, both are gone.
#[derive(Debug)]
pub struct Postgres {
    process: Option<Process>,
    binaries: PathBuf,
    port: Port,
    launch: Launch,
    databases: AtomicU64,
    /// Databases that are empty again.
    empty: Mutex<Vec<String>>,
    /// After the process.
    folder: Folder,
}

/// The processes of a server whose first process was killed end by themselves.
const ORPHANS_END_WITHIN: Duration = Duration::from_secs(20);

impl Postgres {
    /// Makes a data folder and starts a server on it.
    pub fn start(options: &Options) -> Result<Self, Error> {
        let binaries = binaries()?;
        let user = User::instead_of_root("postgres", "postgres")?;
        let folder = Folder::new("postgres")?;
        if let Some(user) = &user {
            user.own(folder.path())?;
        }
        let data = initialise(&binaries, folder.path(), user.as_ref())?;
        let port = Port::take()?;
        let launch = launch(&binaries, folder.path(), &data, port.number(), options).with_user(user);
        let process = Some(Process::start(&launch, || is_ready(&binaries, port.number()))?);
        let (databases, empty) = (AtomicU64::new(0), Mutex::default());
        Ok(Self { process, binaries, port, launch, databases, empty, folder })
    }

    /// Makes an empty database, or takes one that is empty again: to make one costs the server a third of a second.
    pub fn create_database(&self) -> Result<Database<'_>, Error> {
        if let Some(name) = self.empty().pop() {
            return Ok(Database { server: self, name });
        }
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.tool("createdb", &["--template=template0", &name])?;
        Ok(Database { server: self, name })
    }

    /// The URL of a database on the server, with its owner's password.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{}/{database}", self.port())
    }

    /// The folder of its data and its socket.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The id of its first process, whose children serve the connections; `None` while it is down.
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// A program of its version, for instance `pgbench`, that finds the server and `database` by its environment.
    pub fn program(&self, name: &str, database: &str) -> Command {
        let mut command = Command::new(self.binaries.join(name));
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.port().to_string());
        command.env("PGUSER", USER).env("PGPASSWORD", PASSWORD).env("PGDATABASE", database);
        command
    }

    /// SIGKILL: what was not durable is lost. Nothing while it is down.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts it again on its port and data, after [`kill`](Self::kill).
    pub fn start_again(&mut self) -> Result<(), Error> {
        let start = Instant::now();
        while self.process.is_none() {
            match Process::start(&self.launch, || is_ready(&self.binaries, self.port.number())) {
                // A process of the killed server has not noticed yet.
                Err(Error::Ended { log, .. })
                    if log.contains("still in use") && start.elapsed() < ORPHANS_END_WITHIN =>
                {
                    thread::sleep(Duration::from_millis(50));
                }
                started => self.process = Some(started?),
            }
        }
        Ok(())
    }

    /// The end of what the server said; empty while it is down.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    fn empty(&self) -> MutexGuard<'_, Vec<String>> {
        self.empty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tool(&self, name: &str, arguments: &[&str]) -> Result<(), Error> {
        run(self.program(name, "postgres").args(arguments))
    }
}

/// Ends the other connections to a database, and drops all schemas with what is in them.
const EMPTY: &str = "
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid();
    DO $$
    DECLARE own record;
    BEGIN
        FOR own IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' LOOP
            EXECUTE format('DROP SCHEMA %I CASCADE', own.nspname);
        END LOOP;
        CREATE SCHEMA public;
        EXECUTE format('ALTER DATABASE %I RESET ALL', current_database());
    END $$;";

/// A database of a test. Dropped, it is emptied for the next test, whoever is still connected to it.
#[derive(Debug)]
pub struct Database<'s> {
    server: &'s Postgres,
    name: String,
}

impl Database<'_> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its URL, with its owner's password.
    pub fn url(&self) -> String {
        self.server.url(&self.name)
    }
}

impl Drop for Database<'_> {
    fn drop(&mut self) {
        let empty = ["-q", "-v", "ON_ERROR_STOP=1", "-d", &self.name, "-c", EMPTY];
        if self.server.tool("psql", &empty).is_ok() {
            self.server.empty().push(mem::take(&mut self.name));
        }
    }
}

/// Debian keeps each version in a folder of its own; elsewhere the programs are on the path.
fn binaries() -> Result<PathBuf, Error> {
    let versions = std::fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin"))))
        .filter(|(_, folder)| folder.join("postgres").is_file() && folder.join("initdb").is_file())
        .max();
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).find(|folder| folder.join("initdb").is_file())
    };
    let missing = || Error::Missing { program: "PostgreSQL's server".to_owned(), package: PACKAGE };
    newest.map(|(_, folder)| folder).or_else(on_path).ok_or_else(missing)
}

fn initialise(binaries: &Path, folder: &Path, user: Option<&User>) -> Result<PathBuf, Error> {
    let (data, password) = (folder.join("data"), folder.join("password"));
    std::fs::write(&password, PASSWORD).map_err(Error::io(&password))?;
    let mut command = match user {
        None => Command::new(binaries.join("initdb")),
        Some(user) => {
            user.own(&password)?;
            let mut command = Command::new("setpriv");
            command.args(user.setpriv()).arg("--").arg(binaries.join("initdb"));
            command
        }
    };
    command.args(["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "-U", USER]);
    command.arg("--pwfile").arg(&password).arg("-D").arg(&data).current_dir("/");
    run(&mut command)?;
    Ok(data)
}

fn launch(binaries: &Path, folder: &Path, data: &Path, port: u16, options: &Options) -> Launch {
    let fsync = if options.fsync { "on" } else { "off" };
    let own = [
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("port", port.to_string()),
        ("unix_socket_directories", folder.display().to_string()),
        ("fsync", fsync.to_owned()),
        ("max_connections", "300".to_owned()),
    ];
    let own = own.map(|(name, value)| (name.to_owned(), value));
    let settings = own.iter().chain(&options.settings);
    let settings = settings.flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]);
    Launch::new(binaries.join("postgres"), folder.join("log"))
        .with_arguments([Path::new("-D"), data])
        .with_arguments(settings)
        // An immediate shutdown: the backends are told, and nothing is written down in order.
        .with_stop(Signal::QUIT)
}

fn is_ready(binaries: &Path, port: u16) -> bool {
    let mut command = Command::new(binaries.join("pg_isready"));
    command.args(["-q", "-h", "127.0.0.1", "-t", "1", "-p", &port.to_string()]);
    run(&mut command).is_ok()
}

fn run(command: &mut Command) -> Result<(), Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(Error::io(&program))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(Error::Tool { program, status: output.status, said: String::from_utf8_lossy(&said).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_starts_dies_and_starts_again_with_its_data() {
        let mut server = Postgres::start(&Options::default()).unwrap();
        let folder = server.folder().to_owned();
        server.tool("createdb", &["kept"]).unwrap();
        server.kill();
        assert!(server.tool("psql", &["-c", "SELECT 1"]).is_err());
        server.start_again().unwrap();
        server.tool("psql", &["-d", "kept", "-c", "SELECT 1"]).unwrap();
        let name = {
            let database = server.create_database().unwrap();
            server.tool("psql", &["-d", database.name(), "-c", "CREATE TABLE t ()"]).unwrap();
            database.name().to_owned()
        };
        // Its next user finds it empty.
        let again = server.create_database().unwrap();
        assert_eq!(again.name(), name);
        assert!(server.tool("psql", &["-d", &name, "-c", "SELECT FROM t"]).is_err());
        assert_ne!(server.create_database().unwrap().name(), name);
        drop(again);
        drop(server);
        assert!(!folder.exists());
    }

    #[test]
    fn a_server_with_a_setting_that_is_none_gives_its_log() {
        let error = Postgres::start(&Options::default().with_setting("no_such_thing", "1")).unwrap_err();
        assert!(matches!(&error, Error::Ended { log, .. } if log.contains("no_such_thing")), "{error}");
    }
}
