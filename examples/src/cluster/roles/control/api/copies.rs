//! The handlers that are about copies.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use deploycore::model::{ArtifactName, FiguresRequest, RegionName, ReplicationFigures};
use deploycore::port::store;
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
    let collector = collector.map_err(|error| no_collector(&error))?;
    let plan = collector.plan().await?;
    let round = if request.delete { Some(collector.tick().await?) } else { None };
    Ok(Json(CollectAnswer { plan, round }))
}

/// A store that is only away may be there for the next call; all else is for a person to mend.
fn no_collector(error: &anyhow::Error) -> Error {
    let message = format!("{error:#}");
    match error.downcast_ref::<store::Error>() {
        Some(error) if error.is_retryable() => Error::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message),
        _ => Error::bad(message),
    }
}

#[cfg(test)]
mod tests {
    use deploycore::port::BackendError;

    use super::*;

    #[test]
    fn a_store_that_is_away_is_asked_for_again() {
        let opened = |error: store::Error| anyhow::Error::from(error).context("[regions.eu] store");
        let away = opened(BackendError::retryable("s3", "no answer within 20s").into());
        let wrong = opened(store::Error::Invalid("an option that it does not know".to_owned()));
        for (error, status) in [(away, 503), (wrong, 422), (anyhow::anyhow!("it is on another host"), 422)] {
            let answer = no_collector(&error);
            assert_eq!(answer.status.as_u16(), status, "{error:#}");
            assert_eq!(answer.body.message, format!("{error:#}"));
        }
    }
}
