//! `swarm-node`: the swarm alone, as a tool: one big file from one host to many.

fn main() -> std::process::ExitCode {
    deploycore_examples::swarm_node::main()
}
