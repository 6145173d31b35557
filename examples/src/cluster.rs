//! The reference cluster, in reading order: what is asked for, where it lies on disk, the roles, who keeps them alive, and the
//! road that the main command takes.

pub mod cli;

pub mod config;
pub mod layout;

pub mod api;
mod backends;
pub mod client;
mod notify;
pub mod roles;

pub mod fixture;
pub mod supervisor;

mod progress;
pub mod report;
pub mod scenario;

mod check;
mod commands;
mod run;
mod whole;

pub use run::main;
