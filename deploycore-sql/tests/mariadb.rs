//! MariaDB, on a real server of this test binary: a database of its own for each test.

#[path = "mariadb/bed.rs"]
mod bed;
#[path = "mariadb/conformance.rs"]
mod conformance;
#[path = "server/decisions.rs"]
mod decisions;
#[path = "server/faults.rs"]
mod faults;
#[path = "mariadb/host.rs"]
mod host;
#[path = "server/jobs.rs"]
mod jobs;
#[path = "mariadb/open.rs"]
mod open;
#[path = "mariadb/own.rs"]
mod own;
#[path = "server/races.rs"]
mod races;
#[path = "server/turns.rs"]
mod turns;
