//! Programs that no package of Debian holds: `scripts/test` installs them into a folder of the user's cache.

use std::path::PathBuf;

use crate::Error;

/// Names that folder where it is another.
const VARIABLE: &str = "DEPLOYCORE_TEST_TOOLS";

/// The program at `path` of the tool `name`.
pub(crate) fn find(name: &str, path: &str) -> Result<PathBuf, Error> {
    let folder = folder().join(name);
    let program = folder.join(path);
    if program.exists() { Ok(program) } else { Err(Error::NotInstalled { program: name.to_owned(), folder }) }
}

fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os(VARIABLE) {
        return folder.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    cache.unwrap_or_else(home).join("deploycore-test-tools")
}
