//! The file: its tables, and the only code that touches it.

use std::fs::File;
use std::path::{Path, PathBuf};

use ::redb::{
    Builder, Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    TableHandle,
};
use deploycore::model::{Revision, ServiceName};
use deploycore::port::BackendError;
use deploycore::port::goals::{HISTORY, Index, Stored};

use super::BACKEND;

/// Goals are JSON: an older or newer build can be told apart, and a person can read them.
const GOALS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("goals");
/// By service, epoch and generation; the current goal included.
const PAST: TableDefinition<'_, (&str, u64, u64), &[u8]> = TableDefinition::new("history");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

const FORMAT: u64 = 1;
/// Goals are small and the current ones are in memory: redb's default of 1 GiB is not for them.
const CACHE: usize = 16 << 20;

/// What a failure of the file is; each names the file.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("{} is open already: one process owns a goal file; end it, or reach its goals over HTTP", .0.display())]
    Busy(PathBuf),
    #[error("{} has goal format {found}; this build reads format {FORMAT}", path.display())]
    Format { path: PathBuf, found: u64 },
    #[error("{} is a redb file of something else", .0.display())]
    Foreign(PathBuf),
    #[error("{} holds a goal of {service} that cannot be read", path.display())]
    Goal { path: PathBuf, service: String, source: serde_json::Error },
    #[error("{} could not be used", path.display())]
    Redb { path: PathBuf, source: ::redb::Error },
}

impl From<Fault> for BackendError {
    fn from(fault: Fault) -> Self {
        use std::io::ErrorKind as Kind;
        let retryable = match &fault {
            Fault::Busy(_) => true,
            Fault::Format { .. } | Fault::Foreign(_) | Fault::Goal { .. } => false,
            Fault::Redb { source, .. } => match source {
                ::redb::Error::Io(error) => !matches!(
                    error.kind(),
                    Kind::NotFound
                        | Kind::PermissionDenied
                        | Kind::StorageFull
                        | Kind::InvalidData
                        | Kind::IsADirectory
                ),
                ::redb::Error::PreviousIo | ::redb::Error::DatabaseClosed => true,
                _ => false,
            },
        };
        if retryable { Self::retryable(BACKEND, fault) } else { Self::permanent(BACKEND, fault) }
    }
}

/// The open file.
#[derive(Debug)]
pub(super) struct Disk {
    path: PathBuf,
    database: Database,
}

impl Disk {
    /// Opens the file, checks it, and reads the current goals.
    pub(super) fn open(path: PathBuf) -> Result<(Self, Index), BackendError> {
        let database = create(&path)?;
        Self::on(path, database)
    }

    pub(super) fn on(path: PathBuf, database: Database) -> Result<(Self, Index), BackendError> {
        let disk = Self { path, database };
        disk.begin()?;
        let index = disk.load()?;
        Ok((disk, index))
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes goals and where the store then stands, all or nothing, synced when it returns.
    pub(super) fn write<'a>(&self, goals: impl Iterator<Item = &'a Stored>, next: &Index) -> Result<(), BackendError> {
        self.transact(|transaction| {
            let (mut current, mut past) = (transaction.open_table(GOALS)?, transaction.open_table(PAST)?);
            for stored in goals {
                let (service, position) = (stored.goal.service.as_str(), stored.goal.position);
                let json = serde_json::to_vec(stored).expect("a stored goal is plain data");
                current.insert(service, json.as_slice())?;
                past.insert((service, position.epoch.0, position.generation.0), json.as_slice())?;
                let spent: Vec<_> = past
                    .range(whole(service))?
                    .rev()
                    .skip(HISTORY)
                    .map(|entry| entry.map(|(key, _)| (key.value().1, key.value().2)))
                    .collect::<Result<_, _>>()?;
                for (epoch, generation) in spent {
                    past.remove((service, epoch, generation))?;
                }
            }
            let mut meta = transaction.open_table(META)?;
            meta.insert("revision", next.revision().0)?;
            meta.insert("compacted", next.compacted().0)?;
            Ok(())
        })
    }

    /// The newest goals of a service, greatest position first.
    pub(super) fn history(&self, service: &ServiceName, limit: usize) -> Result<Vec<Stored>, BackendError> {
        let read = || -> Result<Vec<Vec<u8>>, ::redb::Error> {
            let table = self.database.begin_read()?.open_table(PAST)?;
            let newest = table.range(whole(service.as_str()))?.rev().take(limit);
            newest.map(|entry| Ok(entry?.1.value().to_vec())).collect()
        };
        let goals = read().map_err(|source| self.fault(source))?;
        goals.iter().map(|json| self.parse(service.as_str(), json)).collect()
    }

    /// Gives a new file its tables, and refuses one of another format.
    fn begin(&self) -> Result<(), BackendError> {
        let found = || -> Result<(Option<u64>, usize), ::redb::Error> {
            let transaction = self.database.begin_read()?;
            let tables: Vec<_> = transaction.list_tables()?.map(|table| table.name().to_owned()).collect();
            if !tables.iter().any(|name| name == META.name()) {
                return Ok((None, tables.len()));
            }
            let format = transaction.open_table(META)?.get("format")?.map(|format| format.value());
            Ok((format, tables.len()))
        };
        match found().map_err(|source| self.fault(source))? {
            (Some(FORMAT), _) => Ok(()),
            (Some(found), _) => Err(Fault::Format { path: self.path.clone(), found }.into()),
            (None, 1..) => Err(Fault::Foreign(self.path.clone()).into()),
            (None, 0) => self.transact(|transaction| {
                transaction.open_table(GOALS)?;
                transaction.open_table(PAST)?;
                transaction.open_table(META)?.insert("format", FORMAT)?;
                Ok(())
            }),
        }
    }

    fn load(&self) -> Result<Index, BackendError> {
        type Rows = Vec<(String, Vec<u8>)>;
        let read = || -> Result<(u64, u64, Rows), ::redb::Error> {
            let transaction = self.database.begin_read()?;
            let meta = transaction.open_table(META)?;
            let number = |key| Ok::<_, ::redb::Error>(meta.get(key)?.map_or(0, |value| value.value()));
            let (revision, compacted) = (number("revision")?, number("compacted")?);
            let goals = transaction.open_table(GOALS)?;
            let rows = goals.iter()?.map(|entry| {
                let (service, json) = entry?;
                Ok::<_, ::redb::Error>((service.value().to_owned(), json.value().to_vec()))
            });
            Ok((revision, compacted, rows.collect::<Result<_, _>>()?))
        };
        let (revision, compacted, rows) = read().map_err(|source| self.fault(source))?;
        let mut index = Index::restore(Revision(revision), Revision(compacted));
        for (service, json) in rows {
            index.apply(self.parse(&service, &json)?);
        }
        Ok(index)
    }

    fn transact(
        &self,
        write: impl FnOnce(&::redb::WriteTransaction) -> Result<(), ::redb::Error>,
    ) -> Result<(), BackendError> {
        let commit = || -> Result<(), ::redb::Error> {
            let mut transaction = self.database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            write(&transaction)?;
            Ok(transaction.commit()?)
        };
        commit().map_err(|source| self.fault(source))
    }

    fn parse(&self, service: &str, json: &[u8]) -> Result<Stored, BackendError> {
        serde_json::from_slice(json)
            .map_err(|source| Fault::Goal { path: self.path.clone(), service: service.to_owned(), source }.into())
    }

    fn fault(&self, source: ::redb::Error) -> BackendError {
        Fault::Redb { path: self.path.clone(), source }.into()
    }
}

pub(super) fn builder() -> Builder {
    let mut builder = Database::builder();
    // The file is small, and a plain open trusts bytes that were changed since and may panic on them later.
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    builder
}

fn create(path: &Path) -> Result<Database, BackendError> {
    let fault = |source: ::redb::Error| Fault::Redb { path: path.to_owned(), source };
    if !path.exists() {
        create_whole(path).map_err(fault)?;
    }
    let database = builder().create(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => Fault::Busy(path.to_owned()),
        DatabaseError::Storage(StorageError::Corrupted(what)) => fault(::redb::Error::Corrupted(what)),
        other => fault(other.into()),
    })?;
    // A new file is durable only when its folder is.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| fault(::redb::Error::Io(error)))?;
    Ok(database)
}

/// Makes a file that has its name only when it is whole. One that a crash left half made under its name would be no redb file, and refused
/// at each start from then on; under another name it is in nobody's way.
fn create_whole(path: &Path) -> Result<(), ::redb::Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{:016x}.new", fastrand::u64(..)));
    let new = PathBuf::from(name);
    drop(builder().create(&new)?);
    File::open(&new)?.sync_all()?;
    // A link and no renaming: what another process has made meanwhile stays.
    let linked = std::fs::hard_link(&new, path);
    std::fs::remove_file(&new)?;
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(()),
    }
}

fn whole(service: &str) -> std::ops::RangeInclusive<(&str, u64, u64)> {
    (service, 0, 0)..=(service, u64::MAX, u64::MAX)
}
