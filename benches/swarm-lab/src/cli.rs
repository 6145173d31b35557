//! What a user may ask for.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use bytesize::ByteSize;
use clap::{Parser, ValueEnum};

use crate::figures::{Case, Rate};
use crate::tool::Tool;

/// Measures the swarm, and others beside it, over shaped links between network namespaces of this host.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Needs root and Linux, with ip and tc (Debian: iproute2); for aria2: aria2, opentracker, mktorrent and curl; for the star: \
                  nginx-light and curl.\nSIZE is in bytes, with or without a unit: 500000, 12.5MB, 64MiB."
)]
pub(crate) struct Cli {
    /// Hosts that fetch; one more holds the store
    #[arg(long, value_name = "N", default_value = "7", value_parser = clap::value_parser!(u16).range(1..=250))]
    pub(crate) fetchers: u16,
    /// Of each link, up and down, headers included
    #[arg(long, value_name = "RATE", default_value = "100mbit")]
    pub(crate) rate: Rate,
    /// Of the store's link, if it is another
    #[arg(long, value_name = "RATE")]
    pub(crate) store_rate: Option<Rate>,
    /// Of the file
    #[arg(long, value_name = "SIZE", default_value = "200MiB")]
    pub(crate) size: ByteSize,
    /// What the file is made of
    #[arg(long, default_value = "random")]
    pub(crate) bytes: Bytes,
    /// Folders whose programs and libraries are the real bytes
    #[arg(long, value_name = "DIR", value_delimiter = ',', default_value = "/usr/lib,/usr/bin,/usr/local")]
    pub(crate) real_from: Vec<PathBuf>,
    /// What is measured, in this order
    #[arg(long, value_delimiter = ',', default_value = "swarm,aria2,star")]
    pub(crate) tools: Vec<Tool>,
    /// How often each
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) runs: u16,
    /// Congestion control of all hosts, as the kernel names it
    #[arg(long, value_name = "NAME", default_value = "cubic")]
    pub(crate) congestion: String,
    /// The program that takes part in the swarm [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    pub(crate) swarm_node: Option<PathBuf>,
    /// Where the files of a run lie, one copy for each host [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Write all that was measured
    #[arg(long, value_name = "OUT")]
    pub(crate) json: Option<PathBuf>,
    /// Put the rows into the table of this file
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "docs/benchmarks.md")]
    pub(crate) write_docs: Option<PathBuf>,
}

/// What the file is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bytes {
    /// Incompressible, the same in each run
    Random,
    /// Programs and libraries of this host, one after the other
    Real,
}

impl Cli {
    pub(crate) fn case(&self) -> Case {
        Case {
            fetchers: self.fetchers,
            store: self.store_rate.unwrap_or(self.rate),
            rate: self.rate,
            size: self.size.as_u64(),
            real: self.bytes == Bytes::Real,
        }
    }

    /// The program that takes part in the swarm.
    pub(crate) fn swarm_node(&self) -> PathBuf {
        self.swarm_node.clone().unwrap_or_else(|| {
            let own = std::env::current_exe().unwrap_or_default();
            own.with_file_name("swarm-node")
        })
    }

    /// Says all that is missing at once.
    pub(crate) fn check(&self) -> Result<()> {
        if !is_root() {
            bail!("namespaces and shaped links need root");
        }
        if self.size.as_u64() == 0 {
            bail!("--size must be more than 0");
        }
        let mut programs = vec![("ip", "iproute2"), ("tc", "iproute2")];
        programs.extend(self.tools.iter().flat_map(|tool| tool.needs()).copied());
        let mut missing: Vec<&str> =
            programs.into_iter().filter(|(program, _)| !is_on_path(program)).map(|(_, package)| package).collect();
        missing.sort_unstable();
        missing.dedup();
        if !missing.is_empty() {
            bail!("missing: install {0} (Debian: apt-get install {0})", missing.join(" "));
        }
        if self.tools.contains(&Tool::Swarm) && !self.swarm_node().is_file() {
            let path = self.swarm_node();
            bail!("no {}: cargo build --release --bin swarm-node, or say --swarm-node PATH", path.display());
        }
        Ok(())
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder: PathBuf| Path::is_file(&folder.join(program)))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["swarm-lab", "--tools", "star,swarm", "--write-docs", "--rate", "50mbit"]);
        assert_eq!(cli.tools, [Tool::Star, Tool::Swarm]);
        assert_eq!(cli.write_docs.as_deref(), Some(Path::new("docs/benchmarks.md")));
        assert_eq!(cli.case().store, cli.rate);
    }
}
