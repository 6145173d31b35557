//! Bytes at rest and between regions: the artifact store on `object_store`, the registrar and the replicator.

#[cfg(feature = "object-store")]
mod blob;
mod registrar;
mod replicator;

#[cfg(feature = "object-store")]
pub use blob::{BlobStore, BlobStoreSettings, Swept, open_url};
pub use registrar::{Registrar, RegistrarError, RegistrarSettings, RegistrarTick};
pub use replicator::{Replicator, ReplicatorError, ReplicatorSettings, ReplicatorTick};
