//! The reference cluster, in reading order: what is asked for, where it lies on disk, the roles, who keeps them alive, and the
//! road that the main command takes.

pub mod cli;

pub mod config;
pub mod layout;

pub mod api;
pub mod client;
pub mod roles;

pub mod fixture;
pub mod supervisor;

mod progress;
pub mod report;
pub mod scenario;

mod commands;
mod run;

pub use run::main;
