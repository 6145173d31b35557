//! How a database's tables stand to this program.

/// The versions of a schema. A newer one than is known is an error, not a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schema {
    /// The version of the tables; `None` where there are none yet.
    pub found: Option<i64>,
    /// The newest version that this program knows: opening the database brings it there.
    pub known: i64,
}

impl Schema {
    /// Whether opening the database changes nothing.
    pub fn is_current(&self) -> bool {
        self.found == Some(self.known)
    }
}
