//! Builds end with all their processes, also those of a worker that is killed.

use super::*;

#[tokio::test]
async fn a_stopped_build_ends_with_all_its_processes() {
    let place = Place::new();
    let commit = place.commit("one");
    let builder = place.builder("trap '' TERM; sleep 600 & echo child=$!; wait; sleep 600").await;
    let build = Build::of(&commit).await;
    let stop = async {
        let child = build.told("child").await;
        build.context.stop.cancel();
        child
    };
    let (result, child) = tokio::join!(build.run(&builder), stop);
    assert!(matches!(result, Err(BuildError::Stopped)), "{result:?}");
    eventually("the child is gone", || !is_running(&child)).await;
    eventually("the folder is deleted", || place.build_folders() == 0).await;
}

#[tokio::test]
async fn a_build_past_its_time_limit_is_stopped_and_says_so() {
    let place = Place::new();
    let commit = place.commit("one");
    let settings = place.settings("echo child=$$; sleep 600").with_time_limit(Duration::from_millis(300));
    let build = Build::of(&commit).await;
    let error = build.run(&CommandBuilder::open(settings).await.unwrap()).await.unwrap_err();
    assert!(matches!(error, BuildError::Timeout(_)), "{error:?}");
    assert!(error.to_string().contains("300ms"), "{error}");
    let child = build.told("child").await;
    eventually("the command is gone", || !is_running(&child)).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_daemon_that_leaves_its_group_does_not_outlive_the_build() {
    let place = Place::new();
    let commit = place.commit("one");
    let daemon = "setsid sh -c 'echo child=$$; exec sleep 600' & while ! test -e out; do mkdir out; done; cp input out/binary; sleep 0.3";
    let build = Build::of(&commit).await;
    build.run(&place.builder(daemon).await).await.unwrap();
    let child = build.told("child").await;
    eventually("the daemon is gone", || !is_running(&child)).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_daemon_that_leaves_its_group_does_not_outlive_a_build_that_is_dropped() {
    let place = Place::new();
    let commit = place.commit("one");
    let builder = place.builder("setsid sh -c 'echo child=$$; exec sleep 600' & wait").await;
    let build = Build::of(&commit).await;
    let child = tokio::select! {
        _ = build.run(&builder) => panic!("the command takes ten minutes"),
        child = build.told("child") => child,
    };
    eventually("the daemon is gone", || !is_running(&child)).await;
    eventually("the folder is deleted", || place.build_folders() == 0).await;
}

/// Starts the victim and waits until its build wrote `file`, whose content it gives.
async fn victim(settings: &CommandBuilderSettings, commit: &CommitId, file: &Path) -> (std::process::Child, String) {
    let victim = victim_of(settings, commit).spawn().unwrap();
    let read = || std::fs::read_to_string(file).unwrap_or_default();
    eventually("the victim builds", || read().ends_with('\n')).await;
    (victim, read().trim().to_owned())
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_processes_of_a_killed_worker_do_not_live_on() {
    let place = Place::new();
    let commit = place.commit("one");
    let told = place.folder.path().join("child");
    let script =
        format!("trap '' TERM; sleep 600 & echo $! > {0}.new; mv {0}.new {0}; wait; sleep 600", told.display());
    let (mut victim, child) = victim(&place.settings(&script), &commit, &told).await;
    assert!(is_running(&child));
    victim.kill().unwrap();
    victim.wait().unwrap();
    // Nobody sweeps here: it is the watchdog who acts.
    eventually("the child is gone", || !is_running(&child)).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_later_builder_sweeps_what_a_killed_worker_left_and_nothing_else() {
    let place = Place::new();
    let commit = place.commit("one");
    let told = place.folder.path().join("child");
    // The daemon leaves the group, so that the watchdog does not see it.
    let script = format!("setsid sh -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 600' & wait", told.display());
    let (mut victim, child) = victim(&place.settings(&script), &commit, &told).await;

    let living = place.builder("sleep 1; mkdir out; cp input out/binary").await;
    let build = Build::of(&commit).await;
    let (mut output, ()) = tokio::join!(async { build.run(&living).await.unwrap() }, async {
        let _ = place.builder("true").await;
        assert!(is_running(&child), "a living worker's build was swept");
        victim.kill().unwrap();
        victim.wait().unwrap();
        let _ = place.builder("true").await;
    });
    assert_eq!(read(&mut output).await, "one");
    eventually("the daemon is gone", || !is_running(&child)).await;
    drop(output);
    eventually("the folders are deleted", || place.build_folders() == 0).await;
    let _: Arc<dyn Builder> = Arc::new(living);
}
