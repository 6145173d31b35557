//! The gateways of one region: one is asked until it fails, then the next.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deploycore::model::Revision;
use tokio::time::Instant;
use url::Url;

/// Revisions that are remembered with the gateway that gave them.
const GIVEN: usize = 64;

/// What a request may be turned away from alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// Waiting for a change.
    Wait,
    /// A manifest, which may be slow to come from the store behind.
    Manifest,
    /// The rest.
    Other,
}

#[derive(Debug)]
pub(super) struct Replicas {
    all: Vec<Replica>,
    /// Which is asked first.
    current: AtomicUsize,
    /// Each gateway counts its own revisions: one is good only where it came from.
    given: Mutex<VecDeque<(usize, Revision)>>,
}

#[derive(Debug)]
struct Replica {
    base: Url,
    rests: Mutex<Rests>,
}

/// Until when a gateway wants to be left alone.
#[derive(Debug, Default)]
struct Rests {
    all: Option<Instant>,
    waits: Option<Instant>,
    manifests: Option<Instant>,
}

impl Replicas {
    /// Clients begin at different ones, so that they share the load.
    pub(super) fn new(bases: Vec<Url>) -> Self {
        let first = fastrand::usize(..bases.len());
        let all = bases.into_iter().map(|base| Replica { base, rests: Mutex::default() }).collect();
        Self { all, current: AtomicUsize::new(first), given: Mutex::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn base(&self, replica: usize) -> &Url {
        &self.all[replica].base
    }

    pub(super) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// All, the current one first.
    pub(super) fn in_order(&self) -> impl Iterator<Item = usize> + use<> {
        let (current, count) = (self.current(), self.all.len());
        (0..count).map(move |step| (current + step) % count)
    }

    /// Notes that a gateway answered: it is asked first from now on.
    pub(super) fn answered(&self, replica: usize) {
        if self.current.swap(replica, Ordering::Relaxed) != replica {
            let base = self.base(replica);
            let gateway = format_args!(
                "{}:{}",
                base.host_str().unwrap_or_default(),
                base.port_or_known_default().unwrap_or_default()
            );
            tracing::info!(%gateway, "another gateway of the region is asked from now on");
            metrics::counter!("deploycore_gateway_failovers_total").increment(1);
        }
    }

    /// Notes that a gateway failed: another is asked first from now on.
    pub(super) fn failed(&self, replica: usize) {
        let next = (replica + 1) % self.all.len();
        let _ = self.current.compare_exchange(replica, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Notes that a gateway wants to be left alone for `span`.
    pub(super) fn let_rest(&self, replica: usize, load: Load, span: Duration) {
        let (mut rests, until) = (self.rests(replica), Some(Instant::now() + span));
        match load {
            Load::Wait => rests.waits = rests.waits.max(until),
            Load::Manifest => rests.manifests = rests.manifests.max(until),
            Load::Other => rests.all = rests.all.max(until),
        }
    }

    /// How long a gateway wants to be left alone yet.
    pub(super) fn rests_for(&self, replica: usize, load: Load) -> Option<Duration> {
        let rests = self.rests(replica);
        let until = match load {
            Load::Wait => rests.waits.max(rests.all),
            Load::Manifest => rests.manifests.max(rests.all),
            Load::Other => rests.all,
        };
        until?.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero())
    }

    /// Remembers who gave a revision.
    pub(super) fn gave(&self, replica: usize, revision: Revision) {
        let mut given = self.given();
        if self.all.len() > 1 && !given.contains(&(replica, revision)) {
            given.truncate(GIVEN - 1);
            given.push_front((replica, revision));
        }
    }

    /// Whether a revision means something to a gateway; the start does to all. What is not, is found by a list.
    pub(super) fn knows(&self, replica: usize, revision: Revision) -> bool {
        self.all.len() == 1 || revision == Revision(0) || self.given().contains(&(replica, revision))
    }

    fn rests(&self, replica: usize) -> MutexGuard<'_, Rests> {
        self.all[replica].rests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn given(&self) -> MutexGuard<'_, VecDeque<(usize, Revision)>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replicas(count: usize) -> Replicas {
        Replicas::new((0..count).map(|number| format!("http://gateway-{number}").parse().unwrap()).collect())
    }

    #[test]
    fn one_that_failed_is_asked_last_and_a_late_word_of_it_moves_nobody() {
        let replicas = replicas(3);
        let first = replicas.current();
        let second = (first + 1) % 3;
        replicas.failed(first);
        assert_eq!(replicas.in_order().collect::<Vec<_>>(), [second, (first + 2) % 3, first]);
        replicas.failed(first);
        assert_eq!(replicas.current(), second);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_much_may_still_ask() {
        let replicas = replicas(2);
        replicas.let_rest(0, Load::Wait, Duration::from_secs(5));
        assert_eq!(replicas.rests_for(0, Load::Wait), Some(Duration::from_secs(5)));
        assert_eq!((replicas.rests_for(0, Load::Other), replicas.rests_for(1, Load::Wait)), (None, None));
        replicas.let_rest(0, Load::Other, Duration::from_secs(1));
        assert!(replicas.rests_for(0, Load::Other).is_some());
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(replicas.rests_for(0, Load::Wait), None);
    }

    #[test]
    fn a_revision_is_good_only_where_it_came_from() {
        let replicas = replicas(2);
        replicas.gave(0, Revision(7));
        assert!(replicas.knows(0, Revision(7)) && !replicas.knows(1, Revision(7)) && replicas.knows(1, Revision(0)));
        for revision in 100..200 {
            replicas.gave(1, Revision(revision));
        }
        assert!(!replicas.knows(0, Revision(7)) && replicas.knows(1, Revision(199)));
        assert_eq!(replicas.given().len(), GIVEN);
    }
}
