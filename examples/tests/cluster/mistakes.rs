//! Bad input ends with a message that names the thing and the way out.

use crate::bed::{cluster, repository, run};

/// Runs the program, which must fail, and gives what it said.
fn refusal(args: &[&str]) -> String {
    let output = run(args);
    assert!(!output.status.success(), "{args:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_unknown_flag_is_named() {
    assert!(refusal(&["--regoins", "3"]).contains("--regoins"));
}

#[test]
fn a_repository_without_a_command_is_refused() {
    assert!(refusal(&["--repo", "."]).contains("--command"));
}

#[test]
fn an_unknown_commit_is_named_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    repository(folder.path());
    let repo = folder.path().to_str().unwrap();
    let said = refusal(&["--repo", repo, "--commit", "0123456789", "--command", "true", "--output", "x"]);
    assert!(said.contains("commit 0123456789 is not in repository"), "{said}");
}

#[test]
fn a_failing_command_and_a_missing_output_are_told_with_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let commit = repository(folder.path());
    let repo = folder.path().to_str().unwrap();
    let small = ["--regions", "1", "--machines", "1", "--workers", "1"];
    for (command, expected) in [("echo so it went; exit 3", "so it went"), ("true", "bin/app")] {
        let data = tempfile::tempdir().unwrap();
        let mut args = vec!["--repo", repo, "--commit", &commit, "--command", command, "--output", "bin/app"];
        args.extend(["--data-dir", data.path().to_str().unwrap()]);
        args.extend(small);
        let said = refusal(&args);
        assert!(said.contains(expected) && said.contains(&commit), "{command}: {said}");
    }
}

#[test]
fn a_folder_of_another_version_or_of_somebody_else_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    std::fs::write(folder.path().join("VERSION"), "deploycore cluster 99\n").unwrap();
    let said = refusal(&["--data-dir", dir]);
    assert!(said.contains("cluster 99") && said.contains("--data-dir"), "{said}");

    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("letter.txt"), "dear").unwrap();
    assert!(refusal(&["--data-dir", other.path().to_str().unwrap()]).contains("is not empty"));
}

#[test]
fn a_taken_port_is_named() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    let said = refusal(&["--listen", &address]);
    assert!(said.contains(&address) && said.contains("--listen"), "{said}");
}

#[test]
fn a_report_that_cannot_be_written_is_told_before_the_work() {
    let said = refusal(&["--report", "/nowhere/r.json"]);
    assert!(said.contains("/nowhere/r.json"), "{said}");
}

#[test]
fn what_was_refused_does_not_bind_the_data_folder() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let asked = |payload: &str| refusal(&["--data-dir", dir, "--payload", payload]);
    assert!(asked("1PiB").contains("smaller payload"));
    let again = asked("2PiB");
    assert!(again.contains("smaller payload"), "{again}");
}

/// The parent saw it free, and then somebody took it.
#[test]
fn a_port_that_is_taken_later_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap();
    let config = folder.path().join("cluster.toml");
    let replica =
        format!("{{ host = '127.0.0.1', gateway_port = {}, gate_port = 0, tracker_port = 0 }}", address.port());
    std::fs::write(&config, format!("state = 'state'\n[regions.eu]\nreplicas = [{replica}]\n")).unwrap();
    let output = cluster().args(["role", "region", "--config"]).arg(&config).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&format!("{address} cannot be listened on")), "{said}");
}

#[test]
fn a_payload_that_cannot_fit_is_refused_before_anything_starts() {
    let said = refusal(&["--payload", "1PiB"]);
    assert!(said.contains("free"), "{said}");
}

#[test]
fn an_unknown_key_in_a_configuration_is_named_on_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("cluster.toml");
    std::fs::write(&config, "[regions.eu]\n[agent]\nregoin = 'eu'\n").unwrap();
    let path = config.to_str().unwrap();
    let expected = format!("error: {path}:3: unknown key regoin: did you mean region?\n");
    for (args, code) in [(&["check"][..], 2), (&["role", "agent"], 1), (&[], 1), (&["status"], 1)] {
        let output = run(&[args, &["--config", path]].concat());
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.ends_with(&expected), "{args:?}: {said}");
    }
}

#[test]
fn what_is_missing_beside_a_file_is_named_by_its_flag_and_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("cluster.toml");
    std::fs::write(&config, "[worker]\nrepository = '/r'\ncommand = 'true'\n").unwrap();
    let said = refusal(&["--config", config.to_str().unwrap()]);
    assert!(said.contains("--commit SHA, --output FILE") && said.contains("commits in [local]"), "{said}");
}

#[test]
fn a_cluster_that_does_not_run_is_told() {
    assert!(refusal(&["status"]).contains("--data-dir"));
    assert!(refusal(&["status", "--api", "http://127.0.0.1:9/"]).contains("does not answer"));
}
