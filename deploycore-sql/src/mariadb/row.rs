//! How MariaDB gives what stands in a row: ids as 16 bytes, flags as small integers. And how rows are given to a statement.

use deploycore::model::{ClaimId, JobId};
use deploycore::port::BackendError;
use serde::Serialize;
use sqlx::Row;
use sqlx::mysql::MySqlRow;
use sqlx::types::Uuid;

use super::database::{corrupt, failed};
use crate::columns::StoredRow;
use crate::stored::Corrupt;

impl StoredRow for MySqlRow {
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

/// The 16 bytes of an id in the JSON that a statement reads by `JSON_TABLE`, whose columns have no binary text: `UNHEX` of it.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(transparent)]
pub(super) struct Hex(#[serde(serialize_with = "simple")] Uuid);

fn simple<S: serde::Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&id.simple())
}

impl From<JobId> for Hex {
    fn from(id: JobId) -> Self {
        Self(id.as_uuid())
    }
}

impl From<ClaimId> for Hex {
    fn from(id: ClaimId) -> Self {
        Self(id.as_uuid())
    }
}
