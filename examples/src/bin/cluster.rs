//! The reference cluster.

fn main() {}
