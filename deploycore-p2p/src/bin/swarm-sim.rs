//! A swarm in virtual time: see `docs/swarm-sim.md`.

use std::process::ExitCode;

fn main() -> ExitCode {
    deploycore_p2p::sim::command::main()
}
