//! MariaDB: a server of its own for a test binary, a database of its own for a test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::etcd::Certificates;
use crate::{Error, Folder, Launch, Port, Process, Signal, User};

const PACKAGE: &str = "mariadb-server";
/// Where the programs of a server may be though an ordinary user's path does not name it.
const BESIDE_PATH: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/usr/local/bin"];
/// Who may do everything.
const USER: &str = "deploycore";
const PASSWORD: &str = "of-a-test";
/// The server runs it at each start, before anyone can connect.
const INIT: &str = "
    CREATE USER IF NOT EXISTS 'deploycore'@'%' IDENTIFIED BY 'of-a-test';
    GRANT ALL PRIVILEGES ON *.* TO 'deploycore'@'%' WITH GRANT OPTION;
";

/// How a server is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Whether commits are on the disk before they are acknowledged; true by default. Without, they survive the death of the server, but
    /// not that of the machine, though the server says otherwise.
    pub fsync: bool,
    /// Whether it offers TLS; false by default.
    pub tls: bool,
    /// Further settings, by name.
    pub settings: Vec<(String, String)>,
}

impl Default for Options {
    /// Durable, with the server's own defaults.
    fn default() -> Self {
        Self { fsync: true, tls: false, settings: Vec::new() }
    }
}

impl Options {
    /// Sets whether commits are on the disk before they are acknowledged.
    #[must_use]
    pub fn with_fsync(mut self, fsync: bool) -> Self {
        self.fsync = fsync;
        self
    }

    /// With TLS for clients that want it.
    #[must_use]
    pub fn with_tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Adds a setting of the server, by the name of its option without the dashes.
    #[must_use]
    pub fn with_setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }
}

/// A server, and its data. Dropped, both are gone.
#[derive(Debug)]
pub struct MariaDb {
    process: Option<Process>,
    client: PathBuf,
    port: Port,
    certificates: Option<Certificates>,
    launch: Launch,
    databases: AtomicU64,
    /// After the process.
    folder: Folder,
}

impl MariaDb {
    /// Makes a data folder and starts a server on it.
    pub fn start(options: &Options) -> Result<Self, Error> {
        let (server, client) = (binary("mariadbd")?, binary("mariadb")?);
        let user = User::instead_of_root("mysql", "mariadbd")?;
        let folder = Folder::new("mariadb")?;
        if let Some(user) = &user {
            user.own(folder.path())?;
        }
        initialise(folder.path(), user.as_ref())?;
        let certificates = options.tls.then(|| Certificates::new(&folder.path().join("tls"))).transpose()?;
        let port = Port::take()?;
        let launch = launch(&server, folder.path(), port.number(), options)
            .with_arguments(certificates.iter().flat_map(tls_arguments))
            .with_user(user);
        let process = Some(Process::start(&launch, || is_ready(&client, port.number()))?);
        let databases = AtomicU64::new(0);
        Ok(Self { process, client, port, certificates, launch, databases, folder })
    }

    /// Makes an empty database, which stays as long as the server. Its own character set is not UTF-8, as on many an old server.
    pub fn create_database(&self) -> Result<Database<'_>, Error> {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.run_sql(&format!("CREATE DATABASE {name} CHARACTER SET latin1"))?;
        Ok(Database { server: self, name })
    }

    /// Runs statements as the user who may do everything.
    pub fn run_sql(&self, sql: &str) -> Result<(), Error> {
        run_sql(&self.client, self.port(), sql)
    }

    /// The URL of a database on the server, with a user who may do everything.
    pub fn url(&self, database: &str) -> String {
        format!("mysql://{USER}:{PASSWORD}@127.0.0.1:{}/{database}", self.port())
    }

    /// The folder of its data and its socket.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Its certificates, with TLS.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// SIGKILL: what was not durable is lost. Nothing while it is down.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts it again on its port and data, after [`kill`](Self::kill).
    pub fn start_again(&mut self) -> Result<(), Error> {
        if self.process.is_none() {
            self.process = Some(Process::start(&self.launch, || is_ready(&self.client, self.port.number()))?);
        }
        Ok(())
    }

    /// The end of what the server said; empty while it is down.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }
}

/// A database of a test.
#[derive(Debug)]
pub struct Database<'s> {
    server: &'s MariaDb,
    name: String,
}

impl Database<'_> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its URL, with a user who may do everything.
    pub fn url(&self) -> String {
        self.server.url(&self.name)
    }
}

fn binary(name: &str) -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).chain(BESIDE_PATH.map(PathBuf::from));
    let found = folders.find_map(|folder| Some(folder.join(name)).filter(|binary| binary.is_file()));
    found.ok_or_else(|| Error::Missing { program: name.to_owned(), package: PACKAGE })
}

fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

fn init(folder: &Path) -> PathBuf {
    folder.join("init.sql")
}

/// Makes the system's tables. It is throw-away data that no machine's death needs to leave whole.
fn initialise(folder: &Path, user: Option<&User>) -> Result<(), Error> {
    let install = binary("mariadb-install-db")?;
    std::fs::write(init(folder), INIT).map_err(Error::io(init(folder)))?;
    let mut command = match user {
        None => Command::new(install),
        Some(user) => {
            user.own(&init(folder))?;
            let mut command = Command::new("setpriv");
            command.args(user.setpriv()).arg("--").arg(install);
            command
        }
    };
    command.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
    command.args(["--innodb-flush-method=nosync", "--skip-name-resolve"]);
    command.arg(option("datadir", data(folder).display())).current_dir("/");
    run(&mut command)
}

fn option(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

fn launch(server: &Path, folder: &Path, port: u16, options: &Options) -> Launch {
    let own = [
        option("datadir", data(folder).display()),
        option("init-file", init(folder).display()),
        option("socket", folder.join("socket").display()),
        option("pid-file", folder.join("pid").display()),
        option("tmpdir", folder.display()),
        option("bind-address", "127.0.0.1"),
        option("port", port),
        option("max-connections", 300),
        option("skip-name-resolve", 1),
    ];
    let no_sync = (!options.fsync).then(|| option("innodb-flush-method", "nosync"));
    let settings = options.settings.iter().map(|(name, value)| option(name, value));
    Launch::new(server, folder.join("log"))
        .with_arguments(["--no-defaults"])
        .with_arguments(own)
        .with_arguments(no_sync)
        .with_arguments(settings)
        // Nobody needs what it would write down in order.
        .with_stop(Signal::KILL)
}

fn tls_arguments(certificates: &Certificates) -> [String; 3] {
    let Certificates { ca, server, server_key, .. } = certificates;
    [option("ssl-ca", ca.display()), option("ssl-cert", server.display()), option("ssl-key", server_key.display())]
}

fn is_ready(client: &Path, port: u16) -> bool {
    run_sql(client, port, "SELECT 1").is_ok()
}

fn run_sql(client: &Path, port: u16, sql: &str) -> Result<(), Error> {
    let mut command = Command::new(client);
    command.args(["--no-defaults", "--protocol=tcp", "--host=127.0.0.1", "--connect-timeout=1"]);
    command.args([option("port", port), option("user", USER), option("execute", sql)]);
    run(command.env("MYSQL_PWD", PASSWORD))
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
        let mut server = MariaDb::start(&Options::default()).unwrap();
        let folder = server.folder().to_owned();
        let name = server.create_database().unwrap().name().to_owned();
        server.run_sql(&format!("CREATE TABLE {name}.t (i INT); INSERT INTO {name}.t VALUES (1)")).unwrap();
        server.kill();
        assert!(server.run_sql("SELECT 1").is_err());
        server.start_again().unwrap();
        server.run_sql(&format!("SELECT i FROM {name}.t")).unwrap();
        assert_ne!(server.create_database().unwrap().name(), name);
        drop(server);
        assert!(!folder.exists());
    }

    #[test]
    fn a_server_with_a_setting_that_is_none_gives_its_log() {
        let options = Options::default().with_fsync(false).with_setting("no-such-thing", "1");
        let error = MariaDb::start(&options).unwrap_err();
        assert!(matches!(&error, Error::Ended { log, .. } if log.contains("no-such-thing")), "{error}");
    }
}
