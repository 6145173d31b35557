//! The file on a disk that loses power: of what was not synced any part is gone, in any order.

use std::io;
use std::sync::{Arc, Mutex};

use ::redb::StorageBackend;
use deploycore::model::{Digest, Goal};
use deploycore::port::goals::{Expect, Index, Snapshot};

use super::disk::{Disk, builder};

/// What happened to the disk.
#[derive(Debug, Clone)]
enum Step {
    Length(u64),
    Write(u64, Vec<u8>),
    Sync,
    /// So many commits are acknowledged.
    Acknowledged(usize),
}

#[derive(Debug, Clone, Default)]
struct Platter(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    steps: Vec<Step>,
}

impl Platter {
    fn with(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(State { bytes, steps: Vec::new() })))
    }

    fn take(&self, step: Step) {
        let mut state = self.0.lock().unwrap();
        apply(&mut state.bytes, &step);
        state.steps.push(step);
    }
}

fn apply(bytes: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Length(length) => bytes.resize(*length as usize, 0),
        Step::Write(at, data) => {
            let (start, end) = (*at as usize, *at as usize + data.len());
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[start..end].copy_from_slice(data);
        }
        Step::Sync | Step::Acknowledged(_) => {}
    }
}

impl StorageBackend for Platter {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().bytes.len() as u64)
    }
    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.lock().unwrap();
        let span = state.bytes.get(at as usize..at as usize + out.len());
        out.copy_from_slice(span.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.take(Step::Length(length));
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        self.take(Step::Sync);
        Ok(())
    }
    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.take(Step::Write(at, data.to_vec()));
        Ok(())
    }
}

fn open(platter: &Platter) -> (Disk, Index) {
    Disk::on("platter".into(), builder().create_with_backend(platter.clone()).unwrap()).unwrap()
}

fn goal(service: &str, generation: u64) -> Goal {
    serde_json::from_value(serde_json::json!({
        "service": service, "epoch": 0, "generation": generation,
        "artifact": {"name": "a", "digest": Digest::of(b""), "size": generation},
        "run": {}, "selector": {}, "origin": {"kind": "deploy"}, "created_at": "2026-01-01T00:00:00Z",
    }))
    .unwrap()
}

/// Commits one to three goals, again and again; what is stored after each commit, the empty store first.
fn commits(platter: &Platter, count: usize, random: &mut fastrand::Rng) -> Vec<Snapshot> {
    let (disk, mut index) = open(platter);
    let mut snapshots = vec![index.list("")];
    platter.take(Step::Acknowledged(0));
    for done in 1..=count {
        let mut written = Vec::new();
        for service in ["api", "web", "worker"].iter().take(random.usize(1..=3)) {
            let stored = index.get(&service.parse().unwrap()).cloned();
            let expect = stored.map_or(Expect::Absent, |stored| Expect::At(stored.revision));
            let goal = goal(service, done as u64);
            index.put(goal.clone(), expect).unwrap();
            written.extend(index.get(&goal.service).cloned());
        }
        disk.write(written.iter(), &index).unwrap();
        snapshots.push(index.list(""));
        platter.take(Step::Acknowledged(done));
    }
    snapshots
}

#[test]
fn an_acknowledged_goal_survives_a_loss_of_power_at_any_step() {
    const COMMITS: usize = 12;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let (mut random, platter) = (fastrand::Rng::with_seed(seed), Platter::default());
    let snapshots = commits(&platter, COMMITS, &mut random);
    let steps = std::mem::take(&mut platter.0.lock().unwrap().steps);
    let (mut synced, mut unsynced, mut acknowledged) = (Vec::new(), Vec::<Step>::new(), None);
    let mut losses = 0;
    for step in steps {
        match step {
            Step::Sync => unsynced.drain(..).for_each(|step| apply(&mut synced, &step)),
            Step::Acknowledged(commits) => acknowledged = Some(commits),
            step => unsynced.push(step),
        }
        let Some(commits) = acknowledged else { continue };
        let mut left = synced.clone();
        unsynced.iter().filter(|_| random.bool()).for_each(|step| apply(&mut left, step));
        let (_, found) = open(&Platter::with(left));
        let found = found.list("");
        // Of the commit that was under way all is there or nothing.
        let allowed = &snapshots[commits..(commits + 2).min(snapshots.len())];
        assert!(allowed.contains(&found), "seed {seed}, loss {losses}, after {commits} commits: {found:?}");
        losses += 1;
    }
    assert!(losses > 3 * COMMITS, "only {losses} moments to lose power at");
}
