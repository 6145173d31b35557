//! Files that are there whole or not at all.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};

/// Files of this prefix are being written, or were when their writer died.
pub(crate) const UNFINISHED: &str = ".unfinished-";

/// Writes a file so that after a crash it is the old or the new one.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = unfinished(path)?;
        std::io::Write::write_all(&mut file, bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(folder_of(path))?.sync_all()
    };
    write().with_context(|| format!("{} could not be written", path.display()))
}

/// Fails where [`write_atomic`] would fail for its folder, so that it is told before the work and not after it.
pub fn check_writable(path: &Path) -> Result<()> {
    unfinished(path).map(drop).with_context(|| format!("{} cannot be written", path.display()))
}

pub(crate) fn unfinished(path: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    tempfile::Builder::new().prefix(UNFINISHED).permissions(permissions).tempfile_in(folder_of(path))
}

/// A bare file name has an empty parent: the working folder.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Gives a finished file its name, so that after a crash it stands under the new one.
pub(crate) fn place(finished: &Path, name: &Path) -> std::io::Result<()> {
    std::fs::rename(finished, name)?;
    File::open(folder_of(name))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_beside_the_target_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("r.tmp"), "mine").unwrap();
        write_atomic(&folder.path().join("r.json"), b"{}").unwrap();
        assert_eq!(fs::read(folder.path().join("r.tmp")).unwrap(), b"mine");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_bare_file_name_is_written_to_the_working_folder() {
        let name = format!("files-{}.json", std::process::id());
        let written = write_atomic(Path::new(&name), b"{}");
        let read = fs::read(&name);
        let _ = fs::remove_file(&name);
        written.unwrap();
        assert_eq!(read.unwrap(), b"{}");
    }
}
