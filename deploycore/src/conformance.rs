//! The conformance kit: named cases per trait that any backend must pass.
