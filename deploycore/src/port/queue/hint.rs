//! What tells a worker that it may look sooner.

use tokio::sync::watch;

/// Hints that jobs may have become claimable. Many before anyone waits count once, and none is lost.
#[derive(Debug)]
pub struct ReadyHint {
    changes: Option<watch::Receiver<()>>,
}

impl ReadyHint {
    /// No hints: its owner looks again when its own time has come.
    pub fn never() -> Self {
        Self { changes: None }
    }

    /// A hint for each change that `changes` has not seen yet.
    pub fn of(changes: watch::Receiver<()>) -> Self {
        Self { changes: Some(changes) }
    }

    /// Resolves at the next hint, or at once when one was given since the last; never once there can be no more. Cancel safe.
    pub async fn given(&mut self) {
        if let Some(changes) = &mut self.changes
            && changes.changed().await.is_ok()
        {
            return;
        }
        self.changes = None;
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn is_given(hint: &mut ReadyHint) -> bool {
        tokio::time::timeout(Duration::from_secs(1), hint.given()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn hints_before_the_wait_count_once_and_end_with_their_giver() {
        let (giver, changes) = watch::channel(());
        let mut hint = ReadyHint::of(changes);
        assert!(!is_given(&mut hint).await);
        giver.send_replace(());
        giver.send_replace(());
        assert!(is_given(&mut hint).await);
        assert!(!is_given(&mut hint).await);
        drop(giver);
        assert!(!is_given(&mut hint).await);
        assert!(!is_given(&mut ReadyHint::never()).await);
    }
}
