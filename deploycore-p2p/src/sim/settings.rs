//! What is simulated, and what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use deploycore::model::piece_size_for;
use deploycore::port::swarm::Priority;

use super::Shared;
use crate::core::bound::{Bound, Links};
use crate::core::gate::{self, Usage};
use crate::core::message::Zone;
use crate::core::shape::MAX_BLOCK;
use crate::core::tracker::SwarmStanding;
use crate::core::{peer, tracker};

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Machines that fetch.
    pub machines: usize,
    /// Bytes of the artifact.
    pub size: u64,
    /// Bytes a second of a machine's downlink.
    pub down: u64,
    /// Bytes a second of a machine's uplink.
    pub up: u64,
    /// Bytes a second that the store gives.
    pub store: u64,
    /// Zones that the machines are spread over; 0 for none.
    pub zones: usize,
    /// Bytes a second that leave a zone for others, and as many that enter it. No bound if not given.
    pub between: Option<u64>,
    /// One way, for messages and for a block's last byte.
    pub latency: Duration,
    /// Machines start within this time.
    pub arrivals: Duration,
    /// Machines that die for good, by number, and when.
    pub crashes: BTreeMap<usize, Duration>,
    /// Machines, by number, that give bad bytes.
    pub corrupt: Vec<usize>,
    /// When the tracker dies and starts anew with nothing known.
    pub tracker_restarts: Vec<Duration>,
    /// When the gate dies and starts anew from its durable counts.
    pub gate_restarts: Vec<Duration>,
    /// How many times as fast as the others' the links of a machine are, both ways, by number.
    pub links: BTreeMap<usize, f64>,
    /// Machines that start later, by number, and when.
    pub lates: BTreeMap<usize, Duration>,
    /// Machines that die, by number, and when. They start again 2 seconds later with the pieces they had.
    pub restarts: BTreeMap<usize, Duration>,
    /// Machines that are cut from all other members for a while.
    pub partitions: Vec<Partition>,
    /// When all machines start to fetch a second artifact, of the same size.
    pub second: Option<Duration>,
    /// How urgent the second artifact is; the first is normal.
    pub second_priority: Priority,
    /// The run is given up after this time.
    pub horizon: Duration,
    /// How the machines behave.
    pub peer: peer::Settings,
    /// How the gate behaves.
    pub gate: gate::Settings,
    /// How the tracker behaves.
    pub tracker: tracker::Settings,
    /// Seeds all choices.
    pub seed: u64,
    /// Threads that it is simulated on. The results do not depend on it.
    pub threads: usize,
}

impl Settings {
    /// Machines with equal links of `rate` bytes a second, and a store that feeds 25 of them.
    pub fn equal(machines: usize, size: u64, rate: u64, seed: u64) -> Self {
        Self {
            machines,
            size,
            down: rate,
            up: rate,
            store: 25 * rate,
            zones: 0,
            between: None,
            latency: Duration::from_micros(250),
            arrivals: Duration::from_millis(50),
            crashes: BTreeMap::new(),
            corrupt: Vec::new(),
            tracker_restarts: Vec::new(),
            gate_restarts: Vec::new(),
            links: BTreeMap::new(),
            lates: BTreeMap::new(),
            restarts: BTreeMap::new(),
            partitions: Vec::new(),
            second: None,
            second_priority: Priority::Normal,
            horizon: Duration::from_hours(1),
            peer: peer::Settings::default(),
            gate: gate::Settings::default(),
            tracker: tracker::Settings::default(),
            seed,
            threads: 1,
        }
    }

    /// What travels as one. A block is outstanding in full until its last byte comes: where it is a whole piece that would else be several
    /// blocks, twice as many bytes are outstanding from as many sources, and a machine serves a third more of them at once.
    pub fn set_max_block(&mut self, max_block: u32) {
        (self.peer.max_block, self.gate.max_block) = (max_block, max_block);
        let usual = peer::Settings::default();
        let larger = u64::from(max_block).min(piece_size_for(self.size)) > u64::from(MAX_BLOCK);
        let times = if larger { 2 } else { 1 };
        self.peer.max_outstanding = usual.max_outstanding * u64::from(times);
        self.peer.ahead = usual.ahead * times;
        self.peer.slots = if larger { usual.slots + usual.slots / 3 } else { usual.slots };
    }

    /// The shortest time in which all machines can have the artifact, and what makes it so: a machine's link, the store's, or
    /// what all uplinks can give together. The machines' links count as equal.
    pub fn bound(&self) -> Bound {
        self.links_of_all().bound(self.size, self.machines)
    }

    /// In how many parts a region is simulated. One where something passes between members at once: the links between zones do, and
    /// without a latency all does.
    pub(super) fn parts(&self) -> usize {
        let is_divisible = self.zones == 0 && self.latency >= Duration::from_micros(1);
        if is_divisible { self.threads.clamp(1, self.machines.max(1)) } else { 1 }
    }

    pub(super) fn tracking(&self) -> tracker::Settings {
        tracker::Settings { links: Some(self.links_of_all()), ..self.tracker.clone() }
    }

    fn links_of_all(&self) -> Links {
        Links { down: self.down, up: self.up, store: self.store }
    }

    /// Whether the run waits for a machine: it does not for those that die for good, nor for those that nobody deals with once
    /// they gave bad bytes.
    pub fn must_complete(&self, machine: usize) -> bool {
        !self.crashes.contains_key(&machine) && !self.corrupt.contains(&machine)
    }

    /// When a machine's time begins to count.
    pub(super) fn counts_from(&self, machine: usize) -> Duration {
        self.lates.get(&machine).copied().unwrap_or_default()
    }

    /// The zone of a machine: one after the other has the next. Gate and tracker are in none.
    pub(super) fn zone(&self, place: usize) -> Option<Zone> {
        (self.zones > 0 && place < self.machines).then(|| Zone((place % self.zones) as u64))
    }

    /// The zones that a block leaves and enters on its way between two machines, if these are two.
    pub(super) fn crossing(&self, from: usize, to: usize) -> Option<(usize, usize)> {
        let (Some(Zone(from)), Some(Zone(to))) = (self.zone(from), self.zone(to)) else { return None };
        (from != to).then_some((from as usize, to as usize))
    }

    pub(super) fn is_cut(&self, one: usize, other: usize, at: Duration) -> bool {
        let cut = |partition: &Partition| (partition.from..partition.to).contains(&at) && partition.splits(one, other);
        self.partitions.iter().any(cut)
    }
}

/// Machines that for a while reach each other only: no other machine, no tracker, no gate.
#[derive(Debug, Clone)]
pub struct Partition {
    /// By number.
    pub machines: BTreeSet<usize>,
    /// When their connections to the others break.
    pub from: Duration,
    /// When they may connect again.
    pub to: Duration,
}

impl Partition {
    /// Whether two members are on different sides.
    pub(super) fn splits(&self, one: usize, other: usize) -> bool {
        self.machines.contains(&one) != self.machines.contains(&other)
    }
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// The bound of the settings.
    pub bound: Bound,
    /// How long after its start each machine was complete; the start is that of the run, or its own for one that starts late.
    pub completed: Vec<Option<Duration>>,
    /// The same for the second artifact, from when that started. Empty when there is none.
    pub second: Vec<Option<Duration>>,
    /// What each machine received of both artifacts in each of the first [`SHARED_SECONDS`](super::SHARED_SECONDS) seconds
    /// after the second one's start. Empty when there is none.
    pub shared: Vec<Vec<Shared>>,
    /// What was read of the store, as counted, of the first artifact.
    pub usage: Usage,
    /// Bytes that the store gave, of all artifacts.
    pub store_bytes: u64,
    /// Bytes that entered each zone from others.
    pub crossed: Vec<u64>,
    /// Bytes that the machines received for nothing.
    pub wasted: u64,
    /// Machines that were found to be corrupt by someone.
    pub quarantined: usize,
    /// What the tracker knew at the end.
    pub standings: Vec<SwarmStanding>,
    /// Events handled.
    pub events: u64,
    /// What the simulation took on all its threads.
    pub cpu: Duration,
    /// What machines that should have completed and did not wait for.
    pub stuck: Vec<String>,
}

impl Report {
    /// The time of the slowest machine that completed as a multiple of the bound.
    pub fn ratio_max(&self) -> f64 {
        self.ratio(1.0)
    }

    /// The time in which this share of the completed machines was complete, as a multiple of the bound.
    pub fn ratio(&self, share: f64) -> f64 {
        self.ratio_of(share, self.completed.iter().flatten().copied())
    }

    /// The same for some times.
    pub(super) fn ratio_of(&self, share: f64, times: impl Iterator<Item = Duration>) -> f64 {
        let mut times: Vec<Duration> = times.collect();
        times.sort_unstable();
        let at = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len().max(1)) - 1;
        times.get(at).map_or(f64::INFINITY, |time| self.bound.ratio(*time))
    }
}
