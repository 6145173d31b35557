//! Which cryptography the process's TLS stands on.

/// Makes ring the process's provider of cryptography for rustls where the program has chosen none. Idempotent. Without a feature of a cloud it
/// does nothing.
///
/// With such a feature, `reqwest` takes its cryptography from the process's choice, and making any of its clients panics where there is
/// none. Stores that are opened by URL and the clients of this crate family see to it themselves; a program that makes clients of its own
/// calls this first, or installs another provider at its start.
pub fn ensure_provider() {
    #[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[cfg(all(test, any(feature = "s3", feature = "gcs", feature = "azure")))]
mod tests {
    #[test]
    fn a_client_can_be_made_afterwards() {
        super::ensure_provider();
        super::ensure_provider();
        reqwest::Client::builder().build().unwrap();
    }
}
