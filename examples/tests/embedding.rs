//! The small embedding programs end with 0 and say what they should.

use std::process::Command;

fn said(program: &str) -> String {
    let output = Command::new(program).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn a_queue_and_a_custom_worker() {
    assert!(said(env!("CARGO_BIN_EXE_embed-queue")).contains("SUCCEEDED"));
}

#[test]
fn a_custom_backend_under_the_kit() {
    let text = said(env!("CARGO_BIN_EXE_custom-backend"));
    assert!(text.lines().filter(|line| line.starts_with("ok ")).count() > 20, "{text}");
}

#[test]
fn the_whole_pipeline_in_one_process() {
    let text = said(env!("CARGO_BIN_EXE_embed-pipeline"));
    assert_eq!(text.matches("runs on 6 machines").count(), 3, "{text}");
}
