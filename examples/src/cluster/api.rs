//! The control plane's HTTP API: what goes over the wire. `docs/cluster.md` shows each call with curl.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use deploycore::deploy::{Convergence, Redeploy};
use deploycore::model::{
    ArtifactName, CommitId, CopyPriority, Digest, Generation, Goal, GoalPosition, JobId, MachineName, OlderJobs,
    RegionName, RunSpec, Selector, ServiceName, Timestamp, Waiver, friendly, later,
};
use deploycore::port::queue::{Enqueued, QueueStats};
use deploycore::store::{CollectionPlan, CollectorTick};
use deploycore_p2p::core::tracker::SwarmStanding;
use serde::{Deserialize, Serialize};
use url::Url;

/// `POST /v1/builds`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildRequest {
    /// The commit.
    pub commit: CommitId,
    /// The service; the cluster's only one where it has one.
    #[serde(default)]
    pub name: Option<ServiceName>,
    /// Chosen by the caller, so that the call may be repeated; a fresh one by default.
    #[serde(default)]
    pub job: Option<JobId>,
    /// Higher goes first.
    #[serde(default)]
    pub priority: i16,
    /// What becomes of the builds of older commits that are queued.
    #[serde(default)]
    pub older_jobs: OlderJobs,
}

/// Answer to `POST /v1/builds`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BuildAnswer {
    /// The job that stands for the request.
    pub job: JobId,
    /// What the queue did.
    pub outcome: Enqueued,
    /// What the artifact will be called.
    pub artifact: ArtifactName,
}

/// `POST /v1/artifacts/{artifact}/prioritize`
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrioritizeRequest {
    /// At least so urgent its copies are from then on.
    pub priority: CopyPriority,
}

/// Answer to `POST /v1/artifacts/{artifact}/prioritize`
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Raised {
    /// How many copies were less urgent.
    pub copies: usize,
}

/// `POST /v1/deploys`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    /// The service.
    pub service: ServiceName,
    /// What it shall run.
    pub artifact: ArtifactName,
    /// How; by default as the cluster is configured to.
    #[serde(default)]
    pub run: Option<RunSpec>,
    /// Where; by default on every machine.
    #[serde(default)]
    pub selector: Selector,
    /// What to do when the goal says this already.
    #[serde(default)]
    pub redeploy: Redeploy,
    /// Required regions to do without; none by default.
    #[serde(default)]
    pub waivers: Vec<WaiverRequest>,
}

impl DeployRequest {
    /// Deploys as the cluster is configured to, on every machine.
    pub fn new(service: ServiceName, artifact: ArtifactName) -> Self {
        let (selector, redeploy) = (Selector::all(), Redeploy::IfChanged);
        Self { service, artifact, run: None, selector, redeploy, waivers: Vec::new() }
    }
}

/// A required region that one goal shall do without: of [`DeployRequest`] and [`RollbackRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaiverRequest {
    /// The region.
    pub region: RegionName,
    /// Why; it stands in the goal.
    pub reason: String,
    /// Who says so; it stands in the goal.
    #[serde(default)]
    pub by: Option<String>,
    /// How long it holds from the request's arrival, by the control plane's clock; at most [`Waiver::MAX_TERM`].
    #[serde(rename = "for", with = "friendly")]
    pub term: Duration,
}

impl WaiverRequest {
    /// The waiver that begins now.
    pub fn begin(self, now: Timestamp) -> Waiver {
        let Self { region, reason, by, term } = self;
        Waiver { region, reason, by, expires_at: later(now, term) }
    }
}

/// `POST /v1/rollbacks`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// The service.
    pub service: ServiceName,
    /// The generation whose artifact shall run again; by default the one before.
    #[serde(default)]
    pub to: Option<Generation>,
    /// Refuse unless this is the current generation, so that a repeated call does not go back twice.
    #[serde(default)]
    pub current: Option<Generation>,
    /// Required regions to do without; none by default.
    #[serde(default)]
    pub waivers: Vec<WaiverRequest>,
}

/// `POST /v1/collections`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectRequest {
    /// What was registered and pinned longer ago may go; at least a day.
    #[serde(with = "friendly")]
    pub older_than: Duration,
    /// So many of each service's newest stay.
    pub keep: usize,
    /// Whether to make a round, rather than to say what it would do; false by default.
    #[serde(default)]
    pub delete: bool,
}

/// Answer to `POST /v1/collections`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CollectAnswer {
    /// What goes, and why the rest stays: as it was before the round.
    pub plan: CollectionPlan,
    /// What the round did, if one was asked for.
    pub round: Option<CollectorTick>,
}

/// `GET /v1/status`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Each service with its goal and how far machines are with it.
    pub services: Vec<ServiceStatus>,
    /// The queue.
    pub queue: QueueStats,
    /// The regions.
    pub regions: BTreeMap<RegionName, RegionStatus>,
}

/// One service in [`Status`], and `GET /v1/services/{service}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its goal.
    pub goal: Goal,
    /// How far machines are.
    pub convergence: Convergence,
}

/// One region in [`Status`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RegionStatus {
    /// Its gateways.
    pub gateways: Vec<Url>,
    /// Those that do not answer.
    pub silent: Vec<Url>,
    /// The position of each service's goal there; `None` when the region does not answer.
    pub goals: Option<BTreeMap<ServiceName, GoalPosition>>,
}

/// `GET /v1/machines` with [`KnownMachine`](deploycore::model::KnownMachine)s, and `GET /v1/services/{service}/machines` with
/// [`MachineStanding`](deploycore::model::MachineStanding)s: a page of them, by region and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachinesPage<T> {
    /// The machines.
    pub machines: Vec<T>,
    /// Regions of this page that do not answer, or have not listened to their machines for long enough to know all.
    pub incomplete: BTreeSet<RegionName>,
    /// The next page begins here; `None` after the last.
    pub next: Option<MachinesCursor>,
}

/// Where a page of machines begins: its fields are the parameters of the request for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachinesCursor {
    /// With this region,
    pub region: RegionName,
    /// and in it after this machine, unless that is `None`,
    pub after_machine: Option<MachineName>,
    /// which says that it is in this region.
    pub after_region: Option<RegionName>,
}

/// `GET /v1/usage/{digest}`, of a region: what its gate gave out of an artifact.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreUsage {
    /// Bytes read from the store under leases.
    pub leased_bytes: u64,
    /// Bytes read again because every holder was gone.
    pub recovery_bytes: u64,
}

/// `GET /v1/usage/{digest}`, of the control plane: by region; an error while a region does not answer.
pub type UsageByRegion = BTreeMap<RegionName, StoreUsage>;

/// `GET /v1/swarm`, of the control plane: how far each region's machines are with each artifact; `None` where the region does not answer.
pub type StandingsByRegion = BTreeMap<RegionName, Option<Vec<SwarmStanding>>>;

/// `GET /v1/swarm`, of a region: a list of [`SwarmStanding`]s, of the control plane [`StandingsByRegion`].
pub const SWARM_PATH: &str = "v1/swarm";

/// The path of an artifact's usage.
pub fn usage_path(digest: &Digest) -> String {
    format!("v1/usage/{digest}")
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong: a word for programs and a sentence for people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
}
