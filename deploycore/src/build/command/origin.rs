//! Where a repository is, for git and for people.

use std::fmt;

/// A path or a URL that git fetches from. What stands in it to prove who asks is for git alone: people are shown `***` instead.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Origin(String);

impl Origin {
    pub(super) fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    pub(super) fn for_git(&self) -> &str {
        &self.0
    }

    /// A text that may repeat the URL, as people may read it.
    pub(super) fn hide(&self, text: &str) -> String {
        match secret(&self.0) {
            Some(secret) => text.replace(&format!("{secret}@"), "***@"),
            None => text.to_owned(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hide(&self.0))
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

/// What stands before the host: over ssh a name, which is shown, and perhaps a password; elsewhere a token may stand where the name does.
fn secret(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (user, _host) = rest[..end].rsplit_once('@')?;
    let secret = if scheme.contains("ssh") { user.split_once(':')?.1 } else { user };
    (!secret.is_empty()).then_some(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_shown_a_url_without_what_opens_it() {
        for (url, shown) in [
            ("https://ci:s3cret@git.internal:8443/web.git", "https://***@git.internal:8443/web.git"),
            ("https://t0ken@git.internal/web.git", "https://***@git.internal/web.git"),
            ("http://ci:a@b@git.internal", "http://***@git.internal"),
            ("ssh://git:s3cret@git.internal/web.git", "ssh://git:***@git.internal/web.git"),
            ("ssh://git@git.internal/web.git", "ssh://git@git.internal/web.git"),
            ("git@git.internal:web.git", "git@git.internal:web.git"),
            ("https://git.internal/@scope/web?a@b", "https://git.internal/@scope/web?a@b"),
            ("https://@git.internal/web.git", "https://@git.internal/web.git"),
            ("/srv/git/a@b.git", "/srv/git/a@b.git"),
        ] {
            let origin = Origin::new(url);
            assert_eq!((origin.to_string().as_str(), origin.for_git()), (shown, url));
            assert_eq!(format!("{origin:?}"), format!("{shown:?}"));
        }
    }

    #[test]
    fn what_git_says_of_a_url_is_shown_without_what_opens_it() {
        let origin = Origin::new("ssh://git:s3cret@git.internal/web.git");
        let said = "git:s3cret@git.internal: Permission denied (publickey).\nfatal: 'ssh://git:s3cret@git.internal/'\n";
        let shown = "git:***@git.internal: Permission denied (publickey).\nfatal: 'ssh://git:***@git.internal/'\n";
        assert_eq!(origin.hide(said), shown);
        assert_eq!(Origin::new("/srv/web.git").hide(said), said);
    }
}
