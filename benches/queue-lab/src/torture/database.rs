//! The database under fire.

use std::time::Duration;

use anyhow::Result;
use servers::postgres::Postgres;

use crate::database::create;

/// Where the queue is.
#[derive(Debug)]
pub enum Target {
    /// Somebody's database, which is left alone.
    Url(String),
    /// A server of our own, which is killed and started again too.
    Server(Box<Postgres>, String),
}

impl Target {
    /// A database on a server of our own.
    ///
    /// Errors: as of making a database.
    pub fn server(server: Postgres) -> Result<Self> {
        let url = create(&server, "torture")?;
        Ok(Self::Server(Box::new(server), url))
    }

    /// Of the queue.
    pub fn url(&self) -> &str {
        match self {
            Self::Url(url) | Self::Server(_, url) => url,
        }
    }

    /// Kills the server and starts it again after a while; whether there is one to kill.
    pub(super) fn kill(&mut self, down: Duration) -> Result<bool> {
        let Self::Server(server, _) = self else { return Ok(false) };
        server.kill();
        std::thread::sleep(down);
        server.start_again()?;
        Ok(true)
    }
}
