//! Connections that end when their other side is gone.

use std::time::Duration;

use axum::serve::{ListenerExt, TapIo};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};

/// After so long without a word the other side is asked whether it is there, and again after each interval; Linux counts to nine. A
/// machine that lost its power holds its connection, and its place among those who wait, for about three minutes.
const IDLE: Duration = Duration::from_mins(1);
const INTERVAL: Duration = Duration::from_secs(15);

/// A listener for [`axum::serve()`] whose connections do not outlive a machine that disappears without a word. For a host that serves
/// [`Gateway::router`](super::Gateway::router) itself.
pub fn keeping_alive(listener: TcpListener) -> TapIo<TcpListener, fn(&mut TcpStream)> {
    listener.tap_io(|stream| keep_alive(stream))
}

pub(super) fn keep_alive(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(IDLE).with_interval(INTERVAL);
    if let Err(error) = SockRef::from(stream).set_tcp_keepalive(&keepalive) {
        // It is served all the same.
        tracing::debug!(%error, "a connection is not kept under watch");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::serve::Listener;

    #[tokio::test]
    async fn an_accepted_connection_is_asked_whether_its_other_side_is_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut listener = keeping_alive(listener);
        let (_client, (accepted, _)) = tokio::join!(TcpStream::connect(address), listener.accept());
        assert!(SockRef::from(&accepted).keepalive().unwrap());
    }
}
