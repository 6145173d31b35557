//! Clients as processes of their own that are killed and stopped, and the proof that the queue kept its contract.

pub mod client;
mod clients;
mod database;
mod run;

pub use self::database::Target;
pub use self::run::{Report, Settings, run};
