//! MariaDB, on a real server of this test binary: a database of its own for each test.

#[path = "mariadb/bed.rs"]
mod bed;
#[path = "mariadb/conformance.rs"]
mod conformance;
#[path = "mariadb/decisions.rs"]
mod decisions;
#[path = "mariadb/faults.rs"]
mod faults;
#[path = "mariadb/open.rs"]
mod open;
#[path = "mariadb/races.rs"]
mod races;
