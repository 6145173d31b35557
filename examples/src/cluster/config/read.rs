//! Reads the file: the error names it, the line and the key, on one line.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use super::Config;

/// Texts less alike than this are not a slip of the pen.
const ALIKE: f64 = 0.7;

/// Reads a configuration. Relative paths in it are of its folder.
pub fn read(path: &Path) -> Result<Config> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut config = parse(&text).map_err(|why| anyhow!("{}{why}", path.display()))?;
    let path = std::path::absolute(path)?;
    config.make_absolute(path.parent().unwrap_or(Path::new("/")));
    Ok(config)
}

/// The reason begins with the line, as in `:12: unknown key`.
fn parse(text: &str) -> Result<Config, String> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let line = text.get(..at).unwrap_or(text).lines().count().max(1);
        // A span that begins at a line's start is of that line.
        let line = if text.get(..at).is_some_and(|before| before.ends_with('\n')) { line + 1 } else { line };
        let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        format!(":{line}: {}", unknown(&message).unwrap_or(message))
    })
}

/// serde tells of an unknown key with all that would do; people want to see the one that they meant.
fn unknown(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field `").or_else(|| message.strip_prefix("unknown variant `"))?;
    let what = if message.starts_with("unknown field") { "key" } else { "value" };
    let (name, rest) = rest.split_once('`')?;
    let known: Vec<_> = rest.split('`').skip(1).step_by(2).collect();
    let alike = |other: &&str| strsim::jaro_winkler(name, other);
    let nearest = known.iter().copied().max_by(|one, other| alike(one).total_cmp(&alike(other)));
    let hint = match nearest.filter(|nearest| alike(nearest) >= ALIKE) {
        Some(nearest) => format!("did you mean {nearest}?"),
        None => format!("known here: {}", known.join(", ")),
    };
    Some(format!("unknown {what} {name}: {hint}"))
}

impl Config {
    fn make_absolute(&mut self, folder: &Path) {
        let path = |path: &mut PathBuf| *path = folder.join(&*path);
        path(&mut self.state);
        let servers = [&mut self.queue, &mut self.ledger, &mut self.goals].map(|server| &mut server.password_file);
        let Self { swarm, worker, agent, local, .. } = self;
        // A URL, and `host:path` as ssh has it, are none of this host's.
        if let Some(repository) = worker.repository.as_mut().filter(|repository| !repository.contains(':')) {
            *repository = folder.join(&*repository).display().to_string();
        }
        let tls = [&mut swarm.certificate, &mut swarm.key, &mut swarm.authority];
        let others = [&mut worker.state, &mut agent.state, &mut local.data_dir, &mut local.report];
        servers.into_iter().chain(tls).chain(others).flatten().for_each(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
        let refused = |text| parse(text).unwrap_err();
        assert_eq!(refused("state = 'x'\n\n[worker]\nslosts = 2\n"), ":4: unknown key slosts: did you mean slots?");
        assert_eq!(refused("[regoins.eu]\n"), ":1: unknown key regoins: did you mean regions?");
        assert_eq!(
            refused("[queue]\npasword_file = 'x'\n"),
            ":2: unknown key pasword_file: did you mean password_file?"
        );
        assert_eq!(
            refused("[regions.eu]\nreplicas = [{ host = 'a', gatway_port = 1 }]"),
            ":2: unknown key gatway_port: did you mean gateway_port?"
        );
        let far = refused("[swarm]\nxyz = 1\n");
        assert!(far.starts_with(":2: unknown key xyz: known here: plain_tcp, certificate"), "{far}");
        let value = refused("[services.web]\nport = 'fre'\n");
        assert_eq!(value, ":2: unknown value fre: did you mean free?");
    }

    #[test]
    fn a_value_that_does_not_fit_is_told_on_one_line() {
        for (text, line) in
            [("poll = 'soon'", 1), ("\n[worker]\nslots = 0", 3), ("[queue\nurl = 1", 1), ("[regions.EU]", 1)]
        {
            let refused = parse(text).unwrap_err();
            assert!(refused.starts_with(&format!(":{line}: ")) && !refused.contains('\n'), "{text}: {refused}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let config =
            parse("[regions.eu]\nreplicas = ['a', { host = 'b', gate_port = 1 }]\n[agent]\nlink = '1MiB'").unwrap();
        assert_eq!(parse(&toml::to_string_pretty(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn relative_paths_are_of_the_files_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cluster.toml");
        let text = "state = 'state'\n[queue]\nurl = 'postgres://u@h/d'\npassword_file = '/etc/p'\n\
                    [worker]\nrepository = 'git@h:r'\n";
        std::fs::write(&path, text).unwrap();
        let config = read(&path).unwrap();
        assert_eq!(config.state, folder.path().join("state"));
        assert_eq!(config.queue.password_file, Some("/etc/p".into()));
        assert_eq!(config.worker.repository.as_deref(), Some("git@h:r"));
    }
}
