//! `swarm-node` as processes on loopback.

#[path = "swarm_node/bed.rs"]
mod bed;
#[path = "swarm_node/kills.rs"]
mod kills;
#[path = "swarm_node/memory.rs"]
mod memory;

use std::path::Path;

use serde_json::Value;

use bed::{Running, Swarm, count, from_peers, swarm_node, wait_for};

const SIZE: usize = 24 << 20;

#[test]
fn several_nodes_take_the_file_from_each_other_and_from_the_gate_once() {
    let swarm = Swarm::new(SIZE);
    let names = ["a", "b", "c"];
    // At this rate, all of them are there while pieces are still missing.
    let mut nodes = names.map(|name| swarm.fetch(name, &["--linger", "60", "--limit-down", "16MiB"]));
    for name in names {
        swarm.stats_in_time(name);
        // The file is in place before the stats are.
        swarm.assert_holds(&swarm.path(name));
        assert!(!swarm.path(&format!("{name}.part")).exists());
    }
    let stats = names.map(|name| swarm.stats(name));
    for (name, stats) in names.iter().zip(&stats) {
        assert_eq!(count(stats, "bytes"), SIZE as u64);
        assert_eq!(count(stats, "from_store") + from_peers(stats), SIZE as u64, "{name}: {stats}");
        assert_eq!((count(stats, "resumed"), count(stats, "bad_pieces")), (0, 0), "{name}: {stats}");
        let peers = stats["from_peers"].as_object().unwrap();
        assert!(
            !peers.is_empty() && peers.keys().all(|peer| peer != name && names.contains(&peer.as_str())),
            "{stats}"
        );
        assert!(stats["cpu_seconds"].as_f64().unwrap() > 0.0 && stats["seconds"].as_f64().unwrap() >= 1.0, "{stats}");
    }
    let read: u64 = stats.iter().map(|stats| count(stats, "from_store")).sum();
    assert!((SIZE as u64..=SIZE as u64 * 6 / 5).contains(&read), "{read} bytes were read");

    let mut standing = Value::Null;
    wait_for("standing", || {
        standing = swarm.standing().unwrap_or_default();
        standing["complete"] == 3
    });
    assert_eq!((&standing["fetchers"], &standing["bound"]["term"]), (&3.into(), &"downlink".into()), "{standing}");
    assert_eq!(standing["bound"]["time"], 1.5);
    let slowest = stats.iter().map(|stats| stats["seconds"].as_f64().unwrap()).fold(0.0, f64::max);
    let ratio = standing["ratios"]["max"].as_f64().unwrap();
    assert!((0.9..=slowest / 1.5 + 0.1).contains(&ratio), "{slowest} s: {standing}");
    assert_eq!(count(&standing, "from_store"), read);

    for node in &mut nodes {
        assert!(node.is_running(), "it lingers");
        node.tell_to_end();
        assert_eq!(node.end().code(), Some(0));
    }
    assert_eq!(swarm.verify("a").status.code(), Some(0));
}

/// Eight nodes in two zones: without these, each would take half of what it gets from peers from the other four, 2 files a zone.
#[test]
fn nodes_of_a_zone_take_the_file_from_each_other_rather_than_from_another_zone() {
    let swarm = Swarm::new(SIZE);
    let zones = ["east", "west"];
    let name = |zone: &str, at: usize| format!("{zone}-{at}");
    let mut nodes = Vec::new();
    for at in 0..4 {
        for zone in zones {
            nodes.push(swarm.fetch(&name(zone, at), &["--linger", "60", "--limit-down", "4MiB", "--zone", zone]));
        }
    }
    for zone in zones {
        let stats = (0..4).map(|at| {
            swarm.stats_in_time(&name(zone, at));
            swarm.assert_holds(&swarm.path(&name(zone, at)));
            swarm.stats(&name(zone, at))
        });
        let (entered, moved) = stats.fold((0, 0), |(entered, moved), stats| {
            (entered + count(&stats, "from_elsewhere"), moved + from_peers(&stats))
        });
        println!("{zone}: {entered} of {moved} bytes came from the other zone");
        assert!((1..=SIZE as u64 * 5 / 4).contains(&entered), "{entered} of {moved}");
    }
}

#[test]
fn what_is_on_disk_is_not_fetched_again_and_what_differs_is_replaced() {
    let swarm = Swarm::new(SIZE);
    let mut first = swarm.fetch("node", &["--limit-down", "4MiB"]);
    let part = swarm.path("node.part");
    let some = || std::fs::read(&part).is_ok_and(|bytes| bytes.iter().filter(|byte| **byte != 0).count() > 4 << 20);
    wait_for("pieces", some);
    first.tell_to_end();
    assert_eq!(first.end().code(), Some(4), "ended before it was whole");
    assert!(!swarm.path("node").exists() && !swarm.path("node.json").exists());

    assert_eq!(swarm.fetch("node", &[]).end().code(), Some(0));
    let stats = swarm.stats("node");
    assert!(count(&stats, "resumed") > 2 << 20, "{stats}");
    assert_eq!(count(&stats, "resumed") + count(&stats, "from_store") + from_peers(&stats), SIZE as u64, "{stats}");
    swarm.assert_holds(&swarm.path("node"));

    assert_eq!(swarm.fetch("node", &[]).end().code(), Some(0));
    let stats = swarm.stats("node");
    assert_eq!((count(&stats, "resumed"), count(&stats, "from_store")), (SIZE as u64, 0), "{stats}");

    let mut spoilt = swarm.bytes.clone();
    spoilt[SIZE / 2] ^= 1;
    std::fs::write(swarm.path("node"), &spoilt).unwrap();
    let verify = swarm.verify("node");
    assert_eq!(verify.status.code(), Some(3), "{verify:?}");
    assert!(String::from_utf8_lossy(&verify.stderr).contains("node holds"), "{verify:?}");
    assert_eq!(swarm.fetch("node", &[]).end().code(), Some(0));
    swarm.assert_holds(&swarm.path("node"));
}

#[test]
fn members_show_certificates_to_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    std::fs::write(path("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    let signed = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        std::fs::write(path(&format!("{name}.pem")), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        std::fs::write(path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        let (certificate, key) = (path(&format!("{name}.pem")), path(&format!("{name}.key")));
        let ca = path("ca.pem");
        ["--tls-cert", &certificate, "--tls-key", &key, "--tls-ca", &ca, "--tls-names", "--name", name]
            .map(str::to_owned)
    };
    let file = path("file");
    std::fs::write(&file, vec![3; 3 << 20]).unwrap();

    let mut tracker = swarm_node(&["tracker", "--listen", "127.0.0.1:0"]);
    let mut tracker = Running::spawn(tracker.args(signed("tracker")));
    let addr = tracker.address("tracker");
    let manifest = path("manifest");
    let mut gate = swarm_node(&["gate", "--tracker", &addr, "--listen", "127.0.0.1:0", "--manifest", &manifest, &file]);
    let _gate = Running::spawn(gate.args(signed("gate")));
    wait_for("manifest", || Path::new(&manifest).exists());

    let (out, stranger) = (path("out"), path("stranger"));
    let fetch = ["fetch", "--tracker", &addr, "--listen", "127.0.0.1:0", "--manifest", &manifest];
    let mut insecure = Running::spawn(swarm_node(&fetch).args(["--out", &stranger, "--insecure"]));
    let mut member = Running::spawn(swarm_node(&fetch).args(["--out", &out]).args(signed("m1")));
    assert_eq!(member.end().code(), Some(0));
    assert!(std::fs::read(&out).unwrap() == vec![3; 3 << 20]);
    assert!(insecure.is_running() && !Path::new(&stranger).exists(), "a stranger gets nothing");
}

#[test]
fn mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (junk, there) = (folder.path().join("junk"), folder.path().join("there"));
    std::fs::write(&junk, "{}").unwrap();
    let (junk, there) = (junk.to_str().unwrap(), there.to_str().unwrap());
    let nowhere = folder.path().join("missing/out");
    let nowhere = nowhere.to_str().unwrap();
    let fetch = ["fetch", "--tracker", "127.0.0.1:1", "--insecure", "--manifest"];
    let gate = ["gate", "--tracker", "127.0.0.1:1", "--insecure", "--manifest", there];
    let wrong: [(Vec<&str>, i32, &str); 7] = [
        ([&fetch[..], &[junk, "--out", there]].concat(), 1, "not a manifest"),
        ([&fetch[..], &[nowhere, "--out", there]].concat(), 1, "missing/out"),
        ([&gate[..], &[nowhere]].concat(), 1, "missing/out"),
        ([&gate[..], &[folder.path().to_str().unwrap()]].concat(), 1, "not a regular file"),
        (vec!["tracker", "--listen", "127.0.0.1:0"], 2, "--tls-cert"),
        (vec!["tracker", "--listen", "nonsense", "--insecure"], 1, "--listen nonsense"),
        ([&fetch[..], &[junk, "--out", there, "--limit-up", "0"]].concat(), 2, "--limit-up"),
    ];
    for (arguments, code, text) in wrong {
        let output = swarm_node(&arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(text), "{arguments:?}: {said}");
    }
}
