//! Ports that no other test has.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Error;

/// Below those that Linux gives to outgoing connections (`ip_local_port_range`, from 32768 on): none of these takes one.
const RANGE: Range<u16> = 12_000..32_000;

/// A port of loopback, held: no other of these, of any process, has the same number. Nobody listens there when it is taken, and the port is
/// its holder's also while the server on it is down.
///
/// A port that is only looked up, to be bound by a server later, may be given to two servers at once. The second ends, but who asks
/// whether it answers is answered by the first, and two tests work on one server.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// Bound to a name of the kernel's that stands for the port. It goes with the process, and is another in another network namespace,
    /// where the port is another too.
    _hold: UnixListener,
}

impl Port {
    /// Takes one.
    pub fn take() -> Result<Self, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Processes begin far from each other, and a number that was left comes again late.
        let spread = process::id().wrapping_mul(7_919);
        for _ in RANGE {
            let next = spread.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
            let number = RANGE.start + (next % RANGE.len() as u32) as u16;
            match Self::hold(number) {
                Ok(port) => return Ok(port),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(Error::io("loopback")(error)),
            }
        }
        Err(Error::io("loopback")(io::Error::other(format!("no port of {RANGE:?} is free"))))
    }

    fn hold(number: u16) -> io::Result<Self> {
        let name = SocketAddr::from_abstract_name(format!("deploycore-port-{number}"))?;
        let hold = UnixListener::bind_addr(&name)?;
        // Somebody else's server may be there.
        TcpListener::bind((Ipv4Addr::LOCALHOST, number))?;
        Ok(Self { number, _hold: hold })
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn what_is_held_is_taken_by_nobody_else() {
        let ports: Vec<_> = (0..500).map(|_| Port::take().unwrap()).collect();
        let numbers: HashSet<_> = ports.iter().map(Port::number).collect();
        assert_eq!(numbers.len(), ports.len());
        for number in numbers {
            assert_eq!(Port::hold(number).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
    }

    #[test]
    fn a_port_that_serves_is_passed_over() {
        let port = Port::take().unwrap();
        let number = port.number();
        let _server = TcpListener::bind((Ipv4Addr::LOCALHOST, number)).unwrap();
        drop(port);
        assert_eq!(Port::hold(number).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
