//! A discrete-event simulator of one region: the machines of [`core`](crate::core), unchanged, on a network of queues.
//!
//! Each member has an uplink, which sends one block after the other at its rate, and a downlink, which receives at its rate; a
//! block is on both at the same time, as on a switched network. Messages take the latency. No bytes are moved: a block is
//! its length and whether it is good. The same settings give the same run.
//!
//! A large region is simulated in several parts, each on a thread of its own, as [Chandy and Misra] have it: since nothing passes between
//! members in less than the latency, the parts may each go on by that much before they must hear of each other. What happens does not
//! depend on how the region is divided, for each member is told what comes to it in one order: of time, and within an instant of who sent
//! it.
//!
//! [Chandy and Misra]: https://doi.org/10.1145/358598.358613

pub mod command;
mod events;
mod mail;
mod member;
mod part;
mod queue;
mod settings;
mod shared;
mod traffic;

use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use deploycore::model::Digest;
use rustix::time::{ClockId, clock_gettime};

use self::part::Part;
pub use self::settings::{Partition, Report, Settings};
pub use self::shared::{SHARED_SECONDS, Second, Shared};
use crate::core::gate::Record;
use crate::core::message::{Addr, Block, ConnId, Message, Payload, PeerId};

/// A block without its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    len: u32,
    good: bool,
}

impl Payload for Token {
    fn byte_len(&self) -> usize {
        self.len as usize
    }
}

/// A member, by its place: machines first, then the tracker, then the gate.
type Place = usize;

#[derive(Debug)]
enum Event {
    Wake(Place),
    Start(Place),
    Crash(Place),
    /// A machine dies, to start again.
    Restart(Place),
    /// This one of the partitions begins.
    Cut(usize),
    /// All machines start with the second artifact.
    Second,
    RestartTracker,
    RestartGate,
    /// The gate connects to the tracker.
    DialTracker,
    /// A connection attempt reaches the other side.
    Dialed {
        from: Place,
        conn: ConnId,
        /// Which life of the one who dialed.
        life: u32,
        to: Place,
    },
    /// The other side took it.
    Answered {
        at: Place,
        conn: ConnId,
        with: Place,
        there: ConnId,
        life: u32,
    },
    /// The other side is not there.
    Refused(Place, ConnId),
    /// For the member, which lets be what comes on a connection that it does not know, or not any more.
    Message(Place, ConnId, Message),
    /// A machine looks at the announcements that came.
    Look(Place),
    Closed(Place, ConnId),
    Sent(Place, ConnId, u32),
    /// The last byte of a block is at the receiver's downlink, if that is free.
    Arrives(Place, ConnId, Block<Token>),
    Block(Place, ConnId, Block<Token>),
    /// The last byte of a block has left the sender, which is in another zone than the receiver.
    Crosses {
        zones: (usize, usize),
        at: Place,
        conn: ConnId,
        block: Block<Token>,
    },
    Stored {
        at: Place,
        life: u32,
        artifact: usize,
        piece: u32,
        good: Vec<bool>,
        hashes: bool,
    },
    Loaded(u32, Digest),
    Persisted {
        life: u32,
        artifact: usize,
        version: u64,
        record: Record,
    },
}

/// Simulates until every machine that [must complete](Settings::must_complete) has, and to the end of that latency, or until the horizon.
///
/// # Panics
///
/// When a state machine does.
pub fn run(settings: Settings) -> Report {
    let (bound, start) = (settings.bound(), cpu_time());
    let (machines, corrupt) = (settings.machines, settings.corrupt.clone());
    let parts = settings.parts();
    let (mut parts, cpu) = run_all(Part::divide(settings, parts));
    let hub = parts.iter_mut().find_map(|part| Some((part.take_hub()?, part.now)));
    let (hub, end) = hub.expect("a part has the tracker and the gate");
    let has_second = parts[0].shapes.len() > 1;
    let wasted = parts.iter().map(Part::wasted).sum();
    let stuck = parts.iter().flat_map(Part::stuck).collect();
    let events = parts.iter().map(|part| part.events).sum();
    // Where there are zones there is one part.
    let crossed = std::mem::take(&mut parts[0].crossed);
    let members: Vec<_> = parts.into_iter().flat_map(|part| part.members).take(machines).collect();
    let found = |machine: &&usize| {
        let mut running = members.iter().filter_map(|member| member.peer.as_ref());
        running.any(|peer| peer.is_quarantined(id(**machine)))
    };
    let completed = |artifact: usize| members.iter().map(|member| member.completed[artifact]).collect();
    Report {
        bound,
        quarantined: corrupt.iter().filter(found).count(),
        standings: hub.tracker.standings(end),
        crossed,
        usage: hub.records[0].usage(),
        store_bytes: hub.store_bytes,
        wasted,
        events,
        stuck,
        completed: completed(0),
        second: if has_second { completed(1) } else { Vec::new() },
        // And what this thread took before and after.
        cpu: cpu + cpu_time().saturating_sub(start),
        shared: if has_second { members.into_iter().map(|member| member.shared).collect() } else { Vec::new() },
    }
}

/// Runs the parts to the end, each on a thread of its own; gives them in their order, and the CPU time that all took.
fn run_all(parts: Vec<Part>) -> (Vec<Part>, Duration) {
    let routes = mail::routes(parts.len());
    let run = |(part, routes): (Part, Vec<mail::Route>)| {
        let cpu = cpu_time();
        let part = part.run(&routes);
        (part, cpu_time().saturating_sub(cpu))
    };
    thread::scope(|scope| {
        let threads: Vec<_> = parts.into_iter().zip(routes).map(|part| scope.spawn(move || run(part))).collect();
        let ended = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        ended.fold((Vec::new(), Duration::ZERO), |(mut parts, cpu), (part, more)| {
            parts.push(part);
            (parts, cpu + more)
        })
    })
}

/// What this thread has taken, in the kernel too.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn id(place: Place) -> PeerId {
    // Scattered, so that no order of the ids means anything.
    PeerId((place as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn addr(place: Place) -> Addr {
    Addr::from(place.to_string())
}
