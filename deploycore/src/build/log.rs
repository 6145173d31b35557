//! The log of a build, bounded however much the build writes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::port::store::MAX_LOG;

/// Where a build writes what people shall read. Clones write to the same log.
///
/// It keeps the beginning and the end; what does not fit is dropped from the middle, with a note of how much.
#[derive(Debug, Clone)]
pub struct BuildLog(Arc<Mutex<Kept>>);

#[derive(Debug)]
struct Kept {
    head: Vec<u8>,
    head_limit: usize,
    tail: VecDeque<u8>,
    tail_limit: usize,
    dropped: u64,
}

/// Room for the note in the middle.
const NOTE: usize = 64;

impl BuildLog {
    /// The smallest bound that is kept, in bytes.
    pub const MIN_LIMIT: usize = 1024;

    /// An empty log of at most `limit` bytes, which is brought into [`BuildLog::MIN_LIMIT`] to [`MAX_LOG`].
    pub fn new(limit: usize) -> Self {
        let room = limit.clamp(Self::MIN_LIMIT, MAX_LOG) - NOTE;
        // The end of a log says why a build failed, the beginning how it was started.
        let head_limit = room / 4;
        let kept =
            Kept { head: Vec::new(), head_limit, tail: VecDeque::new(), tail_limit: room - head_limit, dropped: 0 };
        Self(Arc::new(Mutex::new(kept)))
    }

    /// Appends bytes as they are.
    pub fn write(&self, bytes: &[u8]) {
        self.kept().write(bytes);
    }

    /// Appends a text and a line end.
    pub fn line(&self, text: impl AsRef<str>) {
        let mut kept = self.kept();
        kept.write(text.as_ref().as_bytes());
        kept.write(b"\n");
    }

    /// All that is kept, with the note where something was dropped.
    pub fn contents(&self) -> Bytes {
        let kept = self.kept();
        let mut all = kept.head.clone();
        if kept.dropped > 0 {
            all.extend_from_slice(format!("\n[... {} bytes dropped ...]\n", kept.dropped).as_bytes());
        }
        let (front, back) = kept.tail.as_slices();
        all.extend_from_slice(front);
        all.extend_from_slice(back);
        all.into()
    }

    /// The last `lines` lines, at most `limit` bytes, for an error message.
    pub fn last_lines(&self, lines: usize, limit: usize) -> String {
        let all = self.contents();
        let end = all.trim_ascii_end();
        let end = &end[end.len().saturating_sub(limit)..];
        let text = String::from_utf8_lossy(end);
        let start = text.rmatch_indices('\n').nth(lines.saturating_sub(1)).map_or(0, |(at, _)| at + 1);
        text[start..].to_owned()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn write(&mut self, bytes: &[u8]) {
        let (first, rest) = bytes.split_at(bytes.len().min(self.head_limit - self.head.len()));
        self.head.extend_from_slice(first);
        let skipped = rest.len().saturating_sub(self.tail_limit);
        let rest = &rest[skipped..];
        let pushed_out = (self.tail.len() + rest.len()).saturating_sub(self.tail_limit);
        self.tail.drain(..pushed_out);
        self.tail.extend(rest);
        self.dropped += (skipped + pushed_out) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_short_log_is_kept_whole() {
        let log = BuildLog::new(4096);
        log.line("one");
        log.clone().write(b"two\nthree\n\n");
        assert_eq!(log.contents(), "one\ntwo\nthree\n\n");
        assert_eq!(log.last_lines(2, 100), "two\nthree");
        assert_eq!(log.last_lines(9, 100), "one\ntwo\nthree");
        assert_eq!(log.last_lines(2, 4), "hree");
    }

    proptest! {
        #[test]
        fn a_log_keeps_both_ends_and_its_bound(parts in prop::collection::vec(0_usize..3000, 0..12), limit in 0_usize..5000) {
            let log = BuildLog::new(limit);
            let mut all = Vec::new();
            for (index, len) in parts.iter().enumerate() {
                let part = vec![b'a' + index as u8; *len];
                log.write(&part);
                all.extend_from_slice(&part);
            }
            let bound = limit.max(BuildLog::MIN_LIMIT);
            let kept = log.contents();
            prop_assert!(kept.len() <= bound);
            let room = bound - NOTE;
            if all.len() <= room {
                prop_assert_eq!(kept, all);
            } else {
                let head = room / 4;
                let tail = room - head;
                prop_assert_eq!(&kept[..head], &all[..head]);
                prop_assert_eq!(&kept[kept.len() - tail..], &all[all.len() - tail..]);
                let note = format!("{} bytes dropped", all.len() - room);
                prop_assert!(String::from_utf8_lossy(&kept).contains(&note));
            }
        }
    }
}
