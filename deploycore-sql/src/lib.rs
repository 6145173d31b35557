//! deploycore-sql.
