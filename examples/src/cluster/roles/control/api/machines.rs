//! Machines of all regions, by pages: a region may have tens of thousands.

use std::collections::BTreeSet;
use std::future::Future;
use std::ops::Bound;

use axum::Json;
use axum::extract::State as Shared;
use deploycore::model::{KnownMachine, MachineKey, MachineName, MachinePage, MachineStanding, RegionName, ServiceName};
use deploycore::port::{BackendError, MachineDirectory};
use deploycore_kv::gateway::GatewayClient;
use serde::Deserialize;

use super::{Answer, Context, Error, Path, Query, State, no_goal};
use crate::cluster::api::{MachinesCursor, MachinesPage};

/// Machines of a page, where the request does not say.
const PAGE: usize = 1_000;
/// The most that a request may ask for.
const MOST: usize = 10_000;

/// A [`MachinesCursor`] and a limit.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PageQuery {
    limit: Option<usize>,
    region: Option<RegionName>,
    after_region: Option<RegionName>,
    after_machine: Option<MachineName>,
}

pub(super) async fn machines(
    Shared(state): Context,
    Query(query): Query<PageQuery>,
) -> Answer<MachinesPage<KnownMachine>> {
    let read = |gateway: GatewayClient, after: Option<MachineKey>, limit| async move {
        gateway.machines(after.as_ref(), limit).await
    };
    page(&state, query, read).await
}

pub(super) async fn standings(
    Shared(state): Context,
    Path(service): Path<ServiceName>,
    Query(query): Query<PageQuery>,
) -> Answer<MachinesPage<MachineStanding>> {
    let goal = &state.current(&service).await?.ok_or_else(|| no_goal(&service))?;
    let read = |gateway: GatewayClient, after: Option<MachineKey>, limit| async move {
        gateway.standings(goal, after.as_ref(), limit).await
    };
    page(&state, query, read).await
}

/// One region after the other, until there are enough.
async fn page<T, F>(
    state: &State,
    query: PageQuery,
    read: impl Fn(GatewayClient, Option<MachineKey>, usize) -> F,
) -> Answer<MachinesPage<T>>
where
    F: Future<Output = Result<MachinePage<T>, BackendError>>,
{
    let limit = query.limit.unwrap_or(PAGE).clamp(1, MOST);
    let mut after = match (query.after_region, query.after_machine) {
        (Some(region), Some(machine)) if query.region.is_some() => Some(MachineKey { region, machine }),
        (None, None) => None,
        _ => {
            let text = "region, after_region and after_machine go together: all stand in `next` of the page before";
            return Err(Error::bad(text));
        }
    };
    let from = query.region.as_ref().map_or(Bound::Unbounded, Bound::Included);
    let mut found = MachinesPage { machines: Vec::new(), incomplete: BTreeSet::new(), next: None };
    for (name, region) in state.regions.range((from, Bound::Unbounded)) {
        let room = limit - found.machines.len();
        if room == 0 {
            found.next = Some(MachinesCursor { region: name.clone(), after_region: None, after_machine: None });
            break;
        }
        let page = read((*region.gateway).clone(), after.take(), room).await;
        if page.as_ref().map_or(true, |page| page.settling) {
            found.incomplete.insert(name.clone());
        }
        let Ok(page) = page else { continue };
        found.machines.extend(page.machines);
        if let Some(MachineKey { region, machine }) = page.next {
            let (after_region, after_machine) = (Some(region), Some(machine));
            found.next = Some(MachinesCursor { region: name.clone(), after_region, after_machine });
            break;
        }
    }
    Ok(Json(found))
}
