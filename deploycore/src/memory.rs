//! Memory backends: the reference that the conformance kit and the simulation hold every other backend against.

mod clock;
mod goals;
mod ledger;
mod queue;
mod store;
mod swarm;

pub use clock::Clock;
pub use goals::Goals;
pub use ledger::Ledger;
pub use queue::{Queue, QueueSnapshot};
pub use store::Store;
pub use swarm::{Files, HostFiles, Swarm, SwarmRegion};
