//! Where goals lie in etcd. Everything is below one prefix; other users of the same etcd are not touched, and do not matter.

use deploycore::model::{GoalPosition, ServiceName};

/// The keys below a prefix.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    /// `prefix` without a slash at its end.
    pub(super) fn new(prefix: String) -> Self {
        Self { prefix }
    }

    /// Written by each write of a goal, in the same transaction: the revision that changed it is the store's revision. It holds the
    /// number of this layout.
    pub(super) fn head(&self) -> Vec<u8> {
        format!("{}/head", self.prefix).into()
    }

    /// Holds the revision up to which changes are forgotten.
    pub(super) fn compacted(&self) -> Vec<u8> {
        format!("{}/compacted", self.prefix).into()
    }

    /// The current goal of a service.
    pub(super) fn goal(&self, service: &ServiceName) -> Vec<u8> {
        format!("{}/goals/{service}", self.prefix).into()
    }

    /// The current goals of the services whose name starts so: a key, and the first one behind all of them.
    pub(super) fn goals(&self, prefix: &str) -> (Vec<u8>, Vec<u8>) {
        prefixed(format!("{}/goals/{prefix}", self.prefix))
    }

    /// A goal as it was written. The numbers have a fixed width, so that keys are in the order of positions.
    pub(super) fn past(&self, service: &ServiceName, position: GoalPosition) -> Vec<u8> {
        let (epoch, generation) = (position.epoch.0, position.generation.0);
        format!("{}/history/{service}/{epoch:020}.{generation:020}", self.prefix).into()
    }

    /// All goals of a service, as [`goals`](Self::goals).
    pub(super) fn history(&self, service: &ServiceName) -> (Vec<u8>, Vec<u8>) {
        prefixed(format!("{}/history/{service}/", self.prefix))
    }
}

/// The range of the keys that start so.
fn prefixed(start: String) -> (Vec<u8>, Vec<u8>) {
    let start = start.into_bytes();
    let mut end = start.clone();
    // UTF-8 has no byte 0xff, so the last byte can grow.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    (start, end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use deploycore::model::{Generation, GoalEpoch};

    #[test]
    fn keys_of_a_history_are_in_the_order_of_positions() {
        let (keys, web) = (Keys::new("/p".to_owned()), ServiceName::new("web").unwrap());
        let at = |epoch, generation| {
            keys.past(&web, GoalPosition { epoch: GoalEpoch(epoch), generation: Generation(generation) })
        };
        let sorted = [at(0, 9), at(0, 10), at(1, 0), at(1, u64::MAX), at(9, 0), at(10, 0), at(u64::MAX, u64::MAX)];
        assert!(sorted.is_sorted());
        let (from, to) = keys.history(&web);
        assert!(sorted.iter().all(|key| from < *key && *key < to));
        let (from, to) = keys.history(&ServiceName::new("we").unwrap());
        assert!(sorted.iter().all(|key| *key < from || to <= *key));
    }
}
