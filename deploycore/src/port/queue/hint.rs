//! What tells a worker that it may look sooner.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Gives hints to the waiters of one process: as many of them look as jobs were told of, not all. Cloning shares the waiters.
#[derive(Debug, Clone, Default)]
pub struct ReadyHints {
    waiters: Arc<Waiters>,
}

#[derive(Debug, Default)]
struct Waiters {
    count: AtomicUsize,
    /// Wakes them in the order of their coming, and keeps one hint while nobody waits.
    bell: Notify,
}

impl ReadyHints {
    /// Tells that so many jobs may have become claimable; 1 where nobody knows how many. It wakes as many waiters as there are jobs, those first
    /// that wait longest. While nobody waits, any number is kept as one.
    pub fn give(&self, jobs: usize) {
        let waiting = self.waiters.count.load(Ordering::SeqCst);
        for _ in 0..jobs.min(waiting).max(1) {
            self.waiters.bell.notify_one();
        }
    }

    /// One that waits from now on.
    pub fn subscribe(&self) -> ReadyHint {
        ReadyHint { waiters: Some(Arc::clone(&self.waiters)) }
    }
}

/// Hints that jobs may have become claimable, shared with the other waiters of the process: each is given to one of them. None is lost while
/// anybody waits or will wait.
#[derive(Debug)]
pub struct ReadyHint {
    waiters: Option<Arc<Waiters>>,
}

impl ReadyHint {
    /// No hints: its owner looks again when its own time has come.
    pub fn never() -> Self {
        Self { waiters: None }
    }

    /// Resolves at the next hint that is for this waiter, or at once when one was kept; never where there are none. Cancel safe: a hint that
    /// its waiter did not take goes to the next.
    ///
    /// Who was woken claims, and calls [`pass_on`](Self::pass_on) when it got as many jobs as it asked for.
    pub async fn given(&mut self) {
        match &self.waiters {
            Some(waiters) => {
                let _present = Present::of(waiters);
                waiters.bell.notified().await;
            }
            None => std::future::pending().await,
        }
    }

    /// Wakes the next waiter: there may be more jobs than were told of. The last one finds none and keeps the hint to itself.
    pub fn pass_on(&self) {
        if let Some(waiters) = &self.waiters {
            waiters.bell.notify_one();
        }
    }
}

/// Counts a waiter while it waits.
struct Present<'w>(&'w AtomicUsize);

impl<'w> Present<'w> {
    fn of(waiters: &'w Waiters) -> Self {
        waiters.count.fetch_add(1, Ordering::SeqCst);
        Self(&waiters.count)
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::JoinSet;

    use super::*;

    async fn is_given(hint: &mut ReadyHint) -> bool {
        tokio::time::timeout(Duration::from_secs(1), hint.given()).await.is_ok()
    }

    /// So many wait, and stay away once they were woken.
    fn wait(hints: &ReadyHints, waiters: usize) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for _ in 0..waiters {
            let mut hint = hints.subscribe();
            tasks.spawn(async move { hint.given().await });
        }
        tasks
    }

    /// How many are woken within a second.
    async fn woken(tasks: &mut JoinSet<()>) -> usize {
        let mut woken = 0;
        while let Ok(Some(_)) = tokio::time::timeout(Duration::from_secs(1), tasks.join_next()).await {
            woken += 1;
        }
        woken
    }

    #[tokio::test(start_paused = true)]
    async fn hints_while_nobody_waits_are_kept_as_one() {
        let hints = ReadyHints::default();
        let mut hint = hints.subscribe();
        assert!(!is_given(&mut hint).await);
        hints.give(3);
        hints.give(1);
        assert!(is_given(&mut hint).await);
        assert!(!is_given(&mut hint).await);
        assert!(!is_given(&mut ReadyHint::never()).await);
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_waiters_are_woken_as_jobs_were_told_of() {
        let hints = ReadyHints::default();
        let mut tasks = wait(&hints, 8);
        assert_eq!(woken(&mut tasks).await, 0);
        hints.give(1);
        assert_eq!(woken(&mut tasks).await, 1);
        hints.give(3);
        assert_eq!(woken(&mut tasks).await, 3);
        // More jobs than waiters: nothing is left over for who comes later and finds none.
        hints.give(100);
        assert_eq!(woken(&mut tasks).await, 4);
        assert!(!is_given(&mut hints.subscribe()).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hint_that_is_not_taken_goes_to_the_next() {
        let hints = ReadyHints::default();
        let (mut leaving, mut staying) = (hints.subscribe(), hints.subscribe());
        {
            let mut left = Box::pin(leaving.given());
            assert!(futures::poll!(&mut left).is_pending());
            hints.give(1);
        }
        assert!(is_given(&mut staying).await);
        assert!(!is_given(&mut staying).await);
        leaving.pass_on();
        assert!(is_given(&mut staying).await);
    }
}
