//! `cluster`: a commit, built, stored, replicated, deployed, rolled forward and rolled back, on this machine.

fn main() -> std::process::ExitCode {
    deploycore_examples::cluster::main()
}
