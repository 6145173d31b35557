//! PostgreSQL, on a real server of this test binary: a database of its own for each test.

#[path = "postgres/bed.rs"]
mod bed;
#[path = "postgres/conformance.rs"]
mod conformance;
#[path = "server/decisions.rs"]
mod decisions;
#[path = "server/faults.rs"]
mod faults;
#[path = "postgres/host.rs"]
mod host;
#[path = "server/jobs.rs"]
mod jobs;
#[path = "postgres/ledger.rs"]
mod ledger;
#[path = "postgres/open.rs"]
mod open;
#[path = "postgres/own.rs"]
mod own;
#[path = "postgres/plans.rs"]
mod plans;
#[path = "server/races.rs"]
mod races;
#[path = "server/turns.rs"]
mod turns;
