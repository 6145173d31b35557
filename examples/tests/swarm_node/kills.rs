//! SIGKILL of any member, in the midst of it, and a member whose disk rots: whoever lives gets the file, and the store is read as
//! little as it may be.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use deploycore::model::{Digest, piece_size_for};
use deploycore_p2p::core::gate::Record;
use deploycore_p2p::net::{Counts, DiskCounts};

use crate::bed::{Running, Swarm, count, from_peers, wait_for};

const SIZE: usize = 24 << 20;
/// Slow enough that all of them are there long before any of them is done.
const SLOW: [&str; 2] = ["--limit-down", "3MiB"];
const LINGER: [&str; 2] = ["--linger", "600"];
/// What a process reads from files besides the artifact: libraries, counts, what the system tells of processors.
const OTHER_READS: u64 = 64 << 10;

impl Swarm {
    /// Which pieces a node has on disk, whole, in the file that it is writing.
    fn on_disk(&self, name: &str) -> Vec<bool> {
        let piece = piece_size_for(self.bytes.len() as u64) as usize;
        let found = std::fs::read(self.path(&format!("{name}.part"))).unwrap_or_default();
        let mut found = found.chunks(piece);
        self.bytes.chunks(piece).map(|good| found.next() == Some(good)).collect()
    }

    fn bytes_on_disk(&self, name: &str) -> u64 {
        let piece = piece_size_for(self.bytes.len() as u64) as usize;
        let lens = self.bytes.chunks(piece).map(|good| good.len() as u64);
        self.on_disk(name).into_iter().zip(lens).filter(|(there, _)| *there).map(|(_, len)| len).sum()
    }

    /// How many pieces are on some disk.
    fn read_so_far(&self, names: &[&str]) -> usize {
        let disks: Vec<Vec<bool>> = names.iter().map(|name| self.on_disk(name)).collect();
        (0..disks[0].len()).filter(|piece| disks.iter().any(|disk| disk[*piece])).count()
    }

    /// What the gate that is dead by now counted for good.
    fn counts(&self) -> Record {
        let counts = DiskCounts::open(self.path("file.manifest.counts")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(counts.load(&Digest::of(&self.bytes))).unwrap().unwrap()
    }

    /// Kills the gate; gives the bytes of the file that it read for others in this life.
    fn kill_gate(&mut self) -> u64 {
        let read = self.gate.take().unwrap().kill();
        // It hashed the file first.
        read.checked_sub(self.bytes.len() as u64).expect("it hashes the file")
    }

    /// Invariant 9, when `lives` are the bytes that the gate read in each of its lives.
    fn assert_budget_kept(&self, lives: &[u64]) {
        let (record, size) = (self.counts(), self.bytes.len() as u64);
        let read: u64 = lives.iter().map(|life| life.saturating_sub(OTHER_READS)).sum();
        println!("read {lives:?}; counted {} and {} for recovery, of {size}", record.leased, record.recovery);
        assert!(lives.iter().sum::<u64>() >= size, "not what was read");
        assert!(read <= record.leased + record.recovery, "{read} bytes were read, more than counted: {record:?}");
        let budget = (size * 6 / 5).max(size + 8 * piece_size_for(size));
        assert!(record.leased <= budget, "{record:?}");
    }
}

#[test]
fn sigkill_of_the_tracker_of_the_gate_for_ten_seconds_and_of_three_peers_in_ten() {
    let mut swarm = Swarm::new(SIZE);
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let more = [SLOW, LINGER].concat();
    let mut nodes: BTreeMap<&str, Running> = names.iter().map(|name| (*name, swarm.fetch(name, &more))).collect();
    let pieces = swarm.on_disk("a").len();
    let under_way = || {
        let each = names.iter().all(|name| swarm.on_disk(name).contains(&true));
        each && swarm.read_so_far(&names) >= pieces / 5
    };
    wait_for("pieces", under_way);

    let mut lives = vec![swarm.kill_gate()];
    swarm.tracker.take().unwrap().kill();
    let victims = ["a", "b", "c"];
    for victim in victims {
        nodes.remove(victim).unwrap().kill();
    }
    let dead_since = Instant::now();
    assert!(swarm.read_so_far(&names) < pieces, "the store was read whole before it went");
    let kept = victims.map(|victim| swarm.bytes_on_disk(victim));
    assert!(kept.iter().all(|bytes| (1..SIZE as u64).contains(bytes)), "{kept:?}");

    swarm.start_tracker();
    // The third never comes back.
    for victim in ["a", "b"] {
        nodes.insert(victim, swarm.fetch(victim, &more));
    }
    while dead_since.elapsed() < Duration::from_secs(10) {
        assert!(nodes.values_mut().all(Running::is_running), "somebody gave up");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(names.iter().all(|name| !swarm.path(name).exists()), "whole without the store");
    swarm.start_gate();

    for name in nodes.keys() {
        let stats = swarm.stats_in_time(name);
        swarm.assert_holds(&swarm.path(name));
        let resumed = victims.iter().position(|victim| victim == name).map_or(0, |at| kept[at]);
        assert_eq!(count(&stats, "resumed"), resumed, "{name}: {stats}");
        let fetched = count(&stats, "from_store") + from_peers(&stats);
        assert_eq!(fetched, SIZE as u64 - resumed, "{name} fetched what it had: {stats}");
        assert_eq!(count(&stats, "bad_pieces"), 0, "{name}: {stats}");
    }
    assert!(nodes.values_mut().all(Running::is_running), "they linger");
    println!("whole after {:?}", dead_since.elapsed());
    lives.push(swarm.kill_gate());
    swarm.assert_budget_kept(&lives);
}

#[test]
fn a_peer_whose_disk_rots_is_refused_at_once_and_for_long() {
    let mut swarm = Swarm::new(SIZE);
    let rotten = swarm.fetch("rotten", &LINGER);
    swarm.stats_in_time("rotten");
    // In the file that it serves from.
    std::fs::write(swarm.path("rotten"), vec![7; SIZE]).unwrap();
    let names = ["a", "b", "c"];
    let nodes = names.map(|name| swarm.fetch(name, &[SLOW, LINGER].concat()));
    let mut bad_pieces = 0;
    for (name, node) in names.iter().zip(&nodes) {
        let stats = swarm.stats_in_time(name);
        swarm.assert_holds(&swarm.path(name));
        assert!(stats["from_peers"].get("rotten").is_none(), "{stats}");
        assert_eq!(count(&stats, "from_store") + from_peers(&stats), SIZE as u64, "{stats}");
        // What was under way when the first of it did not verify; later it is asked for nothing.
        let bad = count(&stats, "bad_pieces");
        assert!(bad * piece_size_for(SIZE as u64) <= 4 << 20, "{name}: {stats}");
        let refusals = node.said("sent bad bytes; it is refused").len() as u64;
        assert_eq!(refusals, u64::from(bad > 0), "{name}: {stats}");
        bad_pieces += bad;
    }
    assert!(bad_pieces > 0, "nobody asked it for anything");
    drop(rotten);
    let life = swarm.kill_gate();
    swarm.assert_budget_kept(&[life]);
}

/// Kills somebody every second or so for a minute. Run with `cargo test -p deploycore-examples --test swarm_node -- --ignored one_after`;
/// `DEPLOYCORE_KILL_SEED` repeats a run.
#[test]
#[ignore = "takes two minutes"]
fn one_after_the_other_is_killed_for_a_minute() {
    let seed = std::env::var("DEPLOYCORE_KILL_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("DEPLOYCORE_KILL_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut swarm = Swarm::new(SIZE);
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    // Nobody is done before the killing is.
    let more = ["--limit-down", "384KiB", "--linger", "600"];
    let mut nodes = names.map(|name| Some(swarm.fetch(name, &more)));
    let (start, mut lives) = (Instant::now(), Vec::new());
    while start.elapsed() < Duration::from_mins(1) {
        std::thread::sleep(Duration::from_millis(rng.u64(200..1_500)));
        match rng.usize(..names.len() + 2) {
            0 => {
                swarm.tracker.take().unwrap().kill();
                std::thread::sleep(Duration::from_millis(rng.u64(..2_000)));
                swarm.start_tracker();
            }
            1 => {
                lives.push(swarm.kill_gate());
                std::thread::sleep(Duration::from_millis(rng.u64(..2_000)));
                swarm.start_gate();
            }
            node => {
                let name = names[node - 2];
                nodes[node - 2].take().unwrap().kill();
                let kept = swarm.bytes_on_disk(name);
                nodes[node - 2] = Some(swarm.fetch(name, &more));
                println!("{:?}: {name} begins again with {kept} bytes", start.elapsed());
            }
        }
    }
    for (name, node) in names.iter().zip(&mut nodes) {
        node.take().unwrap().kill();
        let _ = std::fs::remove_file(swarm.path(&format!("{name}.json")));
        *node = Some(swarm.fetch(name, &LINGER));
    }
    for name in names {
        let stats = swarm.stats_in_time(name);
        swarm.assert_holds(&swarm.path(name));
        assert_eq!(count(&stats, "bad_pieces"), 0, "{name}: {stats}");
    }
    println!("whole after {:?}", start.elapsed());
    lives.push(swarm.kill_gate());
    swarm.assert_budget_kept(&lives);
}
