//! Memory backends: the reference that the conformance kit and the simulation hold every other backend against.

mod goals;

pub use goals::Goals;
