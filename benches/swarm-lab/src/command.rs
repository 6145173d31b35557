//! Short commands: run to their end, within a time, and what they say.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// None of the commands that build a network takes longer.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs a command given as words; gives what it wrote to standard output.
pub(crate) fn run(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    finish(command.args(words), LIMIT).with_context(|| line.to_owned())
}

/// Runs a command to its end. It must say little: a pipe holds it.
pub(crate) fn finish(command: &mut Command, limit: Duration) -> Result<String> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let Some(status) = wait(&mut child, limit)? else {
        child.kill()?;
        child.wait()?;
        bail!("not done after {} s", limit.as_secs())
    };
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    child.stdout.take().map(|mut pipe| pipe.read_to_end(&mut stdout)).transpose()?;
    child.stderr.take().map(|mut pipe| pipe.read_to_end(&mut stderr)).transpose()?;
    if !status.success() {
        bail!("{status}: {}", String::from_utf8_lossy(&stderr).trim());
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// Waits for a process, but not for ever.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > limit {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_says_and_how_it_fails_is_told() {
        assert_eq!(run("echo one two").unwrap(), "one two\n");
        let error = finish(Command::new("sh").args(["-c", "echo no >&2; exit 3"]), LIMIT).unwrap_err().to_string();
        assert!(error.contains("exit status: 3: no"), "{error}");
        assert!(run("/no/such/program").is_err());
    }

    #[test]
    fn a_command_that_does_not_end_is_ended() {
        let start = Instant::now();
        let error = finish(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("not done"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}
