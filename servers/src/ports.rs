//! Ports that nobody listens on.

use std::net::{Ipv4Addr, TcpListener};

use crate::Error;

/// Different free ports of loopback. Another process may take one before the server does: start it again on others then.
pub fn free_ports<const N: usize>() -> Result<[u16; N], Error> {
    // All are held until the last is known, so that they differ.
    let mut held = Vec::with_capacity(N);
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Error::io("loopback"))?;
        *port = listener.local_addr().map_err(Error::io("loopback"))?.port();
        held.push(listener);
    }
    Ok(ports)
}
