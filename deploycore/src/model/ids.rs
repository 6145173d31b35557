//! Names and ids. A name is checked once, where it is made, so that it is safe in a path, a URL, a log line and a command.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is not a valid name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a valid {what}: {rule}")]
pub struct InvalidName {
    /// The kind of name that was wanted.
    pub what: &'static str,
    /// What was given, cut to 80 characters.
    pub value: String,
    /// The rule that a valid name keeps.
    pub rule: &'static str,
}

const NAME_RULE: &str = "use lower-case letters, digits, '.', '_' and '-', starting and ending with a letter or digit";

fn is_name(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    edge(text.chars().next())
        && edge(text.chars().next_back())
        && !text.contains("..")
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-'))
}

fn is_key(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic())
}

fn is_commit(text: &str) -> bool {
    text.len() >= 7 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal, $check:path, $rule:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// The longest allowed text, in bytes.
            pub const MAX_LEN: usize = $max;

            /// Checks a text and makes it a name.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidName> {
                let text = text.as_ref();
                if text.len() <= Self::MAX_LEN && $check(text) {
                    return Ok(Self(text.into()));
                }
                let value = text.chars().take(80).collect();
                Err(InvalidName { what: $what, value, rule: $rule })
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }
    };
}

text_id!(
    /// A named thing that machines run; a goal is kept per service.
    ServiceName, "service name", 63, is_name, NAME_RULE
);
text_id!(
    /// A place with its own artifact store, goal-state store and swarm.
    RegionName, "region name", 63, is_name, NAME_RULE
);
text_id!(
    /// A host, unique in its region.
    MachineName, "machine name", 128, is_name, NAME_RULE
);
text_id!(
    /// A worker process, for people who read the attempt history. It grants nothing: a lease does.
    WorkerName, "worker name", 128, is_name, NAME_RULE
);
text_id!(
    /// The name of an artifact, unique per job: see [`ArtifactName::for_job`].
    ArtifactName, "artifact name", 128, is_name, NAME_RULE
);
text_id!(
    /// A git commit: 7 to 64 lower-case hexadecimal digits.
    CommitId, "commit id", 64, is_commit, "use 7 to 64 lower-case hexadecimal digits"
);
text_id!(
    /// Makes a job unique among the unfinished ones.
    DedupKey, "dedup key", 200, is_key, "use 1 to 200 printable ASCII characters without blanks"
);
text_id!(
    /// Jobs with the same key share one limit of concurrent builds.
    ConcurrencyKey, "concurrency key", 200, is_key, "use 1 to 200 printable ASCII characters without blanks"
);
text_id!(
    /// Who keeps an artifact from being collected, for instance `goal:web`.
    PinHolder, "pin holder", 200, is_key, "use 1 to 200 printable ASCII characters without blanks"
);

impl ArtifactName {
    /// The name of what `job` produces: the service, a dash and the job's id.
    pub fn for_job(service: &ServiceName, job: JobId) -> Self {
        Self(format!("{service}-{job}").into())
    }
}

impl PinHolder {
    /// The holder that stands for the goals of a service.
    pub fn goal(service: &ServiceName) -> Self {
        Self(format!("goal:{service}").into())
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A fresh id (UUIDv7): ordered by the maker's clock, with 74 random bits.
            #[allow(clippy::new_without_default)]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The id as a UUID.
            pub const fn as_uuid(self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                text.parse().map(Self)
            }
        }
    };
}

uuid_id!(
    /// A job, chosen by the caller of enqueue so that repeating the call is harmless.
    JobId
);
uuid_id!(
    /// One call of claim, chosen by the caller so that repeating the call after a lost reply gives the same answer.
    ClaimId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_a_folder_or_become_an_option_are_refused() {
        for text in ["", "..", "a/../b", "a..b", "-x", "x-", ".hidden", "A", "a b", "a/b", &"x".repeat(64)] {
            let error = ServiceName::new(text).unwrap_err();
            assert!(error.to_string().contains("service name"), "{error}");
        }
        for text in ["web", "web-2", "a.b_c", "0"] {
            assert_eq!(ServiceName::new(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn a_commit_is_plain_hexadecimal() {
        assert!(CommitId::new("--output=/etc/passwd").is_err());
        assert!(CommitId::new("HEAD").is_err());
        assert!(CommitId::new("abcdef0").is_ok());
    }
}
