//! What a node keeps in memory, apart from pages of files: little, however large the artifacts are.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use deploycore::model::{Manifest, ManifestHasher, RegionName};
use deploycore::port::PeerSwarm;
use deploycore_p2p::{Node, NodeSettings, Security};
use tokio_util::sync::CancellationToken;

use crate::bed::{Running, Swarm, anonymous_memory, count, from_peers, wait_long_for};

const FETCHING: u64 = 128 << 20;
const SEEDING_IDLE: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_mins(10);
/// A process that ended has no memory to be asked for.
const LINGER: [&str; 2] = ["--linger", "3600"];

fn sparse(path: &Path, size: u64) {
    File::create(path).unwrap().set_len(size).unwrap();
}

/// The most memory that a process had until its file was in place.
fn most_until_whole(swarm: &Swarm, name: &str, node: &Running) -> u64 {
    let (mut most, stats) = (0, swarm.path(&format!("{name}.json")));
    wait_long_for("stats", PATIENCE, || {
        most = most.max(node.anonymous_memory());
        stats.exists()
    });
    most
}

/// A node that fetches from the gate alone, and then one that fetches from two others, which serve it.
fn fetch_within_bounds(size: u64) {
    let swarm = Swarm::with_file(|path| sparse(path, size));
    let node = swarm.fetch("a", &LINGER);
    let from_gate = most_until_whole(&swarm, "a", &node);
    let stats = swarm.stats("a");
    assert_eq!(count(&stats, "from_store"), size, "{stats}");
    println!("from the gate: {} MiB in {} s", from_gate >> 20, stats["seconds"]);
    drop(node);
    std::fs::remove_file(swarm.path("a")).unwrap();

    // The same file under other names takes no room.
    let seeds = ["s", "t"].map(|name| {
        std::fs::hard_link(swarm.path("file"), swarm.path(name)).unwrap();
        (name, swarm.fetch(name, &LINGER))
    });
    for (name, seed) in &seeds {
        most_until_whole(&swarm, name, seed);
    }
    let node = swarm.fetch("b", &LINGER);
    let mut serving = 0;
    let stats = swarm.path("b.json");
    let mut from_two = 0;
    wait_long_for("stats", PATIENCE, || {
        from_two = from_two.max(node.anonymous_memory());
        serving = seeds.iter().map(|(_, seed)| seed.anonymous_memory()).fold(serving, u64::max);
        stats.exists()
    });
    let stats = swarm.stats("b");
    assert_eq!(from_peers(&stats), size, "{stats}");
    println!("from two peers: {} MiB in {} s; a peer: {} MiB", from_two >> 20, stats["seconds"], serving >> 20);
    for most in [from_gate, from_two, serving] {
        assert!(most <= FETCHING, "{most} bytes");
    }
}

#[test]
fn a_node_that_fetches_keeps_little_in_memory() {
    fetch_within_bounds(1 << 30);
}

/// Takes 10 GB of disk while it runs. Run with
/// `cargo test --release -p deploycore-examples --test swarm_node -- --ignored --nocapture ten_gigabytes`.
#[test]
#[ignore = "takes minutes, and 10 GB of disk"]
fn a_node_that_fetches_ten_gigabytes_keeps_little_in_memory() {
    fetch_within_bounds(10_000_000_000);
}

const FOLDER: &str = "DEPLOYCORE_SEEDER_FOLDER";
const TRACKER: &str = "DEPLOYCORE_SEEDER_TRACKER";
const ARTIFACTS: usize = 20;

/// The process that seeds: it says `seeding` when it does, and ends when its standard input does.
#[test]
#[ignore = "a process of the tests beside it"]
fn seeder() {
    let (Ok(folder), Ok(tracker)) = (std::env::var(FOLDER), std::env::var(TRACKER)) else {
        return;
    };
    let seed = async {
        let region = RegionName::new("swarm").unwrap();
        let settings = NodeSettings::new("seeder", region, Security::PlainTcp).with_tracker(tracker);
        let node = Node::bind(settings).await.unwrap();
        let seed = async {
            for number in 0..ARTIFACTS {
                let file = Path::new(&folder).join(format!("artifact-{number}"));
                let manifest = std::fs::read(file.with_extension("manifest")).unwrap();
                let manifest: Manifest = serde_json::from_slice(&manifest).unwrap();
                node.seed(Arc::new(manifest), file).await.unwrap();
            }
            println!("seeding");
            let end = || std::io::stdin().lines().for_each(drop);
            tokio::task::spawn_blocking(end).await.unwrap();
        };
        tokio::select! {
            () = seed => {}
            () = node.run(CancellationToken::new()) => unreachable!("it is not told to end"),
        }
    };
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(seed);
}

struct Seeder(Child);

impl Drop for Seeder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A node that seeds 20 artifacts of this size, before anybody asked it for anything and after some did.
fn seed_within_bounds(size: u64) {
    // The swarm's own file is of no interest.
    let swarm = Swarm::with_file(|path| sparse(path, 1));
    for number in 0..ARTIFACTS {
        let path = swarm.path(&format!("artifact-{number}"));
        sparse(&path, size);
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[number as u8 + 1], 0).unwrap();
        std::fs::write(path.with_extension("manifest"), serde_json::to_vec(&manifest_of(&path)).unwrap()).unwrap();
    }
    let mut seeder = Command::new(std::env::current_exe().unwrap());
    seeder.args(["--exact", "memory::seeder", "--ignored", "--nocapture"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    seeder.env(FOLDER, swarm.path("")).env(TRACKER, &swarm.tracker_addr);
    let mut seeder = Seeder(seeder.spawn().unwrap());
    let mut lines = BufReader::new(seeder.0.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("seeding")), "it seeds");
    let fresh = anonymous_memory(seeder.0.id());

    let fetches: Vec<(String, Running)> = (0..4).map(|number| fetch_of(&swarm, number)).collect();
    let mut serving = 0;
    for (name, node) in fetches {
        wait_long_for("file", PATIENCE, || {
            serving = serving.max(anonymous_memory(seeder.0.id()));
            swarm.path(&name).exists()
        });
        drop(node);
    }
    // Buffers are given back in a moment, or never.
    let idle = || anonymous_memory(seeder.0.id());
    let mut least = u64::MAX;
    for _ in 0..30 {
        std::thread::sleep(Duration::from_millis(100));
        least = least.min(idle());
    }
    println!("seeding: {} MiB; serving: {} MiB; after it: {} MiB", fresh >> 20, serving >> 20, least >> 20);
    assert!(fresh <= SEEDING_IDLE, "{fresh} bytes before anybody asked");
    assert!(least <= SEEDING_IDLE, "{least} bytes after some asked");
}

fn manifest_of(path: &Path) -> Manifest {
    struct Hasher(ManifestHasher);
    impl Write for Hasher {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut hasher = Hasher(ManifestHasher::new());
    std::io::copy(&mut BufReader::with_capacity(1 << 20, File::open(path).unwrap()), &mut hasher).unwrap();
    hasher.0.finish()
}

fn fetch_of(swarm: &Swarm, number: usize) -> (String, Running) {
    let name = format!("copy-{number}");
    let mut fetch = crate::bed::swarm_node(&["fetch", "--tracker", &swarm.tracker_addr, "--insecure"]);
    fetch.args(["--listen", "127.0.0.1:0", "--name", &name]);
    fetch.arg("--manifest").arg(swarm.path(&format!("artifact-{number}.manifest")));
    fetch.arg("--out").arg(swarm.path(&name));
    (name, Running::spawn(&mut fetch))
}

#[test]
fn a_node_that_seeds_twenty_artifacts_keeps_little_in_memory() {
    seed_within_bounds(64 << 20);
}

/// Run with `cargo test --release -p deploycore-examples --test swarm_node -- --ignored --nocapture twenty_large`.
#[test]
#[ignore = "takes minutes, and 4 GB of disk"]
fn a_node_that_seeds_twenty_large_artifacts_keeps_little_in_memory() {
    seed_within_bounds(1 << 30);
}
