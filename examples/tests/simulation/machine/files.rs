//! Files in memory, of all hosts of a world.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use deploycore::memory::Files;

type Inode = Arc<Mutex<Vec<u8>>>;

/// A file system. Clones share it. A file may have two names.
#[derive(Debug, Clone, Default)]
pub struct VirtualFiles(Arc<Mutex<BTreeMap<PathBuf, Inode>>>);

impl VirtualFiles {
    /// All bytes of a file.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        Some(self.inode(path)?.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Gives a file a second name.
    pub fn link(&self, from: &Path, to: &Path) -> bool {
        let inode = self.inode(from);
        let found = inode.is_some();
        self.lock().extend(inode.map(|inode| (to.to_owned(), inode)));
        found
    }

    /// Takes a name away.
    pub fn remove(&self, path: &Path) {
        self.lock().remove(path);
    }

    /// The names below a folder.
    pub fn below(&self, folder: &Path) -> Vec<PathBuf> {
        self.lock().keys().filter(|path| path.starts_with(folder)).cloned().collect()
    }

    fn inode(&self, path: &Path) -> Option<Inode> {
        self.lock().get(path).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Inode>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, path: &Path, work: impl FnOnce(&mut Vec<u8>) -> io::Result<T>) -> io::Result<T> {
        let inode = self.inode(path).ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = inode.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut bytes)
    }
}

impl Files for VirtualFiles {
    fn read(&self, path: &Path, range: Range<u64>) -> io::Result<Vec<u8>> {
        let range = range.start as usize..range.end as usize;
        self.with(path, |bytes| Ok(bytes.get(range).ok_or(io::ErrorKind::UnexpectedEof)?.to_vec()))
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        self.with(path, |bytes| Ok(bytes.len() as u64))
    }

    fn write(&self, path: &Path, offset: u64, new: &[u8]) -> io::Result<()> {
        self.lock().entry(path.to_owned()).or_default();
        self.with(path, |bytes| {
            let (start, end) = (offset as usize, offset as usize + new.len());
            bytes.resize(bytes.len().max(end), 0);
            bytes[start..end].copy_from_slice(new);
            Ok(())
        })
    }

    fn finish(&self, path: &Path, len: u64) -> io::Result<()> {
        self.lock().entry(path.to_owned()).or_default();
        self.with(path, |bytes| {
            bytes.resize(len as usize, 0);
            Ok(())
        })
    }
}
