//! Cases for a [`PeerSwarm`]: what a machine may rely on, whoever carries the bytes.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use async_trait::async_trait;
//! # use deploycore::conformance::swarm::{Region, Regions};
//! # use deploycore::memory::SwarmRegion;
//! # use deploycore::port::{ArtifactStore, PeerSwarm};
//! #[derive(Debug)]
//! struct InMemory;
//!
//! #[async_trait]
//! impl Regions for InMemory {
//!     async fn open(&self, store: Arc<dyn ArtifactStore>) -> Arc<dyn Region> {
//!         Arc::new(OneRegion(SwarmRegion::new(store)))
//!     }
//! }
//!
//! #[derive(Debug)]
//! struct OneRegion(SwarmRegion);
//!
//! #[async_trait]
//! impl Region for OneRegion {
//!     async fn join(&self) -> Arc<dyn PeerSwarm> {
//!         Arc::new(self.0.join())
//!     }
//! }
//!
//! /// What makes regions, and whatever must outlive them.
//! async fn regions() -> (Arc<dyn Regions>, impl Sized) {
//!     (Arc::new(InMemory), ())
//! }
//!
//! deploycore::swarm_conformance!(regions);
//! # fn main() {}
//! ```
//!
//! What follows the name goes to `#[tokio::test]`. The cases write real files in folders of their own.

pub mod adjust;
pub mod fetch;
pub mod leave;
pub mod resume;
pub mod seed;

mod steps;

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;

use super::Case;
use super::case::list_cases;
use crate::port::{ArtifactStore, PeerSwarm};

/// Makes regions to test.
#[async_trait]
pub trait Regions: Send + Sync + Debug + 'static {
    /// A fresh region, with all that its swarm needs, fed by a store that the kit controls: it fails and lies.
    async fn open(&self, store: Arc<dyn ArtifactStore>) -> Arc<dyn Region>;
}

/// A region under test.
#[async_trait]
pub trait Region: Send + Sync + Debug + 'static {
    /// A new machine in the region. It leaves, as by a crash, when the value is dropped.
    async fn join(&self) -> Arc<dyn PeerSwarm>;
}

/// All cases, for a runner of one's own; [`swarm_conformance!`](crate::swarm_conformance) makes tests of them.
pub fn cases() -> Vec<Case<dyn Regions>> {
    crate::__swarm_cases!((list_cases), ())
}

/// Makes one `#[tokio::test]` of each case for the regions that a function makes. See [`conformance::swarm`](crate::conformance::swarm).
#[macro_export]
macro_rules! swarm_conformance {
    ($make:path $(, $($runtime:tt)*)?) => {
        $crate::__swarm_cases!(($crate::__conformance_tests), ($make, swarm, ($($($runtime)*)?)));
    };
}

/// Hands the list of cases to a macro.
#[doc(hidden)]
#[macro_export]
macro_rules! __swarm_cases {
    (($($then:tt)+), $input:tt) => {
        $($then)+! { $input
            fetch {
                a_fetch_writes_exactly_the_bytes
                the_summary_accounts_for_each_byte
                progress_only_grows_and_ends_at_the_whole
                a_second_machine_needs_no_store
                a_second_fetch_to_the_same_place_joins
                a_joined_fetch_outlives_the_first
                a_second_fetch_to_another_place_is_a_conflict
                several_artifacts_travel_at_once
                a_fetch_waits_for_a_store_that_fails_and_says_so
                bytes_that_do_not_verify_are_not_kept
                nothing_holds_the_file_open_for_writing
                a_folder_that_is_not_there_is_an_error_of_the_disk
            }
            resume {
                a_dropped_fetch_stops_and_frees_the_digest
                the_same_machine_goes_on_from_what_it_verified
                another_process_goes_on_from_what_is_on_disk
                a_piece_that_was_damaged_on_disk_is_fetched_again
                a_file_of_something_else_is_replaced
            }
            seed {
                a_seeded_file_feeds_others
                a_seeded_file_goes_on_serving_under_another_name_too
                seeding_again_changes_nothing
                a_damaged_file_is_refused
                a_file_of_another_length_is_refused
                a_file_that_is_not_there_is_an_error_of_the_disk
                a_refused_file_feeds_nobody
            }
            adjust {
                what_is_not_here_cannot_be_adjusted
                a_fetch_under_way_is_adjusted_and_ends_well
                what_is_offered_is_adjusted_and_still_offered
            }
            leave {
                leaving_stops_a_fetch
                leaving_stops_serving
                leaving_is_idempotent
                what_was_left_can_be_fetched_anew
                what_a_machine_does_is_counted
            }
        }
    };
}
