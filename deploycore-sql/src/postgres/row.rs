//! How PostgreSQL gives what stands in a row: ids as UUIDs, flags as booleans.

use deploycore::model::{ClaimId, JobId};
use deploycore::port::BackendError;
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;

use super::database::{corrupt, failed};
use crate::columns::StoredRow;
use crate::stored::Corrupt;

impl StoredRow for PgRow {
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
        self.try_get(column).map_err(failed)
    }

    fn job_id(&self, column: &'static str) -> Result<JobId, BackendError> {
        self.try_get::<Uuid, _>(column).map(Into::into).map_err(failed)
    }

    fn claim_id(&self, column: &'static str) -> Result<ClaimId, BackendError> {
        self.try_get::<Uuid, _>(column).map(Into::into).map_err(failed)
    }

    fn optional_claim_id(&self, column: &'static str) -> Result<Option<ClaimId>, BackendError> {
        Ok(self.try_get::<Option<Uuid>, _>(column).map_err(failed)?.map(Into::into))
    }

    fn corrupt(error: Corrupt) -> BackendError {
        corrupt(error)
    }
}
