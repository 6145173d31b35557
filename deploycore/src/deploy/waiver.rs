//! Which waivers a goal may be written with.

use std::collections::BTreeSet;

use crate::model::{ArtifactName, RegionName, Timestamp, Waiver, later};

/// Why a waiver is refused. Nothing is written then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WaiverError {
    /// The artifact does not require the region.
    #[error("artifact {artifact} does not require region {region}: it requires {}", list(.required))]
    NotRequired {
        /// The region.
        region: RegionName,
        /// The artifact.
        artifact: ArtifactName,
        /// What it requires.
        required: BTreeSet<RegionName>,
    },
    /// The region is waived twice.
    #[error("region {region} is waived twice: name it once")]
    Repeated {
        /// The region.
        region: RegionName,
    },
    /// The reason is empty or too long, or the name of who says so is too long.
    #[error(
        "the waiver of region {region} needs a reason of 1 to {} bytes, and a name of at most {} if there is one",
        Waiver::MAX_REASON,
        Waiver::MAX_BY
    )]
    Words {
        /// The region.
        region: RegionName,
    },
    /// It has expired.
    #[error(
        "the waiver of region {region} expired at {expires_at}: look whether the region is still gone, then waive it anew"
    )]
    Expired {
        /// The region.
        region: RegionName,
        /// When.
        expires_at: Timestamp,
    },
    /// It would hold for too long.
    #[error(
        "the waiver of region {region} would hold until {expires_at}: {latest} is the latest, {:?} from now",
        Waiver::MAX_TERM
    )]
    TooLong {
        /// The region.
        region: RegionName,
        /// Until when.
        expires_at: Timestamp,
        /// The latest that is allowed.
        latest: Timestamp,
    },
    /// No region would be left that has the artifact.
    #[error("every region that artifact {artifact} requires is waived: leave at least one of {}", list(.required))]
    All {
        /// The artifact.
        artifact: ArtifactName,
        /// What it requires.
        required: BTreeSet<RegionName>,
    },
}

fn list(regions: &BTreeSet<RegionName>) -> String {
    regions.iter().map(RegionName::as_str).collect::<Vec<_>>().join(", ")
}

/// The regions that `waivers` take out of what an artifact requires, at an instant.
pub(super) fn waived(
    waivers: &[Waiver],
    artifact: &ArtifactName,
    required: &BTreeSet<RegionName>,
    now: Timestamp,
) -> Result<BTreeSet<RegionName>, WaiverError> {
    let mut waived = BTreeSet::new();
    for waiver in waivers {
        check(waiver, now)?;
        let region = waiver.region.clone();
        if !required.contains(&region) {
            return Err(WaiverError::NotRequired { region, artifact: artifact.clone(), required: required.clone() });
        }
        if !waived.insert(region.clone()) {
            return Err(WaiverError::Repeated { region });
        }
    }
    if !waived.is_empty() && waived.len() == required.len() {
        return Err(WaiverError::All { artifact: artifact.clone(), required: required.clone() });
    }
    Ok(waived)
}

fn check(waiver: &Waiver, now: Timestamp) -> Result<(), WaiverError> {
    let Waiver { region, reason, by, expires_at } = waiver;
    let (region, expires_at, latest) = (region.clone(), *expires_at, later(now, Waiver::MAX_TERM));
    let is_named = by.as_ref().is_none_or(|by| by.len() <= Waiver::MAX_BY);
    if reason.trim().is_empty() || reason.len() > Waiver::MAX_REASON || !is_named {
        return Err(WaiverError::Words { region });
    }
    if expires_at <= now {
        return Err(WaiverError::Expired { region, expires_at });
    }
    if expires_at > latest {
        return Err(WaiverError::TooLong { region, expires_at, latest });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn region(name: &str) -> RegionName {
        name.parse().unwrap()
    }

    fn waiver(name: &str) -> Waiver {
        Waiver::new(region(name), "the datacentre burns", later(Timestamp::UNIX_EPOCH, Duration::from_hours(2)))
    }

    fn check_all(waivers: &[Waiver]) -> Result<BTreeSet<RegionName>, WaiverError> {
        let required = ["r1", "r2", "r3"].map(region).into();
        waived(waivers, &"web-1".parse().unwrap(), &required, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_waiver_that_says_all_takes_its_region_out() {
        assert_eq!(check_all(&[]), Ok(BTreeSet::new()));
        let longest = Waiver { expires_at: later(Timestamp::UNIX_EPOCH, Waiver::MAX_TERM), ..waiver("r1") };
        assert_eq!(check_all(&[longest, waiver("r3").with_by("ann")]), Ok(["r1", "r3"].map(region).into()));
    }

    #[test]
    fn each_mistake_has_its_answer() {
        let said = |waivers: &[Waiver]| check_all(waivers).unwrap_err().to_string();
        assert_eq!(said(&[waiver("mars")]), "artifact web-1 does not require region mars: it requires r1, r2, r3");
        assert_eq!(said(&[waiver("r1"), waiver("r1")]), "region r1 is waived twice: name it once");
        assert_eq!(
            said(&["r1", "r2", "r3"].map(waiver)),
            "every region that artifact web-1 requires is waived: leave at least one of r1, r2, r3"
        );
        let worded = |reason: String| check_all(&[Waiver { reason, ..waiver("r1") }]);
        for reason in [String::new(), " \n".to_owned(), "x".repeat(Waiver::MAX_REASON + 1)] {
            assert_eq!(worded(reason), Err(WaiverError::Words { region: region("r1") }));
        }
        assert!(worded("x".repeat(Waiver::MAX_REASON)).is_ok());
        let named = waiver("r1").with_by("x".repeat(Waiver::MAX_BY + 1));
        assert_eq!(check_all(&[named]), Err(WaiverError::Words { region: region("r1") }));
        let until = |expires_at| said(&[Waiver { expires_at, ..waiver("r1") }]);
        let expired = until(Timestamp::UNIX_EPOCH);
        assert!(expired.starts_with("the waiver of region r1 expired at 1970-01-01T00:00:00Z: "), "{expired}");
        let day_and_more = later(Timestamp::UNIX_EPOCH, Waiver::MAX_TERM + Duration::from_micros(1));
        assert_eq!(
            until(day_and_more),
            "the waiver of region r1 would hold until 1970-01-02T00:00:00.000001Z: 1970-01-02T00:00:00Z is the latest, 86400s from now"
        );
    }
}
