//! Buffers for blocks, used again: fresh memory for each block costs as much as its copy does, as the system zeroes every page of it.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

/// Bytes that are kept for later when nobody uses them.
const MAX_KEPT: usize = 16 << 20;
/// Shorter buffers are left to the allocator, which does well with them; so there are never many to look through.
const MIN_LEN: usize = 64 << 10;

/// The process's buffers that nobody uses now.
static KEPT: Mutex<Kept> = Mutex::new(Kept { bytes: 0, buffers: Vec::new() });

#[derive(Debug)]
struct Kept {
    bytes: usize,
    buffers: Vec<Vec<u8>>,
}

/// A buffer of its own. What is in it at first is what was in it last.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
}

impl Buffer {
    /// A buffer of `len` bytes.
    pub(super) fn new(len: usize) -> Self {
        let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner).take(len);
        Self { bytes: kept.unwrap_or_else(|| vec![0; len]), len }
    }

    /// A buffer of `len` bytes as `fill` leaves it.
    pub(super) fn filled(len: usize, fill: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<Bytes> {
        let mut buffer = Self::new(len);
        fill(&mut buffer)?;
        Ok(buffer.freeze())
    }

    /// The bytes, to be shared. The buffer is used again when the last share is gone.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        KEPT.lock().unwrap_or_else(PoisonError::into_inner).put(std::mem::take(&mut self.bytes));
    }
}

impl Kept {
    /// A buffer that is long enough, and not so long that small blocks would hold the memory of large ones.
    fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        // The last one that came is the likeliest to be in the processor's cache.
        let fits = |buffer: &Vec<u8>| (len..=len.saturating_mul(2)).contains(&buffer.len());
        let at = self.buffers.iter().rposition(fits)?;
        let buffer = self.buffers.remove(at);
        self.bytes -= buffer.len();
        Some(buffer)
    }

    /// Keeps a buffer. For one too many, those that were unused longest make room.
    fn put(&mut self, buffer: Vec<u8>) {
        if buffer.len() < MIN_LEN {
            return;
        }
        self.bytes += buffer.len();
        self.buffers.push(buffer);
        while self.bytes > MAX_KEPT {
            self.bytes -= self.buffers.remove(0).len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_by_what_is_about_as_long() {
        let mut kept = Kept { bytes: 0, buffers: Vec::new() };
        kept.put(vec![1; 1_000_000]);
        kept.put(vec![2; 300_000]);
        assert_eq!(kept.take(499_999), None, "a small block would hold much memory");
        assert_eq!(kept.take(1_000_001), None);
        assert!(kept.take(250_000) == Some(vec![2; 300_000]));
        assert!(kept.take(500_000) == Some(vec![1; 1_000_000]));
        assert_eq!((kept.bytes, kept.buffers.len()), (0, 0));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut kept = Kept { bytes: 0, buffers: Vec::new() };
        for n in 1..=20 {
            kept.put(vec![n; (1 << 20) + 40]);
        }
        assert_eq!((kept.buffers.len(), kept.bytes), (15, 15 * ((1 << 20) + 40)));
        assert!(kept.buffers.iter().all(|buffer| buffer[0] > 5), "the oldest go first");
        kept.put(vec![0; MAX_KEPT + 1]);
        assert_eq!((kept.buffers.len(), kept.bytes), (0, 0));
        kept.put(vec![0; MIN_LEN - 1]);
        assert_eq!((kept.buffers.len(), kept.bytes), (0, 0), "short ones would be too many");
    }

    #[test]
    fn a_shared_buffer_shows_its_own_length() {
        let bytes = Buffer::filled(300, |bytes| {
            bytes.fill(7);
            Ok(())
        });
        assert_eq!(bytes.unwrap(), vec![7; 300]);
        assert!(Buffer::filled(5, |_| Err(io::ErrorKind::UnexpectedEof.into())).is_err());
    }
}
