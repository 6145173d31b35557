//! The reference cluster as a user meets it: real processes, real signals, real mistakes on the command line.

#[path = "cluster/bed.rs"]
mod bed;

#[path = "cluster/apart.rs"]
mod apart;
#[path = "cluster/hosts.rs"]
mod hosts;
#[path = "cluster/kills.rs"]
mod kills;
#[path = "cluster/mistakes.rs"]
mod mistakes;
#[path = "cluster/own.rs"]
mod own;
#[path = "cluster/road.rs"]
mod road;
#[path = "cluster/shipped.rs"]
mod shipped;
#[path = "cluster/servers.rs"]
mod with_servers;
