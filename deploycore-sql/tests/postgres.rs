//! PostgreSQL, on a real server of this test binary: a database of its own for each test.

#[path = "postgres/bed.rs"]
mod bed;
#[path = "postgres/conformance.rs"]
mod conformance;
#[path = "postgres/decisions.rs"]
mod decisions;
#[path = "postgres/faults.rs"]
mod faults;
#[path = "postgres/open.rs"]
mod open;
#[path = "postgres/plans.rs"]
mod plans;
#[path = "postgres/races.rs"]
mod races;
