//! The handlers that are about copies.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State as Shared;
use deploycore::model::{ArtifactName, FiguresRequest, RegionName, ReplicationFigures};

use super::{Answer, Body, Context, Path, Query};
use crate::cluster::api::{PrioritizeRequest, Raised};

pub(super) async fn replication(
    Shared(state): Context,
    Query(request): Query<FiguresRequest>,
) -> Answer<BTreeMap<RegionName, ReplicationFigures>> {
    Ok(Json(state.ledger.figures(&request).await?))
}

pub(super) async fn prioritize(
    Shared(state): Context,
    Path(artifact): Path<ArtifactName>,
    Body(request): Body<PrioritizeRequest>,
) -> Answer<Raised> {
    Ok(Json(Raised { copies: state.ledger.prioritize(&artifact, request.priority).await? }))
}
