//! Databases on a server of our own.

use anyhow::{Result, bail};
use servers::postgres::Postgres;

/// Makes an empty database that stays as long as the server; its URL.
///
/// Errors: of `createdb`.
pub fn create(server: &Postgres, name: &str) -> Result<String> {
    let status = server.program("createdb", "postgres").args(["--template=template0", name]).status()?;
    if !status.success() {
        bail!("createdb {name}: {status}");
    }
    Ok(server.url(name))
}
