//! The reference cluster as a user meets it: real processes, real signals, real mistakes on the command line.

#[path = "cluster/bed.rs"]
mod bed;

#[path = "cluster/kills.rs"]
mod kills;
#[path = "cluster/mistakes.rs"]
mod mistakes;
#[path = "cluster/own.rs"]
mod own;
#[path = "cluster/road.rs"]
mod road;
#[path = "cluster/servers.rs"]
mod with_servers;
