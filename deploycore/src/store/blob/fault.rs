//! What an error of `object_store` means to a caller.

use std::error::Error as StdError;
use std::io;

use object_store::Error as ObjectError;

use crate::port::BackendError;
use crate::port::store::Error;

/// The name that errors carry.
const BACKEND: &str = "object store";

/// An error of the store below, sorted by whether the same call may succeed later.
pub(super) fn fault(error: ObjectError) -> Error {
    let backend = if is_permanent(&error) {
        BackendError::permanent(BACKEND, error)
    } else {
        BackendError::retryable(BACKEND, error)
    };
    Error::Backend(backend)
}

/// A failure that the store below does not know of.
pub(super) fn retryable(detail: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
    Error::Backend(BackendError::retryable(BACKEND, detail))
}

/// A failure that the store below does not know of and that stays.
pub(super) fn permanent(detail: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
    Error::Backend(BackendError::permanent(BACKEND, detail))
}

/// An error of a file, sorted as [`fault`] does.
pub(super) fn io_fault(error: io::Error) -> Error {
    if is_permanent_io(error.kind()) { permanent(error) } else { retryable(error) }
}

/// Whether the object is not there.
pub(super) fn is_missing(error: &ObjectError) -> bool {
    matches!(error, ObjectError::NotFound { .. })
}

/// Whether the store says that it knows no such upload. The one in memory has no other failure.
pub(super) fn is_no_upload(error: &ObjectError) -> bool {
    is_missing(error) || matches!(error, ObjectError::Generic { store: "InMemory", .. })
}

/// Whether the store says that it has not all the parts as they are named, by the words of the clouds: they come with a status that says no more
/// than that something is wrong, which the client takes for a failure like any other.
pub(super) fn is_without_parts(error: &ObjectError) -> bool {
    let words = error.to_string();
    // "InvalidPart" stands in "InvalidPartOrder" too.
    ["InvalidPart", "EntityTooSmall", "InvalidBlockList", "InvalidBlobOrBlock"].iter().any(|word| words.contains(word))
}

/// Clouds retry what is worth retrying and hand up the rest as `Generic`: a connection lost, a server that answered 5xx. Those may pass.
/// A local disk hands up its `io::Error` the same way, and of those some stay until someone acts.
fn is_permanent(error: &ObjectError) -> bool {
    match error {
        ObjectError::NotSupported { .. }
        | ObjectError::NotImplemented { .. }
        | ObjectError::InvalidPath { .. }
        | ObjectError::PermissionDenied { .. }
        | ObjectError::Unauthenticated { .. }
        | ObjectError::UnknownConfigurationKey { .. } => true,
        ObjectError::Generic { source, .. } => {
            let mut next: Option<&(dyn StdError + 'static)> = Some(source.as_ref());
            while let Some(error) = next {
                if let Some(error) = error.downcast_ref::<io::Error>() {
                    return is_permanent_io(error.kind());
                }
                next = error.source();
            }
            false
        }
        _ => false,
    }
}

fn is_permanent_io(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{
        FileTooLarge, IsADirectory, NotADirectory, NotFound, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem,
        StorageFull, Unsupported,
    };
    matches!(
        kind,
        PermissionDenied
            | StorageFull
            | QuotaExceeded
            | ReadOnlyFilesystem
            | FileTooLarge
            | NotADirectory
            | IsADirectory
            | NotFound
            | Unsupported
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_stays_and_a_broken_connection_passes() {
        let generic =
            |kind: io::ErrorKind| ObjectError::Generic { store: "test", source: Box::new(io::Error::from(kind)) };
        assert!(!fault(generic(io::ErrorKind::StorageFull)).is_retryable());
        assert!(!fault(generic(io::ErrorKind::PermissionDenied)).is_retryable());
        assert!(fault(generic(io::ErrorKind::ConnectionReset)).is_retryable());
        assert!(fault(generic(io::ErrorKind::TimedOut)).is_retryable());
        let denied = ObjectError::PermissionDenied { path: "x".into(), source: "no".into() };
        assert!(!fault(denied).is_retryable());
        assert!(fault(ObjectError::Generic { store: "test", source: "503".into() }).is_retryable());
    }
}
