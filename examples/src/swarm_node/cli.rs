//! What a user may ask for.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};
use deploycore_p2p::core::bound::Links;
use deploycore_p2p::{MutualTls, Security};

/// Puts one big file on many hosts, each of which passes on what it has.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 done; 1 error; 2 wrong command line; 3 verify: the file is another; 4 ended by a signal before the \
                  file was whole.\nSIZE is in bytes, with or without a unit: 500000, 12.5MB, 64MiB."
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Introduce the members to each other
    Tracker(TrackerArgs),
    /// Offer a file: the only door to it, which gives each piece away about once
    Gate(GateArgs),
    /// Fetch the file, and pass it on meanwhile
    Fetch(FetchArgs),
    /// Compare a file with a manifest
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
pub(super) struct TrackerArgs {
    /// Where to listen
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) listen: String,
    /// Name in the swarm [default: a random one]
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Written anew each second: how far the members are with each file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) standings: Option<PathBuf>,
    /// What a member can take in a second: with --up and --store, times are told as multiples of the least possible one too
    #[arg(long, value_name = "SIZE", value_parser = parse_rate, requires_all = ["up", "store", "standings"])]
    pub(super) down: Option<ByteSize>,
    /// What a member can give out a second
    #[arg(long, value_name = "SIZE", value_parser = parse_rate, requires = "down")]
    pub(super) up: Option<ByteSize>,
    /// What the gate can give out a second
    #[arg(long, value_name = "SIZE", value_parser = parse_rate, requires = "down")]
    pub(super) store: Option<ByteSize>,
    #[command(flatten)]
    pub(super) trust: Trust,
}

impl TrackerArgs {
    pub(super) fn links(&self) -> Option<Links> {
        let (down, up, store) = (self.down?.as_u64(), self.up?.as_u64(), self.store?.as_u64());
        Some(Links { down, up, store })
    }
}

/// How connections are protected: by certificates, or, by name, not at all.
#[derive(Debug, Clone, Args)]
pub(super) struct Trust {
    /// Mutual TLS: this member's certificate, PEM. It must allow both a server's and a client's use
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"], required_unless_present = "insecure")]
    tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Certificates of the authorities whose members are let in, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
    /// Let in only members whose --name is a DNS name in their certificate
    #[arg(long, requires = "tls_cert")]
    tls_names: bool,
    /// Plain TCP: whoever reaches the port takes part
    #[arg(long, conflicts_with = "tls_cert")]
    insecure: bool,
}

impl Trust {
    pub(super) fn security(&self) -> Security {
        match (&self.tls_cert, &self.tls_key, &self.tls_ca) {
            (Some(certificate), Some(key), Some(authority)) => Security::MutualTls(MutualTls {
                certificate: certificate.clone(),
                key: key.clone(),
                authority: authority.clone(),
                names_in_certificates: self.tls_names,
            }),
            _ => Security::PlainTcp,
        }
    }
}

/// A gate's or a node's place in the swarm.
#[derive(Debug, Args)]
pub(super) struct Member {
    /// A tracker; may be given several times. Gates and peers are found through it
    #[arg(long, value_name = "HOST:PORT", required = true)]
    pub(super) tracker: Vec<String>,
    /// Where to listen
    #[arg(long, value_name = "HOST:PORT", default_value = "0.0.0.0:0")]
    pub(super) listen: String,
    /// Where others reach it [default: where it listens, at the host that the tracker sees]
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) advertise: Option<String>,
    /// Name in the swarm [default: a random one]
    #[arg(long)]
    pub(super) name: Option<String>,
    #[command(flatten)]
    pub(super) trust: Trust,
}

#[derive(Debug, Args)]
pub(super) struct GateArgs {
    /// The file; it must not change while it is offered
    pub(super) file: PathBuf,
    /// Written whole when the gate serves: what `fetch` needs
    #[arg(long, value_name = "FILE")]
    pub(super) manifest: PathBuf,
    /// Folder of the durable count of what was given away [default: the manifest's name with `.counts`]
    #[arg(long, value_name = "DIR")]
    pub(super) counts: Option<PathBuf>,
    #[command(flatten)]
    pub(super) member: Member,
}

#[derive(Debug, Args)]
pub(super) struct FetchArgs {
    /// What to fetch
    #[arg(long, value_name = "FILE")]
    pub(super) manifest: PathBuf,
    /// Where to put it. Until it is whole it is PATH.part, from which a later fetch goes on
    #[arg(long, value_name = "PATH")]
    pub(super) out: PathBuf,
    /// Go on serving peers for this long once the file is in place
    #[arg(long, value_name = "SECS", default_value = "0", value_parser = parse_seconds)]
    pub(super) linger: Duration,
    /// Take in at most this much a second
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    pub(super) limit_down: Option<ByteSize>,
    /// Give out at most this much a second
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    pub(super) limit_up: Option<ByteSize>,
    /// Read from disk and write to it at most this much a second, together
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    pub(super) limit_disk: Option<ByteSize>,
    /// Where this is within the region: nodes of one zone give it the same name, and fetch from each other rather than from other zones
    #[arg(long, value_name = "NAME")]
    pub(super) zone: Option<String>,
    /// Written, whole, when the file is in place: what came from where, at what cost, as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) stats: Option<PathBuf>,
    #[command(flatten)]
    pub(super) member: Member,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The file
    pub(super) path: PathBuf,
    /// What it should be
    #[arg(long, value_name = "FILE")]
    pub(super) manifest: PathBuf,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// A rate of nothing would wait for ever.
fn parse_rate(text: &str) -> Result<ByteSize, String> {
    let rate: ByteSize = text.parse()?;
    if rate.as_u64() == 0 { Err("must be more than 0".to_owned()) } else { Ok(rate) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn only_who_says_so_goes_without_certificates() {
        let trust = |more: &[&str]| {
            let base = ["swarm-node", "tracker", "--listen", "a:1"];
            let cli = Cli::try_parse_from(base.iter().chain(more)).ok()?;
            let Command::Tracker(tracker) = cli.command else { return None };
            Some(tracker.trust.security())
        };
        assert_eq!(trust(&["--insecure"]), Some(Security::PlainTcp));
        let all = ["--tls-cert", "c", "--tls-key", "k", "--tls-ca", "a"];
        assert!(matches!(trust(&all), Some(Security::MutualTls(files)) if !files.names_in_certificates));
        let named = [&all[..], &["--tls-names"]].concat();
        assert!(matches!(trust(&named), Some(Security::MutualTls(files)) if files.names_in_certificates));
        for wrong in [
            &[][..],
            &all[..2],
            &all[..4],
            &all[2..],
            &[&all[..], &["--insecure"]].concat(),
            &["--insecure", "--tls-names"],
        ] {
            assert_eq!(trust(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn rates_and_times_have_bounds() {
        assert_eq!(parse_rate("12.5MB").unwrap().as_u64(), 12_500_000);
        assert!(parse_rate("0").is_err());
        assert_eq!(parse_seconds("0.5").unwrap(), Duration::from_millis(500));
        assert!(parse_seconds("-1").is_err() && parse_seconds("1e300").is_err());
    }
}
