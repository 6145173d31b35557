//! What a region holds that is neither durable nor a service of its own: the board of machine reports.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use deploycore::deploy::{ReportBoard, ReportBoardSettings};
use deploycore::model::{KnownMachine, MachineKey, MachinePage, MachineReport};
use deploycore::port::{BackendError, MachineDirectory, ReportSink};

/// A board that is gone while its node is down, and empty when it comes back.
#[derive(Debug, Default)]
pub struct Board(Mutex<Option<Arc<ReportBoard>>>);

impl Board {
    /// The node is up.
    pub fn open(&self) {
        let board = ReportBoard::new(ReportBoardSettings::default());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(board));
    }

    /// The node is down.
    pub fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn board(&self) -> Result<Arc<ReportBoard>, BackendError> {
        let board = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        board.ok_or_else(|| BackendError::retryable("simulated", "the board is down"))
    }
}

#[async_trait]
impl ReportSink for Board {
    async fn report(&self, report: &MachineReport) -> Result<(), BackendError> {
        self.board()?.report(report).await
    }
}

#[async_trait]
impl MachineDirectory for Board {
    async fn machines(
        &self,
        after: Option<&MachineKey>,
        limit: usize,
    ) -> Result<MachinePage<KnownMachine>, BackendError> {
        self.board()?.machines(after, limit).await
    }
}
