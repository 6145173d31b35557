//! What a ledger refuses and what it cuts, the same in every backend.

use std::time::Duration;

use super::{ClaimRequest, Error, MAX_BATCH};
use crate::model::{Failure, MAX_ARTIFACT_SIZE, NewArtifact};
use crate::port::store::multipart::{MAX_PART_TAG, MAX_PARTS, MAX_UPLOAD_ID};
use crate::port::store::{PartTag, UploadId};

/// The longest lease on a copy, and the longest delay before another attempt: a day.
pub const MAX_LEASE: Duration = Duration::from_hours(24);
/// The most regions that an artifact may require.
pub const MAX_REGIONS: usize = 100;

/// Refuses an artifact that requires no region, or too many.
pub fn check_register(artifact: &NewArtifact) -> Result<(), Error> {
    match artifact.required.len() {
        1..=MAX_REGIONS => Ok(()),
        n => invalid(format!("artifact {}: 1 to {MAX_REGIONS} required regions, not {n}", artifact.artifact.name)),
    }
}

/// Refuses a question about too many names.
pub fn check_names(len: usize) -> Result<(), Error> {
    if len > MAX_BATCH {
        return invalid(format!("at most {MAX_BATCH} names, not {len}"));
    }
    Ok(())
}

/// Refuses a claim of no copies or of too many, or for too long.
pub fn check_claim(request: &ClaimRequest) -> Result<(), Error> {
    check_limit("copies to claim", request.limit)?;
    check_lease(request.lease)
}

/// Refuses a lease that is too long.
pub fn check_lease(lease: Duration) -> Result<(), Error> {
    if lease > MAX_LEASE {
        return invalid(format!("a lease of {MAX_LEASE:?} at most, not {lease:?}"));
    }
    Ok(())
}

/// Refuses a page of no artifacts or of too many.
pub fn check_page(limit: usize) -> Result<(), Error> {
    check_limit("artifacts in a page", limit)
}

/// Refuses an upload whose id is too long, or whose parts have no size or more than an artifact has.
pub fn check_upload(upload: &UploadId, part_size: u64) -> Result<(), Error> {
    let len = upload.as_str().len();
    if len > MAX_UPLOAD_ID || part_size == 0 || part_size > MAX_ARTIFACT_SIZE {
        return invalid(format!(
            "an upload id of {MAX_UPLOAD_ID} bytes at most, not {len}, with parts of {part_size} bytes"
        ));
    }
    Ok(())
}

/// Refuses too many parts, and parts that no upload has.
pub fn check_parts(parts: &[(u32, PartTag)]) -> Result<(), Error> {
    check_limit("parts", parts.len())?;
    let is_wrong = |(index, tag): &&(u32, PartTag)| *index >= MAX_PARTS || tag.as_str().len() > MAX_PART_TAG;
    match parts.iter().find(is_wrong) {
        Some((index, _)) => invalid(format!("part {index}: {MAX_PARTS} parts, tags of {MAX_PART_TAG} bytes at most")),
        None => Ok(()),
    }
}

/// A reason as it is kept.
pub fn cut_reason(reason: &str) -> &str {
    Failure::cut(reason)
}

fn check_limit(what: &str, limit: usize) -> Result<(), Error> {
    if limit == 0 || limit > MAX_BATCH {
        return invalid(format!("1 to {MAX_BATCH} {what}, not {limit}"));
    }
    Ok(())
}

fn invalid<T>(why: String) -> Result<T, Error> {
    Err(Error::Invalid(why))
}
