//! Bytes at rest and between regions: the artifact store on `object_store`, the registrar, the replicator and the collector.

#[cfg(feature = "object-store")]
mod blob;
mod collector;
mod registrar;
mod replicator;

#[cfg(feature = "object-store")]
pub use blob::{BlobStore, BlobStoreSettings, Swept, open_url};
pub use collector::{
    Collectable, CollectedRegion, CollectionPlan, Collector, CollectorError, CollectorSettings, CollectorTick,
    InvalidCollectorSettings, Kept,
};
pub use registrar::{Registrar, RegistrarError, RegistrarSettings, RegistrarTick};
pub use replicator::{Replicator, ReplicatorError, ReplicatorSettings, ReplicatorTick};
