//! Liveness: some time after healing everything is done.

use super::world::World;

/// Whether nothing is left to do.
pub fn is_settled(world: &World) -> bool {
    let checker = &world.weather.checker;
    world.ordered() && checker.unfinished().is_empty()
}

/// Names what is not done.
pub fn check(world: &World) {
    let checker = &world.weather.checker;
    checker.every_job_ended();
    checker.everything_stored();
}
