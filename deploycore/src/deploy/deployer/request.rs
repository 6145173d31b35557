//! What a deployer is asked for.

use serde::{Deserialize, Serialize};

use crate::model::{ArtifactName, RunSpec, Selector, ServiceName, Waiver};

/// What to deploy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    /// The service.
    pub service: ServiceName,
    /// Which of its artifacts.
    pub artifact: ArtifactName,
    /// How to run it.
    #[serde(default)]
    pub run: RunSpec,
    /// Which machines run it; every one by default.
    #[serde(default)]
    pub selector: Selector,
    /// What to do when the goal says this already.
    #[serde(default)]
    pub redeploy: Redeploy,
    /// Required regions that this one goal does without; none by default. They say nothing of what is deployed: where the goal says the
    /// same already, it stays as it is.
    #[serde(default)]
    pub waivers: Vec<Waiver>,
}

/// What a deploy does when the current goal has the same content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Redeploy {
    /// Nothing: the answer is the current goal. So a request whose reply was lost may be repeated.
    #[default]
    IfChanged,
    /// A new generation, which machines that reverted the current one try again. Repeating it writes another.
    Always,
}

impl DeployRequest {
    /// Deploys `artifact` on every machine with nothing started: see [`RunSpec::default`].
    pub fn new(service: ServiceName, artifact: ArtifactName) -> Self {
        let (run, selector) = (RunSpec::default(), Selector::all());
        Self { service, artifact, run, selector, redeploy: Redeploy::IfChanged, waivers: Vec::new() }
    }

    /// Sets how it is run.
    #[must_use]
    pub fn with_run(mut self, run: RunSpec) -> Self {
        self.run = run;
        self
    }

    /// Sets which machines run it.
    #[must_use]
    pub fn with_selector(mut self, selector: Selector) -> Self {
        self.selector = selector;
        self
    }

    /// Sets what to do when the goal says this already.
    #[must_use]
    pub fn with_redeploy(mut self, redeploy: Redeploy) -> Self {
        self.redeploy = redeploy;
        self
    }

    /// Sets which required regions this one goal does without.
    #[must_use]
    pub fn with_waivers(mut self, waivers: Vec<Waiver>) -> Self {
        self.waivers = waivers;
        self
    }
}
