//! Memory backends: the reference that the conformance kit and the simulation hold every other backend against.

mod goals;
mod store;

pub use goals::Goals;
pub use store::Store;
