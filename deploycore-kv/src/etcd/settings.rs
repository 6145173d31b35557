//! Where the servers are, and how to be let in.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use deploycore::model::friendly;
use deploycore::port::goals::Error;
use serde::{Deserialize, Serialize};
use url::Url;

/// Settings of [`Goals`](super::Goals).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The members' client URLs, `http://host:2379` or `https://host:2379`, the nearest first: a call goes to the first that answers, and
    /// calls stay with it.
    pub endpoints: Vec<String>,
    /// What all keys start with; `/deploycore` by default. Stores with different prefixes know nothing of each other.
    pub prefix: String,
    /// Who to be, where etcd has authentication on.
    pub user: Option<User>,
    /// What to trust and show, for `https`.
    pub tls: Option<Tls>,
    /// How long one server may take to answer before the next is asked; 3 s by default.
    #[serde(with = "friendly")]
    pub attempt_limit: Duration,
    /// How long a call may take in all, over all servers; 10 s by default. An election takes one or two seconds.
    #[serde(with = "friendly")]
    pub call_limit: Duration,
    /// After how long without a change a watch reads, to see whether its server has only fallen silent; 10 s by default.
    #[serde(with = "friendly")]
    pub watch_idle: Duration,
    /// How long a watch goes on trying while no server answers, before it ends with an error; 1 min by default.
    #[serde(with = "friendly")]
    pub watch_limit: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            prefix: "/deploycore".to_owned(),
            user: None,
            tls: None,
            attempt_limit: Duration::from_secs(3),
            call_limit: Duration::from_secs(10),
            watch_idle: Duration::from_secs(10),
            watch_limit: Duration::from_mins(1),
        }
    }
}

/// A user of etcd's authentication.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its password; never printed.
    pub password: String,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Certificates as PEM files, read when the store is opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Who signed the servers' certificates.
    pub ca: PathBuf,
    /// The certificate to show and its key, where the servers ask for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientCertificate>,
    /// The name that the servers' certificates must have, where it is not the host of the endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

/// A certificate with its key, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificate {
    /// The certificate, and those between it and the CA.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Settings {
    /// Settings for these servers.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { endpoints: endpoints.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// The settings that a URL tells: `etcd://[user:password@]host:port[,host:port...][/prefix]`, or `etcds://` for TLS with the parameters
    /// `ca`, and, where the servers ask for a client's certificate, `cert` and `key`: paths of PEM files. `server-name` is optional.
    ///
    /// ```
    /// use deploycore_kv::etcd::Settings;
    ///
    /// let settings = Settings::from_url("etcd://10.0.0.1:2379,10.0.0.2:2379/goals/prod")?;
    /// assert_eq!(settings.endpoints, ["http://10.0.0.1:2379", "http://10.0.0.2:2379"]);
    /// assert_eq!(settings.prefix, "/goals/prod");
    ///
    /// let settings = Settings::from_url("etcds://deploy:s3cret@etcd.example:2379?ca=/etc/etcd/ca.pem")?;
    /// assert_eq!(settings.endpoints, ["https://etcd.example:2379"]);
    /// assert_eq!(settings.user.unwrap().name, "deploy");
    /// # Ok::<(), deploycore::port::goals::Error>(())
    /// ```
    ///
    /// Errors: `Invalid`, which names what is wrong and never the password.
    pub fn from_url(url: &str) -> Result<Self, Error> {
        let (scheme, rest) = match url.split_once("://") {
            Some(("etcd", rest)) => ("http", rest),
            Some(("etcds", rest)) => ("https", rest),
            _ => return Err(invalid("it starts with neither etcd:// nor etcds://")),
        };
        if rest.contains('#') {
            return Err(invalid("'#' is of no use here; write it as %23"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (user, hosts) = match authority.rsplit_once('@') {
            None => (None, authority),
            Some((user, hosts)) => {
                let (name, password) =
                    user.split_once(':').ok_or_else(|| invalid("write user:password before the '@'"))?;
                (Some(User { name: decoded(name)?, password: decoded(password)? }), hosts)
            }
        };
        let mut settings = Self::new(hosts.split(',').map(|host| format!("{scheme}://{host}")));
        settings.user = user;
        if !path.trim_end_matches('/').is_empty() {
            settings.prefix = decoded(path)?;
        }
        settings.tls = tls(query, scheme == "https")?;
        settings.check()?;
        Ok(settings)
    }

    /// Sets what all keys start with.
    #[must_use]
    pub fn with_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets who to be.
    #[must_use]
    pub fn with_user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some(User { name: name.into(), password: password.into() });
        self
    }

    /// Sets what to trust and show.
    #[must_use]
    pub fn with_tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets how long one server, and a call over all servers, may take.
    #[must_use]
    pub fn with_limits(mut self, attempt: Duration, call: Duration) -> Self {
        (self.attempt_limit, self.call_limit) = (attempt, call);
        self
    }

    /// Sets after how long a silent watch reads.
    #[must_use]
    pub fn with_watch_idle(mut self, watch_idle: Duration) -> Self {
        self.watch_idle = watch_idle;
        self
    }

    /// Sets how long a watch goes on trying while no server answers.
    #[must_use]
    pub fn with_watch_limit(mut self, watch_limit: Duration) -> Self {
        self.watch_limit = watch_limit;
        self
    }

    /// Refuses what could not work.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.endpoints.is_empty() {
            return Err(invalid("no endpoint is given: name at least one, http://host:2379"));
        }
        for endpoint in &self.endpoints {
            let plain = Url::parse(endpoint).ok().filter(|url| {
                matches!(url.scheme(), "http" | "https")
                    && url.username().is_empty()
                    && url.password().is_none()
                    && url.path() == "/"
                    && url.query().is_none()
                    && url.fragment().is_none()
            });
            let Some(url) = plain else {
                return Err(invalid("an endpoint is not of the form http://host:port or https://host:port"));
            };
            if url.scheme() == "https" && self.tls.is_none() {
                return Err(invalid(&format!("{endpoint} wants TLS: give the CA that signed its certificate")));
            }
            if url.scheme() == "http" && self.tls.is_some() {
                return Err(invalid(&format!(
                    "{endpoint} has no TLS, and certificates are given: use https, or leave them out"
                )));
            }
        }
        if self.prefix.chars().any(char::is_control) {
            return Err(invalid("the prefix has control characters"));
        }
        if [self.attempt_limit, self.call_limit, self.watch_idle].iter().any(Duration::is_zero) {
            return Err(invalid("attempt_limit, call_limit and watch_idle must be longer than zero"));
        }
        Ok(())
    }
}

fn invalid(what: &str) -> Error {
    Error::Invalid(format!(
        "etcd: {what}; a URL is etcd://[user:password@]host:port[,host:port][/prefix] or etcds://...?ca=FILE[&cert=FILE&key=FILE]"
    ))
}

/// The text behind percent signs.
fn decoded(text: &str) -> Result<String, Error> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(byte.ok_or_else(|| invalid("'%' is not followed by two hexadecimal digits"))?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| invalid("what is written with '%' is not UTF-8"))
}

fn tls(query: &str, wanted: bool) -> Result<Option<Tls>, Error> {
    let (mut ca, mut certificate, mut key, mut server_name) = (None, None, None, None);
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        let place = match name.as_ref() {
            "ca" => &mut ca,
            "cert" => &mut certificate,
            "key" => &mut key,
            "server-name" => &mut server_name,
            other => return Err(invalid(&format!("the parameter {other:?} is not known"))),
        };
        *place = Some(value.into_owned());
    }
    if !wanted {
        let given = ca.or(certificate).or(key).or(server_name).is_some();
        return if given {
            Err(invalid("certificates are given, and etcd:// has no TLS: use etcds://"))
        } else {
            Ok(None)
        };
    }
    let ca = ca.ok_or_else(|| invalid("etcds:// needs ca=FILE, the CA that signed the servers' certificates"))?;
    let client = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(ClientCertificate { certificate: certificate.into(), key: key.into() }),
        (None, None) => None,
        _ => return Err(invalid("cert and key belong together")),
    };
    Ok(Some(Tls { ca: ca.into(), client, server_name }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_tells_everything() {
        let url =
            "etcds://a%40b:p%3A%2Fw@h1:2379,[::1]:2380/a/b%20c/?ca=/x/ca.pem&cert=c.pem&key=k.pem&server-name=etcd";
        let settings = Settings::from_url(url).unwrap();
        assert_eq!(settings.endpoints, ["https://h1:2379", "https://[::1]:2380"]);
        assert_eq!(settings.user, Some(User { name: "a@b".into(), password: "p:/w".into() }));
        assert_eq!(settings.prefix, "/a/b c/");
        let tls = settings.tls.unwrap();
        assert_eq!((tls.ca, tls.server_name.unwrap()), (PathBuf::from("/x/ca.pem"), "etcd".to_owned()));
        assert_eq!(tls.client.unwrap().key, PathBuf::from("k.pem"));
        assert_eq!(Settings::from_url("etcd://h").unwrap().prefix, "/deploycore");
    }

    #[test]
    fn what_cannot_work_is_refused_with_no_word_of_the_password() {
        for url in [
            "",
            "etcd",
            "redis://u:s3cret@h",
            "etcd://",
            "etcd://h,",
            "etcd://u@h",
            "etcd://u:s3cret@",
            "etcd://h:port",
            "etcd://u:s3cret@h:99999",
            "etcd://u:%s3cret@h",
            "etcd://u:s3cret%ff@h",
            "etcd://h#s3cret",
            "etcd://h?ca=x",
            "etcd://u:s3cret@h?prefix=x",
            "etcds://u:s3cret@h",
            "etcds://h?ca=x&cert=y",
            "etcds://h?ca=x&key=y",
            "etcd://h/%00",
        ] {
            let refused = Settings::from_url(url);
            let Err(Error::Invalid(text)) = refused else { panic!("{url}: {refused:?}") };
            assert!(!text.contains("s3cret") && !text.contains('\n'), "{text}");
        }
        let settings = Settings::from_url("etcd://u:s3cret@h").unwrap();
        assert!(!format!("{settings:?}").contains("s3cret"));
    }
}
