//! A swarm in virtual time: see `docs/swarm-sim.md`.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    deploycore_p2p::sim::command::main()
}
