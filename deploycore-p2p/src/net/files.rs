//! Where artifacts lie on a machine: one file, written piece by piece, verified before it is written.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use deploycore::model::Manifest;
use tokio::sync::Semaphore;

use super::buffers::Buffer;
use super::outgoing::{BlockSource, Broken};
use crate::core::bitfield::Bitfield;
use crate::core::shape::Shape;

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// To write what is missing. It is made if it is not there.
    Fetch,
    /// To read. It must be there.
    Seed,
}

/// What became of a piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Whether it verified; if so it is written.
    pub verified: bool,
    /// The hash of each block, when it did not verify or when they were asked for.
    pub blocks: Vec<[u8; 32]>,
}

/// The disk of a machine.
#[async_trait]
pub trait Files: Send + Sync + Debug + 'static {
    /// Opens the file of an artifact. A file to seed that has not the artifact's length is `InvalidData`.
    async fn open(&self, manifest: Arc<Manifest>, path: &Path, open: Open) -> io::Result<Arc<dyn PieceFile>>;
}

/// The file of one artifact. Calls may overlap.
#[async_trait]
pub trait PieceFile: Send + Sync + Debug + 'static {
    /// Reads what may be there and gives the pieces that verify.
    async fn verify(&self) -> io::Result<Bitfield>;

    /// Verifies a piece that came as blocks and, if it is good, writes it. Not durable before `checkpoint`.
    async fn store(&self, piece: u32, blocks: Vec<Bytes>, hash_blocks: bool) -> io::Result<Stored>;

    /// Reads bytes of verified pieces.
    async fn read(&self, offset: u64, len: u32) -> io::Result<Bytes>;

    /// Makes what is written durable, and after it the note of which pieces these are: the note never names a piece that a loss of
    /// power could still take. There is no note any more once `finish` has begun.
    async fn checkpoint(&self, have: &Bitfield) -> io::Result<()>;

    /// Makes the whole file durable and removes the note beside it.
    async fn finish(&self) -> io::Result<()>;
}

#[async_trait]
impl BlockSource for Arc<dyn PieceFile> {
    async fn read_block(&self, offset: u64, len: u32) -> Result<Bytes, Broken> {
        self.read(offset, len).await.map_err(|error| Broken { error, unread: false })
    }
}

/// Checks a piece and hashes its blocks where that is wanted.
pub(super) fn check(manifest: &Manifest, piece: u32, blocks: &[Bytes], hash_blocks: bool) -> Stored {
    let verified = manifest.check_piece(piece).is_some_and(|mut check| {
        for block in blocks {
            check.update(block);
        }
        check.holds()
    });
    let hashes = if hash_blocks || !verified {
        blocks.iter().map(|block| *blake3::hash(block).as_bytes()).collect()
    } else {
        Vec::new()
    };
    Stored { verified, blocks: hashes }
}

/// Real files. Hashing and disk access run on tokio's blocking threads, a bounded number at a time.
#[derive(Debug, Clone)]
pub struct DiskFiles {
    threads: Arc<Semaphore>,
}

impl Default for DiskFiles {
    /// Two threads a core, at least four: some hash while others wait for the disk.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self { threads: Arc::new(Semaphore::new((2 * cores).max(4))) }
    }
}

#[derive(Debug)]
struct DiskFile {
    /// Read only: a program that anybody holds open for writing cannot be started.
    file: Arc<File>,
    /// Open for writing until the file is finished. Notes are written while it is held: none comes after the last is removed.
    writer: Arc<Mutex<Option<Arc<File>>>>,
    path: PathBuf,
    manifest: Arc<Manifest>,
    shape: Shape,
    threads: Arc<Semaphore>,
    open: Open,
}

/// Runs a closure on a blocking thread. When the future is dropped the closure still ends by itself.
async fn blocking<T: Send + 'static>(
    threads: &Arc<Semaphore>,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let permit = Arc::clone(threads).acquire_owned().await.map_err(io::Error::other)?;
    let joined = tokio::task::spawn_blocking(move || {
        let result = work();
        drop(permit);
        result
    });
    joined.await.map_err(io::Error::other)?
}

#[async_trait]
impl Files for DiskFiles {
    async fn open(&self, manifest: Arc<Manifest>, path: &Path, open: Open) -> io::Result<Arc<dyn PieceFile>> {
        let (path, threads) = (path.to_owned(), Arc::clone(&self.threads));
        let own = Arc::clone(&threads);
        blocking(&own, move || {
            let shape = Shape::of(&manifest);
            let writer = match open {
                Open::Seed => None,
                Open::Fetch => Some(Arc::new(prepare(&path, &shape)?)),
            };
            let (file, writer) = (Arc::new(File::open(&path)?), Arc::new(Mutex::new(writer)));
            let (len, size) = (file.metadata()?.len(), shape.size());
            if len != size {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{len} bytes instead of {size}")));
            }
            let file = DiskFile { file, writer, path, manifest, shape, threads, open };
            Ok(Arc::new(file) as Arc<dyn PieceFile>)
        })
        .await
    }
}

/// Opens the destination at its full size. A note that nothing is verified yet lies beside it before it has that size, so that
/// a later fetch can tell it from a whole file.
fn prepare(path: &Path, shape: &Shape) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    if file.metadata()?.len() != shape.size() {
        if read_note(path, shape).is_none() {
            write_note(path, shape, &Bitfield::new(shape.pieces()))?;
        }
        file.set_len(shape.size())?;
        if shape.size() > 0 {
            // Where the file system can, the space is taken now: a full disk shows before the first byte is fetched.
            let flags = rustix::fs::FallocateFlags::empty();
            if let Err(rustix::io::Errno::NOSPC) = rustix::fs::fallocate(&file, flags, 0, shape.size()) {
                file.set_len(0)?;
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
    }
    Ok(file)
}

#[async_trait]
impl PieceFile for DiskFile {
    async fn verify(&self) -> io::Result<Bitfield> {
        let (file, manifest, shape) = (Arc::clone(&self.file), Arc::clone(&self.manifest), self.shape);
        let note = match self.open {
            Open::Seed => None,
            Open::Fetch => read_note(&self.path, &shape),
        };
        let candidates = match note {
            None => Bitfield::full(shape.pieces()),
            // What was written since the note is there too, unless the power was lost.
            Some(noted) => {
                let file = Arc::clone(&file);
                blocking(&self.threads, move || written(&file, &shape, noted)).await?
            }
        };
        // A piece at a time, so that a long verification leaves threads to others.
        let mut have = Bitfield::new(shape.pieces());
        for piece in candidates.iter() {
            let (file, manifest) = (Arc::clone(&file), Arc::clone(&manifest));
            let good = blocking(&self.threads, move || {
                let mut bytes = vec![0; shape.piece_len(piece) as usize];
                match file.read_exact_at(&mut bytes, shape.offset(piece, 0)) {
                    Ok(()) => Ok(manifest.verify_piece(piece, &bytes)),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
                    Err(error) => Err(error),
                }
            });
            if good.await? {
                have.insert(piece);
            }
        }
        Ok(have)
    }

    async fn store(&self, piece: u32, blocks: Vec<Bytes>, hash_blocks: bool) -> io::Result<Stored> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let file = writer.ok_or_else(|| io::Error::other("the file is finished, or open for reading only"))?;
        let (manifest, shape) = (Arc::clone(&self.manifest), self.shape);
        blocking(&self.threads, move || {
            let stored = check(&manifest, piece, &blocks, hash_blocks);
            if stored.verified {
                let mut offset = shape.offset(piece, 0);
                for block in &blocks {
                    file.write_all_at(block, offset)?;
                    offset += block.len() as u64;
                }
            }
            Ok(stored)
        })
        .await
    }

    async fn read(&self, offset: u64, len: u32) -> io::Result<Bytes> {
        let file = Arc::clone(&self.file);
        blocking(&self.threads, move || Buffer::filled(len as usize, |bytes| file.read_exact_at(bytes, offset))).await
    }

    async fn checkpoint(&self, have: &Bitfield) -> io::Result<()> {
        let (file, path, shape, have) = (Arc::clone(&self.file), self.path.clone(), self.shape, have.clone());
        let writer = Arc::clone(&self.writer);
        blocking(&self.threads, move || {
            file.sync_data()?;
            let writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            if writer.is_some() { write_note(&path, &shape, &have) } else { Ok(()) }
        })
        .await
    }

    async fn finish(&self) -> io::Result<()> {
        if self.open == Open::Seed {
            return Ok(());
        }
        let (file, writer, path) = (Arc::clone(&self.file), Arc::clone(&self.writer), self.path.clone());
        blocking(&self.threads, move || {
            drop(writer.lock().unwrap_or_else(PoisonError::into_inner).take());
            file.sync_all()?;
            match fs::remove_file(note_path(&path)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            sync_folder(&path)
        })
        .await
    }
}

/// Adds the pieces that may have been written to those that were noted: all that do not begin in a hole of the file.
fn written(file: &File, shape: &Shape, mut pieces: Bitfield) -> io::Result<Bitfield> {
    use rustix::fs::{SeekFrom, seek};
    let mut piece = 0;
    while piece < shape.pieces() {
        let at = shape.offset(piece, 0);
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            // This file system knows no holes.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => return Ok(Bitfield::full(shape.pieces())),
            Err(error) => return Err(error.into()),
        };
        while piece < shape.pieces() && shape.offset(piece, 0) + shape.piece_len(piece) <= data {
            piece += 1;
        }
        if piece < shape.pieces() {
            pieces.insert(piece);
            piece += 1;
        }
    }
    Ok(pieces)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn note_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pieces");
    name.into()
}

const NOTE: &[u8; 16] = b"deploycore-note1";

/// The note: its kind, the artifact's digest, the set of pieces, and a hash over all that.
fn write_note(path: &Path, shape: &Shape, have: &Bitfield) -> io::Result<()> {
    let mut bytes = [&NOTE[..], shape.digest().as_bytes(), &have.to_bytes()].concat();
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    let note = note_path(path);
    let mut fresh = note.as_os_str().to_owned();
    fresh.push(".new");
    let mut file = File::create(&fresh)?;
    file.write_all(&bytes)?;
    file.sync_data()?;
    fs::rename(&fresh, &note)
}

/// The pieces that a note beside the file names; of another artifact's note, none; `None` without a note.
fn read_note(path: &Path, shape: &Shape) -> Option<Bitfield> {
    let bytes = fs::read(note_path(path)).ok()?;
    let named = || {
        let (body, hash) = bytes.split_last_chunk::<32>()?;
        let bits = body.strip_prefix(&NOTE[..])?.strip_prefix(shape.digest().as_bytes())?;
        let intact = blake3::hash(body).as_bytes() == hash;
        Bitfield::from_bytes(bits, shape.pieces()).filter(|_| intact)
    };
    Some(named().unwrap_or_else(|| Bitfield::new(shape.pieces())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A file that somebody holds open for writing cannot be executed (`ETXTBSY`), and nodes go on serving what machines run.
    #[tokio::test]
    async fn a_fetched_program_starts_while_it_is_served() {
        let program = Bytes::from_static(b"#!/bin/sh\nexit 7\n");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        let manifest = Arc::new(Manifest::of(&program));
        let file = DiskFiles::default().open(manifest, &path, Open::Fetch).await.unwrap();
        assert!(file.store(0, vec![program.clone()], false).await.unwrap().verified);
        file.finish().await.unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let status = std::process::Command::new(&path).status().unwrap();
        assert_eq!(status.code(), Some(7));
        assert_eq!(file.read(0, program.len() as u32).await.unwrap(), program);
        file.checkpoint(&Bitfield::full(1)).await.unwrap();
        assert!(!note_path(&path).exists(), "a note of what is finished, by one that was late");
    }
}
