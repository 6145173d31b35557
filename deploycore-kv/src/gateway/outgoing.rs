//! A connection whose other side must take what it is sent.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// A stream that fails with `TimedOut` when its other side has not taken an answer whole by `limit` after it began to refuse bytes. An
/// answer that it takes at once costs no timer.
#[derive(Debug)]
pub(super) struct Outgoing<S> {
    stream: S,
    limit: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> Outgoing<S> {
    pub(super) fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, deadline: None }
    }

    /// What a write comes to that the stream answers with `written`.
    fn within(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            return written;
        }
        let limit = self.limit;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(deadline.as_mut().poll(cx));
        metrics::counter!("deploycore_gateway_slow_readers_total").increment(1);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the other side does not take what it asked for")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Outgoing<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Outgoing<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.within(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.within(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Called when all that was to be written is.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.deadline = None;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn one_who_takes_a_byte_at_times_is_cut_off_all_the_same() {
        let (near, mut far) = duplex(16);
        let mut near = Outgoing::new(near, LIMIT);
        let started = Instant::now();
        let trickle = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                far.read_u8().await.unwrap();
            }
        };
        let cut = tokio::select! {
            cut = near.write_all(&[0; 1_000]) => cut,
            () = trickle => unreachable!("it goes on for ever"),
        };
        assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() <= LIMIT + Duration::from_secs(1), "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_counts_for_each_answer_anew() {
        let (near, mut far) = duplex(16);
        let mut near = Outgoing::new(near, LIMIT);
        for _ in 0..5 {
            let taken = async {
                tokio::time::sleep(LIMIT / 2).await;
                far.read_exact(&mut [0; 20]).await.unwrap();
            };
            let sent = async {
                near.write_all(&[0; 20]).await.unwrap();
                near.flush().await.unwrap();
            };
            tokio::join!(taken, sent);
        }
    }
}
