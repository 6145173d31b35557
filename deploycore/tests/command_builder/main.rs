//! The command builder on real git repositories, real commands and real signals.

#![cfg(feature = "process")]

mod ending;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use deploycore::build::{
    BuildCommand, BuildContext, BuildError, BuildLog, BuildOutput, Builder, CommandBuilder, CommandBuilderSettings,
    OpenError,
};
use deploycore::memory::{Clock, Queue};
use deploycore::model::{CommitId, Job, NewJob, ServiceName, WorkerName};
use deploycore::port::queue::ClaimRequest;
use deploycore::port::{JobQueue, JobQueueExt, chain};
use futures::TryStreamExt;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_mins(1);

/// A repository with a scratch folder beside it.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(place.repository()).unwrap();
        place.git(&["init", "--quiet", "--initial-branch=main"]);
        place
    }

    fn repository(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    fn scratch(&self) -> PathBuf {
        self.folder.path().join("scratch")
    }

    fn git(&self, args: &[&str]) -> String {
        let mut git = Command::new("git");
        git.current_dir(self.repository()).args(["-c", "user.name=t", "-c", "user.email=t@example.org"]).args(args);
        let output = git.env_remove("GIT_DIR").env_remove("GIT_INDEX_FILE").output().unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Commits a file with this content and gives the commit.
    fn commit(&self, content: &str) -> CommitId {
        std::fs::write(self.repository().join("input"), content).unwrap();
        self.git(&["add", "."]);
        self.git(&["commit", "--quiet", "--message", content]);
        CommitId::new(self.git(&["rev-parse", "HEAD"])).unwrap()
    }

    fn settings(&self, command: &str) -> CommandBuilderSettings {
        let repository = self.repository().to_string_lossy().into_owned();
        CommandBuilderSettings::new(repository, command, "out/binary", self.scratch())
            .with_stop_grace(Duration::from_millis(500))
    }

    async fn builder(&self, command: &str) -> CommandBuilder {
        CommandBuilder::open(self.settings(command)).await.unwrap()
    }

    /// The one mirror in the scratch folder.
    fn mirror(&self) -> PathBuf {
        let mut mirrors = std::fs::read_dir(self.scratch().join("mirrors")).unwrap().map(|entry| entry.unwrap().path());
        mirrors.find(|path| path.is_dir()).unwrap()
    }

    fn build_folders(&self) -> usize {
        std::fs::read_dir(self.scratch().join("builds")).unwrap().count()
    }
}

struct Build {
    job: Job,
    context: BuildContext,
}

impl Build {
    async fn of(commit: &CommitId) -> Self {
        let queue = Queue::new(Clock::default());
        let job = NewJob::new(ServiceName::new("web").unwrap(), commit.clone());
        queue.enqueue_one(&job).await.unwrap();
        let worker = WorkerName::new("w").unwrap();
        let claim = ClaimRequest { claim: deploycore::model::ClaimId::new(), worker, limit: 1 };
        let job = queue.claim(&claim).await.unwrap().remove(0);
        let lease = job.running.as_ref().unwrap().lease;
        Self { job, context: BuildContext::new(lease, CancellationToken::new(), BuildLog::new(64 << 10)) }
    }

    async fn run(&self, builder: &CommandBuilder) -> Result<BuildOutput, BuildError> {
        timeout(LONG, builder.build(&self.job, &self.context)).await.expect("the build hangs")
    }

    fn log(&self) -> String {
        String::from_utf8(self.context.log.contents().to_vec()).unwrap()
    }

    /// Waits until the log has a line `key=value` and gives the value.
    async fn told(&self, key: &str) -> String {
        let look = async {
            loop {
                let prefix = format!("{key}=");
                // Only whole lines count.
                let log = self.log();
                let whole = log.rfind('\n').map_or("", |end| &log[..end]);
                if let Some(value) = whole.lines().find_map(|line| line.strip_prefix(&prefix)) {
                    return value.to_owned();
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(LONG, look).await.unwrap_or_else(|_| panic!("no {key} in the log:\n{}", self.log()))
    }
}

async fn read(output: &mut BuildOutput) -> String {
    let chunks: Vec<_> = output.open().unwrap().try_collect().await.unwrap();
    String::from_utf8(chunks.concat()).unwrap()
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let look = async {
        while !holds() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, look).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn is_running(id: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"));
    stat.is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or_default().starts_with('Z'))
}

const BUILD: &str = "mkdir -p out && { cat input; echo \"$DEPLOYCORE_SERVICE $DEPLOYCORE_COMMIT\"; } > out/binary";

#[tokio::test]
async fn each_commit_is_built_from_its_own_tree() {
    let place = Place::new();
    let (one, two) = (place.commit("one\n"), place.commit("two\n"));
    let builder = place.builder(BUILD).await;
    for (commit, content) in [(&two, "two\n"), (&one, "one\n")] {
        let build = Build::of(commit).await;
        let mut output = build.run(&builder).await.unwrap();
        assert_eq!(read(&mut output).await, format!("{content}web {commit}\n"));
        assert!(build.log().contains(BUILD), "{}", build.log());
    }
    eventually("the folders are deleted", || place.build_folders() == 0).await;
}

#[tokio::test]
async fn a_commit_that_came_after_the_mirror_is_fetched_also_off_every_branch_and_abbreviated() {
    let place = Place::new();
    let first = place.commit("first\n");
    let builder = place.builder(BUILD).await;
    Build::of(&first).await.run(&builder).await.unwrap();
    let side = place.commit("side\n");
    place.git(&["reset", "--quiet", "--hard", first.as_str()]);
    let later = place.commit("later\n");
    let short = CommitId::new(&later.as_str()[..10]).unwrap();
    for (commit, content) in [(&side, "side"), (&short, "later"), (&later, "later")] {
        let mut output = Build::of(commit).await.run(&builder).await.unwrap();
        assert!(read(&mut output).await.starts_with(content));
    }
}

#[tokio::test]
async fn an_unknown_commit_fails_for_good_and_names_commit_and_repository() {
    let place = Place::new();
    place.commit("one");
    let builder = place.builder(BUILD).await;
    for unknown in ["0123456789012345678901234567890123456789", "abcdef0"] {
        let commit = CommitId::new(unknown).unwrap();
        let error = Build::of(&commit).await.run(&builder).await.unwrap_err();
        let BuildError::Build(text) = &error else { panic!("{error:?}") };
        let repository = place.repository().canonicalize().unwrap();
        assert!(text.contains(unknown) && text.contains(&*repository.to_string_lossy()), "{text}");
    }
    // A branch with a name like an abbreviated commit is none.
    place.git(&["branch", "abcdef0"]);
    let error = Build::of(&CommitId::new("abcdef0").unwrap()).await.run(&builder).await.unwrap_err();
    assert!(matches!(error, BuildError::Build(_)), "{error:?}");
}

#[tokio::test]
async fn a_repository_that_is_away_is_tried_again() {
    let place = Place::new();
    let commit = place.commit("one");
    let hidden = place.folder.path().join("hidden");
    let builder = place.builder(BUILD).await;
    std::fs::rename(place.repository(), &hidden).unwrap();
    let error = Build::of(&commit).await.run(&builder).await.unwrap_err();
    assert!(matches!(error, BuildError::Infrastructure { .. }), "{error:?}");
    std::fs::rename(&hidden, place.repository()).unwrap();
    Build::of(&commit).await.run(&builder).await.unwrap();
}

#[tokio::test]
async fn a_password_in_the_url_of_the_repository_is_shown_to_nobody() {
    let place = Place::new();
    // Its port is free again.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut settings = place.settings(BUILD);
    settings.repository = format!("http://ci:s3cret@127.0.0.1:{port}/web.git");
    let shown = format!("http://***@127.0.0.1:{port}/web.git");
    let builder = CommandBuilder::open(settings).await.unwrap();
    assert!(!format!("{builder:?}").contains("s3cret"), "{builder:?}");
    let build = Build::of(&CommitId::new("abcdef0").unwrap()).await;
    let error = chain(&build.run(&builder).await.unwrap_err());
    for text in [error, build.log()] {
        assert!(text.contains(&shown) && !text.contains("s3cret"), "{text}");
    }
}

#[tokio::test]
async fn slots_and_builders_share_one_mirror_at_once() {
    let place = Place::new();
    let commits: Vec<_> = (0..4).map(|number| place.commit(&format!("{number}\n"))).collect();
    let (a, b) = (place.builder(BUILD).await, place.builder(BUILD).await);
    let builds = commits.iter().enumerate().map(|(number, commit)| {
        let builder = if number % 2 == 0 { &a } else { &b };
        async move {
            let mut output = Build::of(commit).await.run(builder).await.unwrap();
            assert!(read(&mut output).await.starts_with(&number.to_string()));
        }
    });
    futures::future::join_all(builds).await;
    let mirrors = std::fs::read_dir(place.scratch().join("mirrors")).unwrap();
    let mirrors = mirrors.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "git"));
    assert_eq!(mirrors.count(), 1);
}

#[tokio::test]
async fn a_failing_command_fails_for_good_with_its_last_words() {
    let place = Place::new();
    let commit = place.commit("one");
    for (command, wanted) in [
        ("echo compiling; echo 'no such type' >&2; exit 7", "exit code 7"),
        ("echo 'no such type'; kill -ABRT $$", "signal 6"),
        ("echo 'no such type'", "left no output file out/binary"),
        ("echo 'no such type'; mkdir -p out/binary", "is no file"),
        ("echo 'no such type'; mkdir out; ln -s /bin/sh out/binary", "leads out of the checkout"),
    ] {
        let build = Build::of(&commit).await;
        let error = build.run(&place.builder(command).await).await.unwrap_err();
        assert!(matches!(error, BuildError::Build(_)), "{error:?}");
        assert!(error.to_string().contains(wanted), "{error}");
        assert!(build.log().contains("no such type"), "{}", build.log());
    }
}

#[tokio::test]
async fn what_the_worker_is_to_blame_for_is_tried_again() {
    let place = Place::new();
    let commit = place.commit("one");
    std::fs::write(place.folder.path().join("no-program"), "").unwrap();
    let shell = |script: &str| BuildCommand::Shell(script.to_owned());
    let program = |argv: &[&str]| BuildCommand::Program(argv.iter().map(|&arg| arg.to_owned()).collect());
    let unreadable = place.folder.path().join("no-program").display().to_string();
    let blame_worker = [
        shell("kill -KILL $$"),
        // A shell under the shell had the signal.
        shell("sh -c 'kill -KILL $$'; exit $?"),
        program(&["sh", "-c", "exit 137"]),
        program(&["no-such-program"]),
        program(&[&unreadable]),
    ];
    // What a script calls, it may have misspelt.
    let blame_commit = [shell("no-such-program"), shell(&unreadable), program(&["sh", "-c", "exit 125"])];
    for (commands, is_workers) in [(&blame_worker[..], true), (&blame_commit[..], false)] {
        for command in commands {
            let settings = place.settings("").with_command(command.clone());
            let builder = CommandBuilder::open(settings).await.unwrap();
            let error = Build::of(&commit).await.run(&builder).await.unwrap_err();
            assert_eq!(matches!(error, BuildError::Infrastructure { .. }), is_workers, "{command}: {error:?}");
            assert_eq!(matches!(error, BuildError::Build(_)), !is_workers, "{command}: {error:?}");
        }
    }
}

#[tokio::test]
async fn no_build_starts_on_a_full_disk_and_it_is_tried_again() {
    let place = Place::new();
    let commit = place.commit("one");
    let settings = place.settings(BUILD).with_keep_free(ByteSize::pib(1));
    let build = Build::of(&commit).await;
    let error = build.run(&CommandBuilder::open(settings.clone()).await.unwrap()).await.unwrap_err();
    assert!(matches!(error, BuildError::Infrastructure { .. }), "{error:?}");
    assert!(error.to_string().contains("less than the 1.0 PiB of keep_free"), "{error}");
    assert!(!build.log().contains("checked out"), "{}", build.log());

    let builder = CommandBuilder::open(settings.with_keep_free(ByteSize::b(0))).await.unwrap();
    Build::of(&commit).await.run(&builder).await.unwrap();
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_build_that_fails_on_a_disk_that_it_filled_is_tried_again() {
    let place = Place::new();
    let commit = place.commit("one");
    // Nothing is written: the disk only has so much less. Others may write and delete up to half of it meanwhile.
    let hog = ByteSize::gib(2);
    let fill = format!("fallocate -l {} hog || exit 9; ", hog.as_u64());
    for (end, wanted) in [("exit 1", "exit code 1"), ("true", "left no output file")] {
        let disk = rustix::fs::statvfs(place.folder.path()).unwrap();
        let keep_free = ByteSize::b(disk.f_bavail * disk.f_frsize - hog.as_u64() / 2);
        for (command, is_full) in [(end.to_owned(), false), (format!("{fill}{end}"), true)] {
            let settings = place.settings(&command).with_keep_free(keep_free);
            let error = Build::of(&commit).await.run(&CommandBuilder::open(settings).await.unwrap()).await.unwrap_err();
            assert_eq!(matches!(error, BuildError::Infrastructure { .. }), is_full, "{command}: {error:?}");
            assert!(chain(&error).contains(wanted), "{error:?}");
            eventually("the folder is deleted", || place.build_folders() == 0).await;
        }
    }
}

#[tokio::test]
async fn a_mirror_that_was_damaged_is_made_anew_and_no_repository_around_it_is_touched() {
    let place = Place::new();
    let first = place.commit("first\n");
    // The scratch folder lies within a repository, as that of a worker under development may.
    let around = Place::new();
    around.commit("around");
    around.git(&["branch", "precious"]);
    let mut settings = place.settings(BUILD);
    settings.scratch = around.repository().join("scratch");
    let builder = CommandBuilder::open(settings.clone()).await.unwrap();
    Build::of(&first).await.run(&builder).await.unwrap();
    let references = around.git(&["for-each-ref"]);

    let mirrors = settings.scratch.join("mirrors");
    let mirror = || {
        let entries = std::fs::read_dir(&mirrors).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir()).collect::<Vec<_>>()
    };
    let [only] = &mirror()[..] else { panic!("{:?}", mirror()) };
    // What a loss of power may leave of a file.
    std::fs::write(only.join("HEAD"), "").unwrap();
    let second = place.commit("second\n");
    for (commit, content) in [(&second, "second"), (&first, "first")] {
        let mut output = Build::of(commit).await.run(&builder).await.unwrap();
        assert!(read(&mut output).await.starts_with(content));
    }
    assert_eq!(mirror(), std::slice::from_ref(only), "nothing is left of the damaged one");
    assert_eq!(around.git(&["for-each-ref"]), references);
}

#[tokio::test]
async fn a_commit_that_arrived_is_built_although_a_reference_could_not_be_moved() {
    let place = Place::new();
    let first = place.commit("first\n");
    let builder = place.builder(BUILD).await;
    Build::of(&first).await.run(&builder).await.unwrap();
    // What a fetch that was killed may leave.
    let stale = place.mirror().join("refs/heads/main.lock");
    std::fs::create_dir_all(stale.parent().unwrap()).unwrap();
    std::fs::write(&stale, "").unwrap();
    let second = place.commit("second\n");
    let mut output = Build::of(&second).await.run(&builder).await.unwrap();
    assert!(read(&mut output).await.starts_with("second"));
    assert!(stale.exists(), "the mirror is the same");
}

#[tokio::test]
async fn what_fetches_left_that_were_killed_goes_with_the_next_one_and_nothing_else() {
    let place = Place::new();
    let first = place.commit("first\n");
    let builder = place.builder(BUILD).await;
    Build::of(&first).await.run(&builder).await.unwrap();
    let objects = place.mirror().join("objects");
    let packs = || {
        let names = std::fs::read_dir(objects.join("pack")).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| !name.to_string_lossy().contains("tmp")).collect::<BTreeSet<_>>()
    };
    let whole = packs();
    let unfinished = ["pack/tmp_pack_oQ1xYz", "pack/tmp_idx_oQ1xYz", "pack/.tmp-77-pack-0123.pack", "tmp_obj_oQ1xYz"];
    let unfinished = unfinished.map(|name| objects.join(name));
    for file in &unfinished {
        std::fs::write(file, "half a pack").unwrap();
    }
    let second = place.commit("second\n");
    for (commit, content) in [(&second, "second"), (&first, "first")] {
        let mut output = Build::of(commit).await.run(&builder).await.unwrap();
        assert!(read(&mut output).await.starts_with(content));
    }
    for file in &unfinished {
        assert!(!file.exists(), "{}", file.display());
    }
    assert!(packs().is_superset(&whole));
}

#[tokio::test]
async fn a_scratch_folder_that_somebody_keeps_locked_holds_no_stopped_build() {
    let place = Place::new();
    let commit = place.commit("one");
    let builder = place.builder(BUILD).await;
    let lock = std::fs::File::options().write(true).open(place.scratch().join("lock")).unwrap();
    lock.lock().unwrap();
    let build = Build::of(&commit).await;
    let stop = async {
        tokio::task::yield_now().await;
        build.context.stop.cancel();
    };
    let (result, ()) = tokio::join!(build.run(&builder), stop);
    assert!(matches!(result, Err(BuildError::Stopped)), "{result:?}");
    lock.unlock().unwrap();
    Build::of(&commit).await.run(&builder).await.unwrap();
}

#[tokio::test]
async fn a_program_without_a_shell_gets_its_arguments_as_they_are() {
    let place = Place::new();
    let commit = place.commit("one");
    let argv = ["cp", "input", "a $HOME; b"].map(str::to_owned);
    let mut settings = place.settings("").with_command(BuildCommand::Program(argv.to_vec()));
    settings.output = "a $HOME; b".into();
    let mut output = Build::of(&commit).await.run(&CommandBuilder::open(settings).await.unwrap()).await.unwrap();
    assert_eq!(read(&mut output).await, "one");
}

#[tokio::test]
async fn the_environment_is_the_builds_own() {
    let place = Place::new();
    let commit = place.commit("one");
    let command = "mkdir out; env > out/binary";
    let settings = place.settings(command).with_env("GREETING", "hello world");
    let mut output = Build::of(&commit).await.run(&CommandBuilder::open(settings).await.unwrap()).await.unwrap();
    let env = read(&mut output).await;
    assert!(env.contains("GREETING=hello world\n"), "{env}");
    assert!(env.contains(&format!("DEPLOYCORE_COMMIT={commit}\n")), "{env}");
    assert!(!env.contains("CARGO_MANIFEST_DIR="), "the worker's environment leaks:\n{env}");
}

#[tokio::test]
async fn no_hook_runs_whatever_the_configuration_of_the_user_says() {
    let place = Place::new();
    let commit = place.commit("one");
    let home = place.folder.path().join("home");
    let (hooks, evidence) = (home.join("template/hooks"), home.join("hook-ran"));
    std::fs::create_dir_all(&hooks).unwrap();
    for hook in ["post-checkout", "reference-transaction"] {
        std::fs::write(hooks.join(hook), format!("#!/bin/sh\necho $0 >> {}\n", evidence.display())).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(hooks.join(hook), mode).unwrap();
    }
    let template = format!("[init]\n\ttemplateDir = {}\n", home.join("template").display());
    let everywhere = format!("[core]\n\thooksPath = {}\n", hooks.display());
    for (number, configuration) in [template, everywhere].into_iter().enumerate() {
        std::fs::write(home.join(".gitconfig"), &configuration).unwrap();
        // The hooks would run: they do for who does not keep them off.
        let plain = home.join(format!("plain-{number}"));
        let mut clone = Command::new("git");
        clone.args(["clone", "--quiet"]).arg(place.repository()).arg(plain).env("HOME", &home);
        assert!(clone.env_remove("GIT_CONFIG_GLOBAL").env_remove("XDG_CONFIG_HOME").status().unwrap().success());
        std::fs::remove_file(&evidence).unwrap();

        // Another process, since the environment of this one is shared by its tests.
        let mut settings = place.settings(BUILD);
        settings.scratch = place.folder.path().join(format!("scratch-{number}"));
        let mut builds = victim_of(&settings, &commit);
        let status = builds.env("HOME", &home).status().unwrap();
        assert!(status.success(), "{configuration}");
        let ran = std::fs::read_to_string(&evidence).unwrap_or_default();
        assert_eq!(ran, "", "{configuration}");
    }
}

#[tokio::test]
async fn the_log_is_bounded_whatever_a_build_writes() {
    let place = Place::new();
    let commit = place.commit("one");
    let command = "echo begin; head -c 3000000 /dev/zero | tr '\\0' x; echo end; mkdir out; cp input out/binary";
    let build = Build::of(&commit).await;
    build.run(&place.builder(command).await).await.unwrap();
    let log = build.log();
    assert!(log.len() <= 64 << 10);
    assert!(log.contains("begin") && log.ends_with("end\n") && log.contains("bytes dropped"));
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused_by_name() {
    let place = Place::new();
    let open = async |change: &dyn Fn(&mut CommandBuilderSettings)| {
        let mut settings = place.settings("true");
        change(&mut settings);
        CommandBuilder::open(settings).await.map(drop).unwrap_err().to_string()
    };
    assert!(open(&|settings| settings.output = "../x".into()).await.contains("`output`"));
    assert!(open(&|settings| settings.output = "/etc/passwd".into()).await.contains("`output`"));
    assert!(open(&|settings| settings.repository = "--upload-pack=x".into()).await.contains("`repository`"));
    assert!(open(&|settings| settings.command = BuildCommand::Program(vec![])).await.contains("`command`"));
    let no_folder = place.folder.path().join("file");
    std::fs::write(&no_folder, "").unwrap();
    let mut settings = place.settings("true");
    settings.scratch = no_folder;
    assert!(matches!(CommandBuilder::open(settings).await, Err(OpenError::Scratch { .. })));
}

#[test]
fn settings_are_read_as_people_write_them() {
    let text =
        r#"{"repository": "/r", "command": ["make", "all"], "output": "a", "scratch": "/s", "time_limit": "5m"}"#;
    let settings: CommandBuilderSettings = serde_json::from_str(text).unwrap();
    assert_eq!(settings.command, BuildCommand::Program(vec!["make".into(), "all".into()]));
    assert_eq!((settings.time_limit, settings.keep_free), (Some(Duration::from_mins(5)), ByteSize::gib(1)));
    let text = text.replace("output", "outputs");
    assert!(serde_json::from_str::<CommandBuilderSettings>(&text).is_err());
}

/// A process of its own, that builds and may be killed meanwhile.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by another test"]
async fn victim_that_builds_until_it_is_killed() {
    let settings = serde_json::from_str(&std::env::var("VICTIM_SETTINGS").unwrap()).unwrap();
    let commit = CommitId::new(std::env::var("VICTIM_COMMIT").unwrap()).unwrap();
    let builder = CommandBuilder::open(settings).await.unwrap();
    Build::of(&commit).await.run(&builder).await.unwrap();
}

/// The process that builds `commit`.
fn victim_of(settings: &CommandBuilderSettings, commit: &CommitId) -> Command {
    let mut victim = Command::new(std::env::current_exe().unwrap());
    victim.args(["--ignored", "--exact", "victim_that_builds_until_it_is_killed"]);
    victim.env("VICTIM_SETTINGS", serde_json::to_string(settings).unwrap()).env("VICTIM_COMMIT", commit.as_str());
    victim.stdout(std::process::Stdio::null());
    victim
}
