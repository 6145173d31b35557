//! deploycore-kv.
