//! What a seed decides before a run starts.

use std::time::Duration;

/// How often calls go wrong, in per mille of the calls of a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Fail before the effect.
    pub fail: u32,
    /// Fail after it.
    pub lose_reply: u32,
    /// Fail at once, and have the effect later.
    pub stray: u32,
    /// Take seconds.
    pub slow: u32,
    /// Take minutes.
    pub hang: u32,
    /// The service crashes, before the effect or after.
    pub crash: u32,
}

/// One world and its mishaps.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Of everything random in the run.
    pub seed: u64,
    /// Regions, 1 to 3.
    pub regions: usize,
    /// Machines in each region.
    pub machines: usize,
    /// Worker processes.
    pub workers: usize,
    /// Builds at once in each.
    pub slots: usize,
    /// Whether workers trust their leases for longer than the reaper does, as with clocks that run slow.
    pub slow_clocks: bool,
    /// Jobs that are enqueued.
    pub jobs: usize,
    /// Deploys and rollbacks that people want.
    pub changes: usize,
    /// Services that the jobs are of.
    pub services: usize,
    /// Pieces of the largest artifact.
    pub pieces: u64,
    /// Per mille of builds that never become ready on a machine.
    pub bad_builds: u32,
    /// Whether stores watch, or only polls bring news.
    pub watch: bool,
    /// How long things go wrong.
    pub storm: Duration,
    /// Between two mishaps of whole nodes, on average.
    pub calm: Duration,
    /// Per mille of reads from the network between machines in which a byte is wrong.
    pub noise: u32,
    /// Mishaps of calls.
    pub rates: Rates,
}

impl Settings {
    /// The settings of a seed: worlds of many shapes, from quiet ones to wild ones.
    pub fn of(seed: u64) -> Self {
        let mut random = stream(seed, "settings");
        let wild = random.u32(0..4);
        let mut rate = |most: u32| random.u32(0..=most) * wild / 3;
        let rates = Rates {
            fail: rate(80),
            lose_reply: rate(60),
            stray: rate(30),
            slow: rate(60),
            hang: rate(8),
            crash: rate(12),
        };
        let regions = [1, 1, 2, 3][random.usize(0..4)];
        // Many machines in one region make the swarm work, many regions the rest.
        let machines = if regions == 1 { random.usize(2..=5) } else { random.usize(1..=2) };
        Self {
            seed,
            regions,
            machines,
            workers: random.usize(1..=3),
            slots: random.usize(1..=2),
            slow_clocks: random.bool(),
            jobs: random.usize(2..=6),
            changes: random.usize(2..=8),
            services: random.usize(1..=2),
            pieces: [1, 1, 2, 3, 6][random.usize(0..5)],
            bad_builds: [0, 0, 150, 400][random.usize(0..4)],
            watch: random.bool(),
            storm: Duration::from_secs(random.u64(150..=500)),
            calm: Duration::from_secs(random.u64(5..=40)),
            noise: [0, 0, 20, 100][random.usize(0..4)],
            rates,
        }
    }
}

/// A generator for one purpose: what one part of a run draws does not change what another one draws.
pub fn stream(seed: u64, purpose: &str) -> fastrand::Rng {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(purpose.as_bytes());
    let bytes = hasher.finalize();
    let head: [u8; 8] = bytes.as_bytes()[..8].try_into().expect("a hash has eight bytes");
    fastrand::Rng::with_seed(u64::from_le_bytes(head))
}
