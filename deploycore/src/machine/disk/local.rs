//! The disk of a real machine: one data folder.
//!
//! ```text
//! version                      the layout's version
//! lock                         held by the agent
//! blobs/<digest>               whole, verified, executable
//! blobs/<digest>.part          being fetched; afterwards a second name of the blob, from which the swarm goes on serving
//! blobs/<digest>.part.*        the swarm's own
//! blobs/<digest>.manifest      so that a blob is offered again without asking the region
//! services/<name>/journal      see `Journal`
//! services/<name>/current      ─► ../../blobs/<digest>
//! services/<name>/previous     ─► ../../blobs/<digest>
//! ```
//!
//! A file is replaced by writing a new one beside it, syncing it, renaming it, and syncing the folder.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytesize::ByteSize;
use rustix::fs::{AtFlags, CWD, FlockOperation, flock, linkat, statvfs};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Disk, Error, Loaded, Room};
use crate::machine::journal::{self, Journal, Links};
use crate::model::{ArtifactRef, Digest, Manifest, ManifestHasher, ServiceName};

#[cfg(test)]
mod tests;

const LAYOUT: u32 = 1;
const PART: &str = ".part";
const MANIFEST: &str = ".manifest";
/// Read at once when a blob is verified.
const BLOCK: usize = 1 << 20;
/// The largest journal that is read: some hundred builds with long run specifications.
const MAX_JOURNAL: u64 = 16 << 20;

/// How a data folder is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LocalDiskSettings {
    /// Bytes that a fetch leaves free; 64 MiB by default.
    pub keep_free: ByteSize,
}

impl Default for LocalDiskSettings {
    fn default() -> Self {
        Self { keep_free: ByteSize::mib(64) }
    }
}

/// A data folder, locked for this value's lifetime. It needs `/proc`.
#[derive(Debug)]
pub struct LocalDisk {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    settings: LocalDiskSettings,
    /// Artifacts under way with their size and the number of fetches.
    reserved: Mutex<HashMap<Digest, (u64, u32)>>,
    /// How often something was staged.
    staged: AtomicU64,
    _lock: File,
}

impl LocalDisk {
    /// Opens or makes a data folder. It does a few quick system calls and no more.
    ///
    /// Errors: `Version`, `InUse`, `Io`.
    pub fn open(root: impl Into<PathBuf>, settings: LocalDiskSettings) -> Result<Self, Error> {
        let root = root.into();
        for folder in [root.clone(), root.join("blobs"), root.join("services")] {
            make_folder(&folder).map_err(at(&folder))?;
        }
        // Links and processes outlive the agent, so their paths must not depend on its working folder.
        let root = root.canonicalize().map_err(at(&root))?;
        let lock_path = root.join("lock");
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path).map_err(at(&lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(error) if error == Errno::WOULDBLOCK => return Err(Error::InUse { path: root }),
            Err(error) => return Err(at(&lock_path)(error.into())),
        }
        check_version(&root)?;
        Ok(Self {
            inner: Arc::new(Inner {
                root,
                settings,
                reserved: Mutex::default(),
                staged: AtomicU64::new(0),
                _lock: lock,
            }),
        })
    }

    /// The data folder, as an absolute path.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = Arc::clone(&self.inner);
        let root = inner.root.clone();
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(result) => result,
            Err(error) => Err(at(&root)(io::Error::other(error))),
        }
    }
}

#[async_trait]
impl Disk for LocalDisk {
    async fn load(&self) -> Result<Loaded, Error> {
        self.blocking(Inner::load).await
    }

    async fn write_journal(&self, journal: &Journal) -> Result<(), Error> {
        let (service, bytes) = (journal.service.clone(), serde_json::to_vec_pretty(journal));
        self.blocking(move |inner| {
            let folder = inner.folder(&service);
            let bytes = bytes.map_err(|error| at(&folder)(error.into()))?;
            if !folder.is_dir() {
                fs::create_dir_all(&folder).map_err(at(&folder))?;
                sync_folder(&inner.root.join("services"))?;
            }
            replace(&folder, "journal", &bytes)
        })
        .await
    }

    async fn switch(&self, service: &ServiceName, links: Links) -> Result<(), Error> {
        let service = service.clone();
        self.blocking(move |inner| {
            if let Some(digest) = links.current.filter(|digest| !inner.blob(digest).is_file()) {
                return Err(Error::Missing { digest });
            }
            let folder = inner.folder(&service);
            link(&folder, "previous", links.previous)?;
            link(&folder, "current", links.current)?;
            sync_folder(&folder)
        })
        .await
    }

    async fn reserve(&self, artifact: &ArtifactRef) -> Result<Room, Error> {
        let (digest, size, inner) = (artifact.digest, artifact.size, Arc::clone(&self.inner));
        // Whoever asks may go away meanwhile: then the promise ends with the closure.
        let promised = self.blocking(move |this| {
            this.reserve(digest, size)?;
            Ok(Reservation { inner, digest })
        });
        Ok(Room::new(self.inner.part(&digest), promised.await?))
    }

    async fn stage(&self, manifest: &Manifest) -> Result<(), Error> {
        let manifest = manifest.clone();
        self.blocking(move |inner| inner.stage(&manifest)).await
    }

    async fn holds(&self, digest: &Digest) -> Result<bool, Error> {
        let digest = *digest;
        self.blocking(move |inner| Ok(inner.blob(&digest).is_file())).await
    }

    async fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, Error> {
        let digest = *digest;
        self.blocking(move |inner| {
            let path = inner.beside(&digest, MANIFEST);
            match fs::read(&path) {
                // It proves itself or it is not used.
                Ok(bytes) => Ok(serde_json::from_slice::<Manifest>(&bytes).ok().filter(|m| m.digest() == digest)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(at(&path)(error)),
            }
        })
        .await
    }

    async fn artifacts(&self) -> Result<BTreeSet<Digest>, Error> {
        self.blocking(|inner| Ok(inner.list()?.into_iter().map(|(digest, _)| digest).collect())).await
    }

    async fn remove(&self, digest: &Digest) -> Result<(), Error> {
        let digest = *digest;
        self.blocking(move |inner| {
            // The blob's own name goes first: what is left of a crash is a part or a manifest, never a blob that is not whole.
            let mut names: Vec<_> = inner.list()?.into_iter().filter(|(found, _)| *found == digest).collect();
            names.sort_by_key(|(_, name)| name.len());
            for (_, name) in names {
                let path = inner.blobs().join(name);
                fs::remove_file(&path).or_else(absent).map_err(at(&path))?;
            }
            sync_folder(&inner.blobs())
        })
        .await
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.inner.blob(digest)
    }

    fn folder(&self, service: &ServiceName) -> PathBuf {
        self.inner.folder(service)
    }
}

impl Inner {
    fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.to_string())
    }

    fn part(&self, digest: &Digest) -> PathBuf {
        self.beside(digest, PART)
    }

    fn beside(&self, digest: &Digest, suffix: &str) -> PathBuf {
        self.blobs().join(format!("{digest}{suffix}"))
    }

    fn folder(&self, service: &ServiceName) -> PathBuf {
        self.root.join("services").join(service.as_str())
    }

    /// All files that belong to artifacts, by digest.
    fn list(&self) -> Result<Vec<(Digest, String)>, Error> {
        let folder = self.blobs();
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder).map_err(at(&folder))? {
            let name = entry.map_err(at(&folder))?.file_name().to_string_lossy().into_owned();
            if let Some(digest) = name.get(..64).and_then(|hex| hex.parse().ok()) {
                found.push((digest, name));
            }
        }
        Ok(found)
    }

    fn load(&self) -> Result<Loaded, Error> {
        let mut loaded = Loaded::default();
        for (digest, name) in self.list()? {
            if name.len() == 64 {
                loaded.blobs.insert(digest);
                // No swarm of this agent serves from it yet, and the blob holds the bytes.
                let part = self.part(&digest);
                fs::remove_file(&part).or_else(absent).map_err(at(&part))?;
            }
        }
        for journal in journals(&self.root)? {
            let journal = journal?;
            let folder = self.folder(&journal.service);
            let links = Links { current: linked(&folder, "current")?, previous: linked(&folder, "previous")? };
            loaded.services.push((journal, links));
        }
        Ok(loaded)
    }

    fn reserve(&self, digest: Digest, size: u64) -> Result<(), Error> {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = |digest: &Digest, size: u64| {
            let written = fs::metadata(self.part(digest)).map_or(0, |part| part.blocks() * 512);
            size.saturating_sub(written)
        };
        let promised: u64 = reserved
            .iter()
            .filter(|(other, _)| **other != digest)
            .map(|(other, (size, _))| missing(other, *size))
            .sum();
        let folder = self.blobs();
        let stat = statvfs(&folder).map_err(|error| at(&folder)(error.into()))?;
        let unused = promised.saturating_add(self.settings.keep_free.as_u64());
        let free = (stat.f_bavail * stat.f_frsize).saturating_sub(unused);
        let needed = missing(&digest, size);
        if needed > free {
            return Err(Error::NoSpace { digest, path: folder, needed, free });
        }
        reserved.entry(digest).or_insert((size, 0)).1 += 1;
        Ok(())
    }

    fn stage(&self, manifest: &Manifest) -> Result<(), Error> {
        if self.blob(&manifest.digest()).is_file() {
            return Ok(());
        }
        let file = self.verified(manifest)?;
        self.name(&file, manifest)
    }

    /// The fetched file, once its bytes are the artifact.
    fn verified(&self, manifest: &Manifest) -> Result<File, Error> {
        let digest = manifest.digest();
        let part = self.part(&digest);
        let file = match File::open(&part) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::Missing { digest }),
            other => other.map_err(at(&part))?,
        };
        verify(&file, manifest).map_err(at(&part))??;
        Ok(file)
    }

    /// Names a verified file as a blob: that very file, not what its name stands for by now. A fetch that is cancelled does not end the
    /// reading of what it brought, and a later one of the same bytes may have begun since.
    fn name(&self, file: &File, manifest: &Manifest) -> Result<(), Error> {
        let digest = manifest.digest();
        let (part, blob, folder) = (self.part(&digest), self.blob(&digest), self.blobs());
        file.set_permissions(Permissions::from_mode(0o755)).map_err(at(&part))?;
        file.sync_all().map_err(at(&part))?;
        let bytes = serde_json::to_vec(manifest).map_err(|error| at(&part)(error.into()))?;
        // Another service may stage the same bytes now: each writes to a name of its own.
        let fresh = format!("{digest}{MANIFEST}.{}.new", self.staged.fetch_add(1, Ordering::Relaxed));
        replace_by(&folder, &format!("{digest}{MANIFEST}"), &fresh, &bytes)?;
        let open_file = format!("/proc/self/fd/{}", file.as_raw_fd());
        match linkat(CWD, open_file, CWD, &blob, AtFlags::SYMLINK_FOLLOW) {
            // Another service staged the same bytes.
            Err(Errno::EXIST) => {}
            // A file that has no name any more gets no other.
            Err(Errno::NOENT) => return Err(Error::Missing { digest }),
            other => other.map_err(|error| at(&blob)(error.into()))?,
        }
        sync_folder(&folder)
    }
}

struct Reservation {
    inner: Arc<Inner>,
    digest: Digest,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut reserved = self.inner.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, fetches)) = reserved.get_mut(&self.digest) {
            *fetches -= 1;
            if *fetches == 0 {
                reserved.remove(&self.digest);
            }
        }
    }
}

/// Each journal under a data folder, whether or not an agent holds the folder.
pub(in crate::machine) fn journals(root: &Path) -> Result<Vec<Result<Journal, Error>>, Error> {
    let folder = root.join("services");
    let mut journals = Vec::new();
    for entry in fs::read_dir(&folder).map_err(at(&folder))? {
        let path = entry.map_err(at(&folder))?.path().join("journal");
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(MAX_JOURNAL).read_to_end(&mut bytes)) {
            Ok(_) => journals.push(parse(&bytes).map_err(|detail| Error::Journal { path: path.clone(), detail })),
            // A crash between the folder and its journal, or a file that is not ours.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => journals.push(Err(at(&path)(error))),
        }
    }
    Ok(journals)
}

fn parse(bytes: &[u8]) -> Result<Journal, String> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if version != journal::VERSION {
        return Err(format!("it has version {version}, this program reads version {}", journal::VERSION));
    }
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

fn check_version(root: &Path) -> Result<(), Error> {
    let path = root.join("version");
    match fs::read_to_string(&path) {
        Ok(text) if text.trim() == LAYOUT.to_string() => Ok(()),
        Ok(text) => {
            let found = text.trim().chars().take(40).collect();
            Err(Error::Version { path: root.to_owned(), found, wanted: LAYOUT })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            replace(root, "version", format!("{LAYOUT}\n").as_bytes())
        }
        Err(error) => Err(at(&path)(error)),
    }
}

fn verify(mut file: &File, manifest: &Manifest) -> io::Result<Result<(), Error>> {
    let corrupt = |detail| Ok(Err(Error::Corrupt { digest: manifest.digest(), detail }));
    let size = file.metadata()?.len();
    if size != manifest.size() {
        return corrupt(format!("{size} bytes instead of {}", manifest.size()));
    }
    let (mut hasher, mut block) = (ManifestHasher::new(), vec![0; BLOCK]);
    loop {
        match file.read(&mut block) {
            Ok(0) => break,
            Ok(read) => hasher.update(&block[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let found = hasher.finish().digest();
    if found == manifest.digest() { Ok(Ok(())) } else { corrupt(format!("they hash to {found}")) }
}

fn replace(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    replace_by(folder, name, &format!("{name}.new"), bytes)
}

fn replace_by(folder: &Path, name: &str, fresh: &str, bytes: &[u8]) -> Result<(), Error> {
    let (fresh, path) = (folder.join(fresh), folder.join(name));
    let mut file = File::create(&fresh).map_err(at(&fresh))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(at(&fresh))?;
    fs::rename(&fresh, &path).map_err(at(&path))?;
    sync_folder(folder)
}

fn link(folder: &Path, name: &str, to: Option<Digest>) -> Result<(), Error> {
    let (fresh, path) = (folder.join(format!("{name}.new")), folder.join(name));
    let Some(digest) = to else {
        return fs::remove_file(&path).or_else(absent).map_err(at(&path));
    };
    fs::remove_file(&fresh).or_else(absent).map_err(at(&fresh))?;
    symlink(format!("../../blobs/{digest}"), &fresh).map_err(at(&fresh))?;
    fs::rename(&fresh, &path).map_err(at(&path))
}

fn linked(folder: &Path, name: &str) -> Result<Option<Digest>, Error> {
    let path = folder.join(name);
    match fs::read_link(&path) {
        Ok(to) => Ok(to.file_name().and_then(|name| name.to_str()).and_then(|hex| hex.parse().ok())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(&path)(error)),
    }
}

/// Makes a folder whose name outlives a loss of power: what is synced in a folder that is gone is gone too.
fn make_folder(folder: &Path) -> io::Result<()> {
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        make_folder(parent)?;
    }
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        made => made?,
    }
    match File::open(parent) {
        // A folder of somebody else's, which was there before.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        opened => opened?.sync_all(),
    }
}

fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder))
}

fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    |source| Error::Io { path, source }
}
