//! The file that is distributed.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cli::{Bytes, Cli};

/// The file and its hash.
#[derive(Debug)]
pub(crate) struct Payload {
    pub(crate) path: PathBuf,
    digest: blake3::Hash,
}

pub(crate) fn make(folder: &Path, cli: &Cli) -> Result<Payload> {
    let folder = folder.join("store");
    std::fs::create_dir(&folder)?;
    let path = folder.join("payload");
    let size = cli.size.as_u64();
    match cli.bytes {
        Bytes::Random => random(&path, size),
        Bytes::Real => real(&path, size, &cli.real_from),
    }
    .with_context(|| path.display().to_string())?;
    let digest = hash(&path)?;
    Ok(Payload { path, digest })
}

impl Payload {
    /// Fails when the file at `path` is another.
    pub(crate) fn verify(&self, path: &Path) -> Result<()> {
        if hash(path)? == self.digest {
            return Ok(());
        }
        bail!("{} is not what was distributed", path.display())
    }
}

fn hash(path: &Path) -> Result<blake3::Hash> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file)?;
    Ok(hasher.finalize())
}

fn random(path: &Path, size: u64) -> Result<()> {
    let (mut random, mut left) = (fastrand::Rng::with_seed(size), size);
    let mut file = File::create_new(path)?;
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        let part = &mut buffer[..left.min(1 << 20) as usize];
        random.fill(part);
        file.write_all(part)?;
        left -= part.len() as u64;
    }
    Ok(())
}

/// One program or library after the other, in the order of their names, until there is enough.
fn real(path: &Path, size: u64, folders: &[PathBuf]) -> Result<()> {
    let mut file = BufWriter::new(File::create_new(path)?);
    let (mut left, mut open) = (size, folders.to_vec());
    open.reverse();
    while let Some(next) = open.pop() {
        let Ok(kind) = std::fs::symlink_metadata(&next) else { continue };
        if kind.is_dir() {
            let mut inner: Vec<PathBuf> =
                next.read_dir().into_iter().flatten().flatten().map(|entry| entry.path()).collect();
            inner.sort();
            open.extend(inner.into_iter().rev());
        } else if kind.is_file() && is_program(&next) {
            left -= std::io::copy(&mut File::open(&next)?.take(left), &mut file)?;
            if left == 0 {
                return Ok(file.flush()?);
            }
        }
    }
    bail!("the programs of {folders:?} are {left} bytes too few: name more folders with --real-from");
}

fn is_program(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_bytes_are_programs_in_order_and_enough_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("programs/b")).unwrap();
        std::fs::write(at("programs/a"), b"\x7fELFa").unwrap();
        std::fs::write(at("programs/b/c"), b"\x7fELFc").unwrap();
        std::fs::write(at("programs/text"), b"no program").unwrap();
        real(&at("out"), 8, &[at("programs")]).unwrap();
        assert_eq!(std::fs::read(at("out")).unwrap(), b"\x7fELFa\x7fEL");
        let error = real(&at("more"), 11, &[at("programs")]).unwrap_err().to_string();
        assert!(error.contains("1 bytes too few"), "{error}");
    }

    #[test]
    fn another_file_does_not_verify() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("a"), folder.path().join("b"));
        random(&path, 3_000_000).unwrap();
        let payload = Payload { digest: hash(&path).unwrap(), path: path.clone() };
        let mut bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 3_000_000);
        std::fs::write(&other, &bytes).unwrap();
        payload.verify(&other).unwrap();
        bytes[2_999_999] ^= 1;
        std::fs::write(&other, &bytes).unwrap();
        payload.verify(&other).unwrap_err();
    }
}
