//! One attempt at a job, from the claim to the last word.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::Shared;
use super::hold_off::Sign;
use super::leases::{Held, Verdict, stopped};
use crate::build::{BuildContext, BuildError, BuildLog, BuildOutput};
use crate::model::{ArtifactName, ArtifactRef, Completion, Failure, FailureKind, LogName, Manifest, Retry, Timings};
use crate::pace::Backoff;
use crate::port::{chain, queue, store};

/// The attempt keeps its lease in the worker's list, which heartbeats follow, until it ends in whatever way.
pub(super) struct Attempt {
    shared: Arc<Shared>,
    held: Arc<Held>,
    log: BuildLog,
    builds_on: Option<Handle>,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        // Whoever drops an attempt under way wants its build to end.
        self.held.stop.cancel();
        self.shared.leases.remove(&self.held.lease);
    }
}

/// How the work ended.
enum End {
    Stored(ArtifactRef, Timings),
    Failed(Failure),
    Stopped(Verdict),
}

impl End {
    fn sign(&self) -> Sign {
        match self {
            Self::Stored(..) => Sign::Sound,
            Self::Failed(failure) if failure.kind == FailureKind::Build => Sign::Sound,
            Self::Failed(failure) if failure.kind == FailureKind::Infrastructure => Sign::Unsound,
            // A build that had no end may have been the commit's doing or the host's.
            Self::Failed(_) | Self::Stopped(_) => Sign::Mute,
        }
    }
}

impl Attempt {
    pub(super) fn new(shared: Arc<Shared>, held: Arc<Held>, builds_on: Option<Handle>) -> Self {
        shared.leases.add(&held);
        let log = BuildLog::new(shared.settings.log_limit.as_u64().min(store::MAX_LOG as u64) as usize);
        Self { shared, held, log, builds_on }
    }

    /// Works, and tells the queue how it ended.
    pub(super) async fn run(self) -> Sign {
        let started = Instant::now();
        tracing::info!(attempt = self.held.job.attempts, "build starts");
        let end = self.work().await;
        let sign = end.sign();
        let outcome = match end {
            End::Stored(artifact, timings) => {
                let log = self.store_log().await;
                self.complete(Completion::Succeeded { artifact, log, timings }).await
            }
            End::Failed(mut failure) => {
                failure.log = self.store_log().await;
                self.complete(Completion::Failed { failure }).await
            }
            End::Stopped(Verdict::TimedOut) => {
                let spent = started.elapsed();
                let text =
                    format!("the attempt ran out of its time of {:?}; it ran for {spent:.1?}", self.build_timeout());
                let mut failure = Failure::new(FailureKind::Timeout, text);
                failure.log = self.store_log().await;
                self.complete(Completion::Failed { failure }).await
            }
            End::Stopped(Verdict::Cancelled) => {
                // Its name is not told: it follows from the lease, which stands in the attempt.
                self.store_log().await;
                self.complete(Completion::Cancelled).await
            }
            End::Stopped(Verdict::Drained) => self.release().await,
            End::Stopped(Verdict::Lost) => "lost",
        };
        tracing::info!(outcome, elapsed = ?started.elapsed(), "build ended");
        metrics::counter!("deploycore_worker_builds_total", "outcome" => outcome).increment(1);
        metrics::histogram!("deploycore_worker_build_seconds", "outcome" => outcome)
            .record(started.elapsed().as_secs_f64());
        sign
    }

    /// Builds and stores, or stops when told to.
    async fn work(&self) -> End {
        let work = self.produce();
        tokio::pin!(work);
        tokio::select! {
            biased;
            end = &mut work => return self.heard(end),
            () = stopped(&self.shared, &self.held) => {}
        }
        // What it still yields is not wanted. Past the grace its drop must end it.
        let in_time = timeout(self.shared.settings.stop_grace, &mut work).await.is_ok();
        if !in_time {
            tracing::warn!(grace = ?self.shared.settings.stop_grace, "the build did not stop when told; it is dropped");
        }
        End::Stopped(self.held.verdict().unwrap_or(Verdict::Lost))
    }

    /// A build that failed because it was told to stop did not fail. One whose bytes are stored is done in any case.
    fn heard(&self, end: End) -> End {
        match (end, self.held.verdict()) {
            (End::Failed(_), Some(verdict)) => End::Stopped(verdict),
            (end, _) => end,
        }
    }

    async fn produce(&self) -> End {
        let started = Instant::now();
        let context = BuildContext::new(self.held.lease, self.held.stop.clone(), self.log.clone());
        if context.stop.is_cancelled() {
            return End::Stopped(self.held.verdict().unwrap_or(Verdict::Lost));
        }
        let mut output = match self.build(context).await {
            Ok(output) => output,
            Err(error) => return End::Failed(self.failure(&error)),
        };
        let stored_from = Instant::now();
        // A put has no ear for the stop: it is dropped, which leaves nothing that a reader could see.
        match self.held.stop.run_until_cancelled(self.put(&mut output)).await {
            Some(Ok(manifest)) => {
                let (build_ms, store_ms) = (millis(stored_from - started), millis(stored_from.elapsed()));
                End::Stored(self.artifact(&manifest), Timings { build_ms, store_ms })
            }
            Some(Err(failure)) => {
                self.log.line(&failure.message);
                End::Failed(failure)
            }
            None => End::Stopped(self.held.verdict().unwrap_or(Verdict::Lost)),
        }
    }

    async fn build(&self, context: BuildContext) -> Result<BuildOutput, BuildError> {
        let (builder, held) = (Arc::clone(&self.shared.builder), Arc::clone(&self.held));
        let build = async move { builder.build(&held.job, &context).await };
        let build = AssertUnwindSafe(build).catch_unwind();
        let end = match &self.builds_on {
            None => build.await,
            // Dropped with this attempt, as the build itself is.
            Some(runtime) => match AbortOnDropHandle::new(runtime.spawn(build.in_current_span())).await {
                Ok(end) => end,
                Err(error) => return Err(BuildError::infrastructure("the runtime of the builds has ended", error)),
            },
        };
        let panicked = |_| BuildError::Infrastructure { message: "the builder panicked".to_owned(), source: None };
        end.unwrap_or_else(|panic| Err(panicked(panic)))
    }

    /// Stores the output, again after a passing failure of the store if the output can be read again.
    async fn put(&self, output: &mut BuildOutput) -> Result<Manifest, Failure> {
        let mut tries = 0;
        let mut source = output.open();
        while let Some(bytes) = source.take() {
            tries += 1;
            let error = match self.shared.store.put(bytes).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => error,
            };
            let text = format!("the artifact could not be stored: {}", chain(&error));
            if let store::Error::Invalid(_) = error {
                return Err(Failure::new(FailureKind::Build, text));
            }
            tracing::warn!(error = chain(&error), tries, "storing the artifact failed");
            if error.is_retryable() && tries < self.shared.settings.store_tries {
                tokio::time::sleep(self.shared.settings.backoff.delay(tries)).await;
                source = output.open();
            }
            if source.is_none() {
                return Err(self.around(text));
            }
        }
        Err(self.around("the output of the build was read before it could be stored".to_owned()))
    }

    fn artifact(&self, manifest: &Manifest) -> ArtifactRef {
        let name = ArtifactName::for_job(&self.held.job.spec.service, self.held.lease.job);
        ArtifactRef { name, digest: manifest.digest(), size: manifest.size() }
    }

    fn failure(&self, error: &BuildError) -> Failure {
        let text = chain(error);
        self.log.line(format!("the build failed: {text}"));
        match error {
            BuildError::Build(_) => Failure::new(FailureKind::Build, text),
            BuildError::Timeout(_) => Failure::new(FailureKind::Timeout, text),
            BuildError::Infrastructure { .. } => self.around(text),
            // Nobody told it to stop, or the verdict would be the end.
            BuildError::Stopped => self.around("the builder stopped without being told to".to_owned()),
        }
    }

    /// A failure around the build: another attempt may help.
    fn around(&self, text: String) -> Failure {
        let delay = self.shared.settings.retry.delay(self.held.job.attempts.max(1));
        Failure::new(FailureKind::Infrastructure, text).with_retry(Retry::After(delay))
    }

    fn build_timeout(&self) -> Duration {
        self.held.job.spec.build_timeout
    }

    /// Stores the log and gives its name. A log that cannot be stored does not hold the result back.
    async fn store_log(&self) -> Option<LogName> {
        let name = LogName { job: self.held.lease.job, epoch: self.held.lease.epoch };
        let end = Instant::now() + self.shared.settings.call_limit;
        for tries in 1..=self.shared.settings.store_tries.max(1) {
            match timeout_at(end, self.shared.store.put_log(&name, self.log.contents())).await {
                Ok(Ok(())) => return Some(name),
                Ok(Err(error)) => tracing::warn!(error = chain(&error), tries, "storing the log failed"),
                Err(_) => tracing::warn!("storing the log took too long"),
            }
            if timeout_at(end, tokio::time::sleep(self.shared.settings.backoff.delay(tries))).await.is_err() {
                break;
            }
        }
        None
    }

    async fn complete(&self, completion: Completion) -> &'static str {
        let lease = &self.held.lease;
        let answer = self.settle("complete", || self.shared.queue.complete(lease, &completion)).await;
        match (answer, completion) {
            (None, _) => "lost",
            (Some(_), Completion::Succeeded { artifact, .. }) => {
                tracing::info!(artifact = %artifact.name, digest = %artifact.digest, size = artifact.size, "build stored");
                "succeeded"
            }
            (Some(_), Completion::Failed { failure }) => {
                tracing::warn!(kind = ?failure.kind, message = failure.message, "build failed");
                "failed"
            }
            (Some(_), Completion::Cancelled) => "cancelled",
        }
    }

    async fn release(&self) -> &'static str {
        let lease = &self.held.lease;
        let release = || self.shared.queue.release(lease, "the worker shuts down", Duration::ZERO);
        if self.settle("release", release).await.is_some() { "released" } else { "lost" }
    }

    /// Says the last word of the attempt to the queue, again while its replies are lost, until the lease is gone or the time is. Only the
    /// queue's answer to this word tells which: for a heartbeat, a lease that this word ended is as lost as any.
    async fn settle<T, F>(&self, call: &'static str, mut word: impl FnMut() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, queue::Error>>,
    {
        let settings = &self.shared.settings;
        let end = Instant::now() + settings.settle_limit;
        let backoff = Backoff { initial: settings.backoff.initial, max: settings.backoff.max.min(settings.heartbeat) };
        for tries in 1.. {
            let problem = match timeout(settings.call_limit, word()).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error @ (queue::Error::LeaseLost { .. } | queue::Error::NotFound { .. }))) => {
                    tracing::warn!(error = chain(&error), call, "the result is dropped");
                    return None;
                }
                Ok(Err(error @ queue::Error::Invalid(_))) => {
                    tracing::error!(
                        error = chain(&error),
                        call,
                        "the queue refuses the result; the job is left to the reaper"
                    );
                    return None;
                }
                Ok(Err(error)) => chain(&error),
                Err(_) => format!("no answer within {:?}", settings.call_limit),
            };
            tracing::warn!(problem, call, tries, "the result could not be told to the queue");
            let next = Instant::now() + backoff.delay(tries);
            if next > end {
                break;
            }
            tokio::time::sleep_until(next).await;
        }
        tracing::error!(call, "the result is dropped; the job is left to the reaper");
        None
    }
}

fn millis(span: Duration) -> u64 {
    span.as_millis().try_into().unwrap_or(u64::MAX)
}
