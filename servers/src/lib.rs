//! Real servers for tests: each a process on free ports of loopback, with throw-away data in a temporary folder.
//!
//! A [`Process`] is killed when it is dropped, and also when the test process dies, however it dies; a [`Folder`] is removed then too. A
//! server that does not start gives its log. What a server is started with is in a module of its own: [`etcd`], [`mariadb`],
//! [`postgres`], [`s3`], [`gcs`], [`azure`].
//!
//! ```no_run
//! let server = servers::postgres::Postgres::start(&servers::postgres::Options::default())?;
//! let database = server.create_database()?;
//! println!("{}", database.url());
//! # Ok::<_, servers::Error>(())
//! ```

#![warn(missing_docs)]

mod error;
mod folder;
mod http;
mod network;
mod ports;
mod process;
mod tools;
mod user;

pub mod azure;
pub mod etcd;
pub mod gcs;
pub mod mariadb;
pub mod postgres;
pub mod s3;

pub use error::Error;
pub use folder::Folder;
pub use network::Network;
pub use ports::Port;
pub use process::{Launch, Process};
pub use rustix::process::Signal;
pub use user::User;
