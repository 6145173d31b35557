//! The tool `swarm-sim`, as a user runs it.
#![cfg(feature = "sim")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn swarm_sim(args: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_swarm-sim")).args(args.split_whitespace()).output().unwrap()
}

/// Runs two regions of 20 machines and gives what was written, which must be all there.
fn results(folder: &Path, more: &str) -> Value {
    let file = folder.join("out.json");
    let output = swarm_sim(&format!(
        "--machines 40 --regions 2 --down 10MiB/s --up 10MiB/s --json {} {more} {}",
        file.display(),
        if more.contains("--size") { "" } else { "--size 8MiB" }
    ));
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// What was measured of the simulation itself differs from run to run.
fn without_costs(mut results: Value) -> Value {
    for region in results["regions"].as_array_mut().unwrap() {
        let region = region.as_object_mut().unwrap();
        assert!(region.remove("cpu_seconds").unwrap().as_f64().unwrap() > 0.0);
        assert!(region.remove("wall_seconds").unwrap().as_f64().unwrap() > 0.0);
    }
    results
}

#[test]
fn two_regions_are_told_in_full() {
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("plot.svg");
    let results = results(folder.path(), &format!("--seed 7 --block 64KiB --plot {}", plot.display()));
    let settings = &results["settings"];
    for (field, value) in [("machines", 40), ("size", 8 << 20), ("down", 10 << 20), ("seed", 7), ("block", 64 << 10)] {
        assert_eq!(settings[field], value, "{field}");
    }
    assert_eq!(settings["latency"], 0.000_25);
    assert_eq!(settings["peer"]["degree"], 32);
    let regions = results["regions"].as_array().unwrap();
    assert_eq!(regions.len(), 2);
    for (number, region) in regions.iter().enumerate() {
        assert_eq!((&region["region"], &region["machines"]), (&Value::from(number), &Value::from(20)));
        assert_eq!((&region["bound_seconds"], &region["binding_term"]), (&Value::from(0.8), &Value::from("downlink")));
        let ratio = |field: &str| region[field].as_f64().unwrap_or_else(|| panic!("{field} in {region}"));
        assert!(0.95 <= ratio("ratio_p50") && ratio("ratio_p50") <= ratio("ratio_p99"), "{region}");
        assert!(ratio("ratio_p99") <= ratio("ratio_max") && ratio("ratio_max") < 2.0, "{region}");
        assert_eq!(region["healthy_ratio_max"], region["ratio_max"], "all are");
        assert!((1.0..1.2).contains(&ratio("store_copies")), "{region}");
        assert!(region["events"].as_u64().unwrap() > 1_000);
        for field in ["incomplete", "quarantined"] {
            assert_eq!(region[field], 0, "{field}");
        }
        assert!(region["wasted_bytes"].is_u64() && region.get("second_ratio_max").is_none());
        assert!(region.get("second_shares").is_none());
    }
    let plot = fs::read_to_string(plot).unwrap();
    assert!(plot.starts_with("<svg"), "{plot}");
    for colour in ["#E6194B", "#3CB44B"] {
        let lines = plot.matches(&format!("stroke=\"{colour}\"")).count();
        assert_eq!(lines, 1, "a line a region: {plot}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing unfinished is left");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let faults = "--crash 10% --slow 10% --corrupt 1";
    let [one, two] =
        ["1", "2"].map(|threads| without_costs(results(folder.path(), &format!("{faults} --threads {threads}"))));
    assert_eq!(one, two);
    // One that is large enough to be divided.
    let large = folder.path().join("large.json");
    let [one_thread, two_threads] = [1, 2].map(|threads| {
        let output = swarm_sim(&format!("--machines 1000 --size 1MiB --threads {threads} --json {}", large.display()));
        assert!(output.status.success(), "{output:?}");
        without_costs(serde_json::from_slice(&fs::read(&large).unwrap()).unwrap())
    });
    assert_eq!(one_thread, two_threads);
    let other = without_costs(results(folder.path(), &format!("{faults} --seed 2")));
    assert_ne!(one["regions"], other["regions"]);
}

#[test]
fn faults_stop_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let faults = "--crash 10% --slow 10%:3 --restart 20% --partition 20%:100ms:3s --late 10% --corrupt 1 --spread 10%:2 \
                  --tracker-death 300ms --gate-death 400ms";
    let results = results(folder.path(), faults);
    for region in results["regions"].as_array().unwrap() {
        assert_eq!(region["incomplete"], 0);
        let max = region["ratio_max"].as_f64().unwrap();
        assert!(max > 3.0 / 0.8, "machines were cut off until 3 s: {region}");
    }
}

#[test]
fn each_fault_costs_what_it_should() {
    let folder = tempfile::tempdir().unwrap();
    let region = |more: &str| results(folder.path(), more)["regions"][0].clone();
    let ratio = |region: &Value, field: &str| region[field].as_f64().unwrap();

    let slow = region("--slow 5%:4");
    assert!(ratio(&slow, "ratio_max") > 3.5 && ratio(&slow, "healthy_ratio_max") < 3.0, "{slow}");
    let restarted = region("--restart 10%");
    assert!(ratio(&restarted, "ratio_max") > 2.0 / 0.8, "they were gone for 2 s: {restarted}");
    let late = region("--late 10%:5s");
    assert!(ratio(&late, "ratio_max") < 2.0, "theirs counts from their start: {late}");
    let second = region("--second 5s");
    assert!((1.0..2.0).contains(&ratio(&second, "second_ratio_max")), "{second}");
    assert!((2.0..2.4).contains(&ratio(&second, "store_copies")), "{second}");
    assert!(second.get("second_shares").is_none(), "it took less than a second: {second}");
    let share = |priority: &str| {
        let region = region(&format!("--size 64MiB --block 256KiB --second 2s --second-priority {priority}"));
        assert_eq!(region["second_shares"][2]["machines"], 20, "{region}");
        ratio(&region["second_shares"][2], "share")
    };
    let [normal, high, rollback] = ["normal", "high", "rollback"].map(share);
    assert!((0.4..0.6).contains(&normal) && (0.7..0.9).contains(&high) && rollback > 0.9, "{normal} {high} {rollback}");
    let fast = region("--spread 100%:2");
    assert!(ratio(&fast, "ratio_p50") < 1.0, "the bound is that of the common rate: {fast}");
}

#[test]
fn what_does_not_complete_is_told() {
    let output = swarm_sim("--machines 4 --size 8MiB --down 1MiB/s --horizon 2s");
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("did not: 4") && error.contains("region 0, machine 3: "), "{error}");
}

#[test]
fn a_wrong_command_line_is_told_in_one_line() {
    for (args, option) in [
        ("--machines 4 --size big", "--size"),
        ("--machines 4 --size 1MB --down 1G", "--down"),
        ("--machines 4 --size 1MB --store 0Gbps", "--store"),
        ("--machines 2 --size 1MB --regions 3", "--machines"),
        ("--machines 4 --size 1MB --crash 200%", "--crash"),
        ("--machines 4 --size 1MB --partition 10%:2s:1s", "--partition"),
        ("--machines 4 --size 1MB --json /no/such/folder/out.json", "--json"),
        ("--size 1MB", "--machines"),
        ("--machines 4 --size 1MB --what", "--what"),
    ] {
        let output = swarm_sim(args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args}: {error}");
        assert!(error.contains(option) && error.lines().count() == 1, "{args}: {error}");
        assert!(output.stdout.is_empty());
    }
}
