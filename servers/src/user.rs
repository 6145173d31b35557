//! Whom a server runs as.

use std::path::Path;

use crate::Error;

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    name: String,
    uid: u32,
    gid: u32,
}

impl User {
    /// The user for a program that refuses to run as root: `name` when this process is root's, else `None` for the own user.
    pub fn instead_of_root(name: &str, program: &str) -> Result<Option<Self>, Error> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let passwd = std::fs::read_to_string("/etc/passwd").map_err(Error::io("/etc/passwd"))?;
        let user = passwd.lines().find_map(|line| Self::parse(line).filter(|user| user.name == name));
        user.map(Some).ok_or_else(|| Error::NoUser { user: name.to_owned(), program: program.to_owned() })
    }

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        Some(Self { name: name.to_owned(), uid: uid.parse().ok()?, gid: gid.parse().ok()? })
    }

    /// Gives a file or a folder to the user.
    pub fn own(&self, path: &Path) -> Result<(), Error> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid)).map_err(Error::io(path))
    }

    /// What `setpriv` is told to become the user.
    pub(crate) fn setpriv(&self) -> [String; 3] {
        [format!("--reuid={}", self.uid), format!("--regid={}", self.gid), "--clear-groups".to_owned()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_users_file_is_read() {
        let user = User::parse("postgres:x:105:108:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash").unwrap();
        assert_eq!((user.name.as_str(), user.uid, user.gid), ("postgres", 105, 108));
        assert_eq!(User::parse("+::::::"), None);
        assert_eq!(User::parse(""), None);
    }
}
