//! Reading columns as values of the model.

use std::error::Error;
use std::str::FromStr;

use deploycore::model::Timestamp;
use deploycore::port::BackendError;
use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;

use super::database::{corrupt, failed};
use crate::stored::{self, Corrupt};

/// A row, by column name.
#[derive(Clone, Copy)]
pub(super) struct Columns<'r>(pub(super) &'r PgRow);

impl Columns<'_> {
    pub(super) fn text(self, column: &'static str) -> Result<String, BackendError> {
        self.0.try_get(column).map_err(failed)
    }

    pub(super) fn integer(self, column: &'static str) -> Result<i64, BackendError> {
        self.0.try_get(column).map_err(failed)
    }

    pub(super) fn is_set(self, column: &'static str) -> Result<bool, BackendError> {
        self.0.try_get(column).map_err(failed)
    }

    pub(super) fn number<T: TryFrom<i64>>(self, column: &'static str) -> Result<T, BackendError> {
        let value = self.integer(column)?;
        T::try_from(value).map_err(|_| corrupt(Corrupt::new(column, value)))
    }

    pub(super) fn id<T: From<Uuid>>(self, column: &'static str) -> Result<T, BackendError> {
        Ok(self.0.try_get::<Uuid, _>(column).map_err(failed)?.into())
    }

    pub(super) fn optional_id<T: From<Uuid>>(self, column: &'static str) -> Result<Option<T>, BackendError> {
        Ok(self.0.try_get::<Option<Uuid>, _>(column).map_err(failed)?.map(Into::into))
    }

    pub(super) fn time(self, column: &'static str) -> Result<Timestamp, BackendError> {
        stored::timestamp(column, self.integer(column)?).map_err(corrupt)
    }

    pub(super) fn optional_time(self, column: &'static str) -> Result<Option<Timestamp>, BackendError> {
        let value: Option<i64> = self.0.try_get(column).map_err(failed)?;
        value.map(|micros| stored::timestamp(column, micros).map_err(corrupt)).transpose()
    }

    pub(super) fn optional_text(self, column: &'static str) -> Result<Option<String>, BackendError> {
        self.0.try_get(column).map_err(failed)
    }

    pub(super) fn parse<T>(self, column: &'static str) -> Result<T, BackendError>
    where
        T: FromStr<Err: Error + Send + Sync + 'static>,
    {
        parse(column, &self.text(column)?)
    }

    pub(super) fn optional_parse<T>(self, column: &'static str) -> Result<Option<T>, BackendError>
    where
        T: FromStr<Err: Error + Send + Sync + 'static>,
    {
        self.optional_text(column)?.map(|text| parse(column, &text)).transpose()
    }

    pub(super) fn word<T>(self, column: &'static str, parse: impl Fn(&str) -> Option<T>) -> Result<T, BackendError> {
        let word = self.text(column)?;
        parse(&word).ok_or_else(|| corrupt(Corrupt::new(column, word)))
    }

    pub(super) fn optional_json<T: DeserializeOwned>(self, column: &'static str) -> Result<Option<T>, BackendError> {
        let text = self.optional_text(column)?;
        text.map(|text| stored::from_json(column, &text).map_err(corrupt)).transpose()
    }
}

fn parse<T>(column: &'static str, text: &str) -> Result<T, BackendError>
where
    T: FromStr<Err: Error + Send + Sync + 'static>,
{
    text.parse().map_err(|error| corrupt(Corrupt::new(column, text).because(error)))
}
