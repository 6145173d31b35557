//! How copies go, from the rows in which an engine counted them.

use std::collections::BTreeMap;
use std::time::Duration;

use deploycore::model::{CopyState, RegionName, ReplicationFigures};
use deploycore::port::BackendError;

use crate::columns::{Columns, StoredRow};

#[derive(Default)]
pub(crate) struct Figures(pub(crate) BTreeMap<RegionName, ReplicationFigures>);

impl Figures {
    /// Takes a region's count of pending copies, or of failed ones.
    pub(crate) fn take_unfinished(&mut self, row: &impl StoredRow) -> Result<(), BackendError> {
        let columns = Columns(row);
        let figures = self.0.entry(columns.parse("region")?).or_default();
        if columns.word("state", CopyState::parse)? == CopyState::Failed {
            figures.failed = columns.number("copies")?;
            return Ok(());
        }
        figures.pending = columns.number("copies")?;
        figures.pending_bytes = columns.number("bytes")?;
        figures.oldest_pending = columns.optional_time("oldest")?;
        figures.overdue = columns.number("overdue")?;
        Ok(())
    }

    /// Takes a region's count of complete copies.
    pub(crate) fn take_completed(&mut self, row: &impl StoredRow) -> Result<(), BackendError> {
        let columns = Columns(row);
        let took = |column| columns.number(column).map(|micros| Some(Duration::from_micros(micros)));
        let figures = self.0.entry(columns.parse("region")?).or_default();
        figures.completed = columns.number("copies")?;
        figures.late = columns.number("late")?;
        (figures.p50, figures.p99, figures.max) = (took("p50")?, took("p99")?, took("longest")?);
        Ok(())
    }
}
