//! Bytes at rest and between regions: the artifact store on `object_store`, the registrar and the replicator.
