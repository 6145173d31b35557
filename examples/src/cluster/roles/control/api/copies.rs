//! The handlers that are about copies.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State as Shared;
use deploycore::model::{ArtifactName, FiguresRequest, RegionName, ReplicationFigures};
use deploycore::store::CollectorSettings;

use super::{Answer, Body, Context, Error, Path, Query};
use crate::cluster::api::{CollectAnswer, CollectRequest, PrioritizeRequest, Raised};

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

/// The caller waits for a round; one that goes away ends it, and the next goes on.
pub(super) async fn collect(Shared(state): Context, Body(request): Body<CollectRequest>) -> Answer<CollectAnswer> {
    let grace = state.collection.config.collect.as_ref().map_or(CollectorSettings::default().grace, |set| set.grace);
    let settings =
        CollectorSettings { older_than: request.older_than, keep: request.keep, grace, ..Default::default() };
    let collector = state.collection.collector(settings, &state.regions).await;
    let collector = collector.map_err(|error| Error::bad(format!("{error:#}")))?;
    let plan = collector.plan().await?;
    let round = if request.delete { Some(collector.tick().await?) } else { None };
    Ok(Json(CollectAnswer { plan, round }))
}
