//! A builder whose builds take time, fail, and give other bytes each time.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deploycore::build::{BuildContext, BuildError, BuildOutput, Builder};
use deploycore::model::{Job, MIN_PIECE_SIZE};

use super::check::Built;
use super::fault::Life;
use super::settings::{Settings, stream};

/// Builds in virtual time.
#[derive(Debug)]
pub struct SimulatedBuilder {
    settings: Arc<Settings>,
    life: Arc<Life>,
}

impl SimulatedBuilder {
    /// A builder on a worker's host.
    pub fn new(settings: Arc<Settings>, life: Arc<Life>) -> Self {
        Self { settings, life }
    }
}

#[async_trait]
impl Builder for SimulatedBuilder {
    async fn build(&self, job: &Job, context: &BuildContext) -> Result<BuildOutput, BuildError> {
        let purpose = format!("build {} {}", job.spec.commit, context.lease.epoch);
        let mut random = stream(self.settings.seed, &purpose);
        let time = Duration::from_millis(random.u64(1_000..150_000));
        let (outcome, obeys) = (random.u32(0..100), random.u32(0..4) > 0);
        context.log.line(&purpose);
        tokio::select! {
            biased;
            () = context.stop.cancelled(), if obeys => return Err(BuildError::Stopped),
            () = tokio::time::sleep(time) => {}
        }
        self.life.awake().await;
        match outcome {
            0..3 => return Err(BuildError::Build("it does not compile".into())),
            3..10 => return Err(BuildError::infrastructure("the checkout failed", "the network is away")),
            _ => {}
        }
        let works = random.u32(0..1000) >= self.settings.bad_builds;
        let bytes = output(&purpose, self.settings.pieces, &mut random);
        let checker = &self.life.weather.checker;
        checker.built(Built { job: job.spec.id, bytes: bytes.clone(), works });
        Ok(BuildOutput::bytes(bytes))
    }
}

/// Bytes that no other build has, of up to `pieces` pieces.
fn output(purpose: &str, pieces: u64, random: &mut fastrand::Rng) -> Bytes {
    let size =
        if pieces == 1 { random.u64(1..20_000) } else { random.u64(MIN_PIECE_SIZE + 1..=pieces * MIN_PIECE_SIZE) };
    let mut bytes = vec![0; size as usize];
    blake3::Hasher::new().update(purpose.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}
