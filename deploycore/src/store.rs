//! Bytes at rest and between regions: the artifact store on `object_store`, the registrar and the replicator.

#[cfg(feature = "object-store")]
mod blob;

#[cfg(feature = "object-store")]
pub use blob::{BlobStore, BlobStoreSettings, Swept};
