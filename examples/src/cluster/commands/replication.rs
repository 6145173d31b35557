//! How the copies to each region go, for people.

use std::collections::BTreeMap;
use std::time::Duration;

use bytesize::ByteSize;
use deploycore::model::{RegionName, ReplicationFigures};

pub(super) fn show(regions: &BTreeMap<RegionName, ReplicationFigures>) {
    if regions.is_empty() {
        println!("nothing is pending, failed or lately complete");
    }
    for (region, figures) in regions {
        println!("{region:<12} {}", line(figures));
    }
}

fn line(figures: &ReplicationFigures) -> String {
    let ReplicationFigures { pending, overdue, failed, completed, late, .. } = figures;
    let seconds = |time: Option<Duration>| time.map_or("-".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()));
    let bytes = ByteSize(figures.pending_bytes).display().iec();
    let (p50, p99, max) = (seconds(figures.p50), seconds(figures.p99), seconds(figures.max));
    format!(
        "{pending} pending with {bytes}, {overdue} of them late; {failed} failed; {completed} complete, {late} of them late; \
         p50 {p50}, p99 {p99}, max {max}"
    )
}
