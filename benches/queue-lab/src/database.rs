//! Databases on a server of our own.

use anyhow::{Result, bail};
use servers::postgres::Postgres;

/// Makes an empty database that stays as long as the server, or until it is [`drop`]ped; its URL.
///
/// Errors: of `createdb`.
pub fn create(server: &Postgres, name: &str) -> Result<String> {
    run(server, "createdb", &["--template=template0", name])?;
    Ok(server.url(name))
}

/// Removes a database, whoever is connected to it. What was written until now is on disk then.
///
/// Errors: of `dropdb`.
pub fn drop(server: &Postgres, name: &str) -> Result<()> {
    run(server, "dropdb", &["--force", name])
}

fn run(server: &Postgres, program: &str, arguments: &[&str]) -> Result<()> {
    let status = server.program(program, "postgres").args(arguments).status()?;
    if !status.success() {
        bail!("{program} {}: {status}", arguments.join(" "));
    }
    Ok(())
}
