//! How SQLite gives what stands in a row: ids as text, flags as 0 and 1.

use deploycore::model::{ClaimId, JobId};
use deploycore::port::BackendError;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::database::{corrupt, failed};
use crate::columns::{StoredRow, parse};
use crate::stored::Corrupt;

impl StoredRow for SqliteRow {
    fn integer(&self, column: &'static str) -> Result<i64, BackendError> {
        self.try_get(column).map_err(failed)
    }

    fn optional_integer(&self, column: &'static str) -> Result<Option<i64>, BackendError> {
        self.try_get(column).map_err(failed)
    }

    fn text(&self, column: &'static str) -> Result<String, BackendError> {
        self.try_get(column).map_err(failed)
    }

    fn optional_text(&self, column: &'static str) -> Result<Option<String>, BackendError> {
        self.try_get(column).map_err(failed)
    }

    fn is_set(&self, column: &'static str) -> Result<bool, BackendError> {
        Ok(self.integer(column)? != 0)
    }

    fn job_id(&self, column: &'static str) -> Result<JobId, BackendError> {
        parse(column, &self.text(column)?).map_err(corrupt)
    }

    fn claim_id(&self, column: &'static str) -> Result<ClaimId, BackendError> {
        parse(column, &self.text(column)?).map_err(corrupt)
    }

    fn optional_claim_id(&self, column: &'static str) -> Result<Option<ClaimId>, BackendError> {
        self.optional_text(column)?.map(|text| parse(column, &text).map_err(corrupt)).transpose()
    }

    fn corrupt(error: Corrupt) -> BackendError {
        corrupt(error)
    }
}
