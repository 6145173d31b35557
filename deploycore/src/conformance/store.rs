//! Cases for an [`ArtifactStore`]: each sentence of its contract, sizes around the borders of pieces, puts that fail or are dropped, and
//! concurrency.
//!
//! ```no_run
//! # use std::sync::Arc;
//! use deploycore::conformance::store::{Harness, Plain};
//!
//! /// A store that is fresh and empty, and whatever must outlive it, for instance the folder of its files.
//! async fn fresh() -> (Arc<dyn Harness>, impl Sized) {
//!     (Arc::new(Plain(Arc::new(deploycore::memory::Store::new()))), ())
//! }
//!
//! deploycore::store_conformance!(fresh);
//! # fn main() {}
//! ```
//!
//! What follows the name goes to `#[tokio::test]`. The largest artifact stored has a few MiB.

pub mod damage;
pub mod delete;
pub mod logs;
pub mod multipart;
pub mod put;
pub mod read;
pub mod visible;

mod steps;

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;

use super::Case;
use super::case::list_cases;
use crate::model::Digest;
use crate::port::ArtifactStore;

/// A store under test, with what the cases want beyond the port.
#[async_trait]
pub trait Harness: Send + Sync + Debug + 'static {
    /// The store.
    fn store(&self) -> Arc<dyn ArtifactStore>;

    /// The same stored artifacts as another process sees them.
    async fn reopen(&self) -> Arc<dyn ArtifactStore> {
        self.store()
    }

    /// Changes the stored byte at `at` behind the store's back; `false` where that cannot be done, and the cases that want it pass.
    async fn damage(&self, _digest: &Digest, _at: u64) -> bool {
        false
    }

    /// Takes an artifact's bytes away behind the store's back, its manifest stays; `false` where that cannot be done.
    async fn lose(&self, _digest: &Digest) -> bool {
        false
    }
}

/// A store of which the cases can use the port alone.
#[derive(Debug, Clone)]
pub struct Plain(pub Arc<dyn ArtifactStore>);

impl Harness for Plain {
    fn store(&self) -> Arc<dyn ArtifactStore> {
        self.0.clone()
    }
}

/// All cases, for a runner of one's own; [`store_conformance!`](crate::store_conformance) makes tests of them.
pub fn cases() -> Vec<Case<dyn Harness>> {
    crate::__store_cases!((list_cases), ())
}

/// Makes one `#[tokio::test]` of each case for the stores that a function makes. See [`conformance::store`](crate::conformance::store).
#[macro_export]
macro_rules! store_conformance {
    ($make:path $(, $($runtime:tt)*)?) => {
        $crate::__store_cases!(($crate::__conformance_tests), ($make, store, ($($($runtime)*)?)));
    };
}

/// Hands the list of cases to a macro.
#[doc(hidden)]
#[macro_export]
macro_rules! __store_cases {
    (($($then:tt)+), $input:tt) => {
        $($then)+! { $input
            put {
                bytes_of_any_size_come_back
                chunks_of_any_size_make_the_same_artifact
                the_same_bytes_again_are_the_same_artifact
                the_same_bytes_at_once_are_one_artifact
                different_bytes_at_once_keep_apart
                another_process_sees_what_was_put
            }
            visible {
                nothing_is_there_before_the_last_byte
                a_failing_source_leaves_nothing
                a_source_that_fails_at_its_end_leaves_nothing
                a_source_that_fails_at_once_leaves_nothing
                a_dropped_put_leaves_nothing
                a_failed_put_of_stored_bytes_takes_nothing_away
                an_unknown_artifact_is_not_there
            }
            read {
                ranges_give_their_bytes
                random_ranges_give_their_bytes
                chunks_are_bounded
                an_empty_range_gives_nothing
                a_range_past_the_end_is_refused
                what_is_not_there_cannot_be_read
                reads_at_once_do_not_mix
            }
            delete {
                a_list_names_each_artifact_once
                an_empty_store_lists_nothing
                a_deleted_artifact_is_gone
                deleting_again_changes_nothing
                deleting_leaves_the_others
                a_deleted_artifact_can_be_stored_again
                only_what_is_idle_is_deleted
                a_repeated_put_makes_young
                what_is_put_beside_deletions_stays
            }
            logs {
                a_log_comes_back
                the_last_write_wins
                attempts_have_logs_of_their_own
                an_unknown_log_is_none
                a_log_is_no_artifact
                the_largest_log_fits_and_a_larger_one_is_refused
            }
            multipart {
                parts_of_any_artifact_are_whole_pieces
                parts_in_any_order_make_the_artifact
                another_process_goes_on
                a_part_may_be_sent_again
                finishing_again_gives_the_same_answer
                an_artifact_that_is_there_stays
                parts_sent_at_once_make_the_artifact
                bytes_that_were_lost_are_stored_anew
                a_missing_part_is_no_artifact
                a_part_that_the_store_does_not_have_makes_the_upload_of_no_use
                an_aborted_upload_leaves_nothing
            }
            damage {
                changed_bytes_do_not_verify
                lost_bytes_are_noticed
            }
        }
    };
}
