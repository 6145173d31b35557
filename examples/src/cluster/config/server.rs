//! A server by its URL, with the password elsewhere: all hosts share the file, and few of them should know it.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// A database or a store of goals.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Its URL; by default a file in the state folder, for one host.
    pub url: Option<String>,
    /// The file that holds the password of the URL's user, and perhaps a line break.
    pub password_file: Option<PathBuf>,
    /// The environment variable that holds it.
    pub password_env: Option<String>,
}

impl Server {
    /// A server whose URL says all.
    pub fn of_url(url: impl Into<String>) -> Self {
        Self { url: Some(url.into()), ..Self::default() }
    }

    /// The URL with its password; `None` where none is given. Errors name the section, what was looked for and never a password.
    pub fn full_url(&self, section: &str) -> Result<Option<String>> {
        let Some(url) = &self.url else { return Ok(None) };
        let password = match (&self.password_file, &self.password_env) {
            (None, None) => return Ok(Some(url.clone())),
            (Some(_), Some(_)) => bail!("[{section}] has password_file and password_env: leave one out"),
            (Some(path), None) => std::fs::read_to_string(path)
                .with_context(|| format!("[{section}] password_file {} cannot be read", path.display()))?,
            (None, Some(name)) => std::env::var(name)
                .with_context(|| format!("[{section}] password_env: the variable {name} cannot be read"))?,
        };
        let full = with_password(url, password.trim_end_matches(['\r', '\n']));
        full.map(Some).map_err(|why| anyhow::anyhow!("[{section}] url {why}"))
    }

    /// Whether the URL itself holds a password.
    pub fn holds_password(&self) -> bool {
        self.url.as_deref().and_then(user_info).is_some_and(|user| user.contains(':'))
    }
}

/// A URL without what stands between its user and its host.
pub fn without_password(url: &str) -> String {
    match user_info(url).and_then(|user| Some((user, user.split_once(':')?.0))) {
        Some((user, name)) => url.replacen(user, name, 1),
        None => url.to_owned(),
    }
}

/// What stands before the last `@` of the authority.
pub(super) fn user_info(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    authority.rsplit_once('@').map(|(user, _)| user)
}

fn with_password(url: &str, password: &str) -> Result<String, &'static str> {
    let user = user_info(url).filter(|user| !user.is_empty());
    let user =
        user.ok_or("names no user for the password: write it before the host, as in postgres://USER@host/database")?;
    if user.contains(':') {
        return Err("holds a password, and another is given beside it: leave one out");
    }
    let encoded = url::form_urlencoded::byte_serialize(password.as_bytes()).collect::<String>().replace('+', "%20");
    Ok(url.replacen(&format!("{user}@"), &format!("{user}:{encoded}@"), 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_comes_from_a_file_and_is_encoded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, "p@ss w/rd:é\n").unwrap();
        let server = |url: &str| Server { password_file: Some(path.clone()), ..Server::of_url(url) };
        let full = server("postgres://deploy@db:5432/core").full_url("queue").unwrap();
        assert_eq!(full.as_deref(), Some("postgres://deploy:p%40ss%20w%2Frd%3A%C3%A9@db:5432/core"));
        let full = server("etcd://deploy@a:2379,b:2379/deploy@x").full_url("goals").unwrap();
        assert_eq!(full.as_deref(), Some("etcd://deploy:p%40ss%20w%2Frd%3A%C3%A9@a:2379,b:2379/deploy@x"));
        let refused = |url| server(url).full_url("queue").unwrap_err().to_string();
        assert!(refused("postgres://db/core").contains("[queue] url names no user"));
        assert!(refused("postgres://u:s3cret@db/core").contains("leave one out"));
        assert!(!refused("postgres://u:s3cret@db/core").contains("s3cret"));
        let missing = Server { password_file: Some("/nowhere".into()), ..Server::of_url("postgres://u@db/d") };
        assert!(missing.full_url("ledger").unwrap_err().to_string().contains("[ledger] password_file /nowhere"));
    }

    #[test]
    fn a_url_that_holds_a_password_is_known() {
        assert!(Server::of_url("mysql://u:p@db/d").holds_password());
        for url in ["mysql://u@db:3306/d", "mysql://db:3306/a:b@c", "etcd://a:1,b:2"] {
            assert!(!Server::of_url(url).holds_password(), "{url}");
        }
        assert_eq!(without_password("https://u:p@git/repo"), "https://u@git/repo");
        assert_eq!(without_password("git@host:repo"), "git@host:repo");
    }
}
