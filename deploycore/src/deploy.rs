//! From a deployable artifact to goals in every region: the deployer, the mirror and the board of machine reports.

mod board;
mod convergence;
mod deployer;
mod error;
mod mirror;
mod planner;
mod waiver;

pub use board::{ReportBoard, ReportBoardSettings};
pub use convergence::Convergence;
pub use deployer::{DeployRequest, Deployer, DeployerSettings, Redeploy};
pub use error::Error;
pub use mirror::{Mirror, MirrorSettings, Mirrored};
pub use waiver::WaiverError;
