//! What turns a commit into bytes: the one part of the road that the host supplies.

use std::any::Any;
use std::fmt::{self, Debug};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use tokio_util::sync::CancellationToken;

use super::BuildLog;
use crate::model::{Job, Lease};
use crate::port::store::{MAX_CHUNK, Source};

/// Builds a job's commit into the bytes of an artifact.
///
/// ```
/// use deploycore::build::{BuildContext, BuildError, BuildOutput, Builder};
/// use deploycore::model::Job;
///
/// #[derive(Debug)]
/// struct Greeter;
///
/// #[async_trait::async_trait]
/// impl Builder for Greeter {
///     async fn build(&self, job: &Job, context: &BuildContext) -> Result<BuildOutput, BuildError> {
///         context.log.line("greeting");
///         Ok(BuildOutput::bytes(format!("hello from {}", job.spec.commit)))
///     }
/// }
/// ```
#[async_trait]
pub trait Builder: Send + Sync + Debug + 'static {
    /// Builds `job`. The same commit may be built twice at once, in two processes, when a lease was lost.
    ///
    /// When `context.stop` is cancelled (a cancel was requested, the time is over, the lease is lost, or the worker shuts down) the result
    /// is not wanted any more: end everything that the build started and return, with whatever result. A future that
    /// has not returned after the worker's `stop_grace` is dropped; its drop ends the build.
    ///
    /// It must not block the thread it is polled on: heavy work goes to processes or to threads of its own, so that heartbeats go on. One
    /// that blocks all the same needs a worker that [builds elsewhere](super::Worker::with_builds_on).
    async fn build(&self, job: &Job, context: &BuildContext) -> Result<BuildOutput, BuildError>;
}

/// What a worker gives to a build.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BuildContext {
    /// The right under which the build runs; its epoch tells attempts apart.
    pub lease: Lease,
    /// Cancelled when the build shall stop.
    pub stop: CancellationToken,
    /// What people shall read of this attempt. It is stored with the result.
    pub log: BuildLog,
}

impl BuildContext {
    /// A context, for a worker of one's own or for the test of a builder.
    pub fn new(lease: Lease, stop: CancellationToken, log: BuildLog) -> Self {
        Self { lease, stop, log }
    }
}

/// Why there is no output.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The commit cannot be built; another attempt gives the same. The job fails.
    #[error("{0}")]
    Build(String),
    /// The build was longer than the builder allows. The job fails.
    #[error("{0}")]
    Timeout(String),
    /// Something around the build failed: the checkout, the disk, the network. Another attempt may help.
    #[error("{message}")]
    Infrastructure {
        /// What was tried.
        message: String,
        /// Why it failed, if something else says it.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The build ended because it was told to stop.
    #[error("the build was stopped")]
    Stopped,
}

impl BuildError {
    /// A failure around the build, with its cause.
    pub fn infrastructure(
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Infrastructure { message: message.into(), source: Some(source.into()) }
    }
}

/// The bytes of an artifact, and what must stay until they are stored.
pub struct BuildOutput {
    bytes: Opened,
    /// Dropped last.
    kept: Vec<Box<dyn Any + Send>>,
}

enum Opened {
    Once(Option<Source>),
    Again(Box<dyn FnMut() -> Source + Send>),
}

impl BuildOutput {
    /// Bytes that may be read from the beginning as often as the store needs: it retries after a passing failure.
    pub fn new(open: impl FnMut() -> Source + Send + 'static) -> Self {
        Self { bytes: Opened::Again(Box::new(open)), kept: Vec::new() }
    }

    /// Bytes that can be read once. A failure of the store then costs the whole attempt.
    pub fn once(bytes: Source) -> Self {
        Self { bytes: Opened::Once(Some(bytes)), kept: Vec::new() }
    }

    /// Bytes that are at hand whole.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes: Bytes = bytes.into();
        Self::new(move || {
            let rest = bytes.clone();
            stream::unfold(rest, |mut rest| async move {
                let chunk = rest.split_to(rest.len().min(MAX_CHUNK));
                (!chunk.is_empty()).then_some((Ok(chunk), rest))
            })
            .boxed()
        })
    }

    /// The bytes of a file, opened when they are read.
    #[cfg(feature = "process")]
    pub fn file(path: impl Into<std::path::PathBuf>) -> Self {
        let path = path.into();
        Self::new(move || file_chunks(path.clone()))
    }

    /// Keeps `guard`, for instance a scratch folder, until the bytes are stored or dropped.
    #[must_use]
    pub fn keeping(mut self, guard: impl Send + 'static) -> Self {
        self.kept.push(Box::new(guard));
        self
    }

    /// The bytes from the beginning; `None` when they can be read once only and were.
    pub fn open(&mut self) -> Option<Source> {
        match &mut self.bytes {
            Opened::Once(bytes) => bytes.take(),
            Opened::Again(open) => Some(open()),
        }
    }
}

impl Debug for BuildOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = match self.bytes {
            Opened::Once(_) => "once",
            Opened::Again(_) => "again",
        };
        f.debug_struct("BuildOutput").field("opens", &times).field("kept", &self.kept.len()).finish()
    }
}

#[cfg(feature = "process")]
fn file_chunks(path: std::path::PathBuf) -> Source {
    use futures::TryStreamExt;
    use tokio::io::AsyncReadExt;

    let opened = async move {
        let mut file = tokio::fs::File::open(path).await?;
        file.set_max_buf_size(MAX_CHUNK);
        Ok::<_, std::io::Error>(stream::try_unfold(file, |mut file| async move {
            let mut chunk = bytes::BytesMut::with_capacity(MAX_CHUNK);
            // A short read is no end: only 0 is.
            let read = file.read_buf(&mut chunk).await?;
            Ok((read > 0).then(|| (chunk.freeze(), file)))
        }))
    };
    stream::once(opened).try_flatten().boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;

    async fn read(output: &mut BuildOutput) -> Vec<u8> {
        output.open().unwrap().try_concat_vec().await
    }

    trait ConcatVec {
        async fn try_concat_vec(self) -> Vec<u8>;
    }

    impl ConcatVec for Source {
        async fn try_concat_vec(self) -> Vec<u8> {
            self.try_fold(Vec::new(), |mut all, chunk| async move {
                assert!(!chunk.is_empty() && chunk.len() <= MAX_CHUNK);
                all.extend_from_slice(&chunk);
                Ok(all)
            })
            .await
            .unwrap()
        }
    }

    #[tokio::test]
    async fn bytes_at_hand_are_read_again_in_bounded_chunks() {
        let bytes = vec![7; 2 * MAX_CHUNK + 5];
        let mut output = BuildOutput::bytes(bytes.clone());
        assert_eq!(read(&mut output).await, bytes);
        assert_eq!(read(&mut output).await, bytes);
        assert!(BuildOutput::bytes("").open().unwrap().next().await.is_none());
    }

    #[cfg(feature = "process")]
    #[tokio::test]
    async fn a_file_is_read_whole_and_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("binary");
        let bytes: Vec<u8> = (0..3 * MAX_CHUNK + 77).map(|at| at as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let mut output = BuildOutput::file(&path).keeping(folder);
        assert!(read(&mut output).await == bytes);
        assert!(read(&mut output).await == bytes);
        drop(output);
        assert!(!path.exists(), "the kept folder goes with the output");
        let mut gone = BuildOutput::file(&path);
        assert!(gone.open().unwrap().next().await.unwrap().is_err());
    }

    #[test]
    fn a_stream_opens_once() {
        let mut output = BuildOutput::once(stream::empty().boxed());
        assert!(output.open().is_some());
        assert!(output.open().is_none());
    }
}
