//! How a client deals with its gateways.

use std::time::Duration;

use bytesize::ByteSize;
use deploycore::model::friendly;
use serde::{Deserialize, Serialize};

/// Settings of a [`GatewayClient`](super::GatewayClient).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayClientSettings {
    /// To reach a gateway; 5 s by default.
    #[serde(with = "friendly")]
    pub connect_timeout: Duration,
    /// From request to the end of the answer, waits not counted; 15 s by default.
    #[serde(with = "friendly")]
    pub request_timeout: Duration,
    /// How long one request of a watch waits for a change; 15 s by default, half of what a region lets pass before a machine that it does not
    /// hear of is not live. Requests that nothing has changed for follow each other by at least a second, however short the wait, here or by
    /// the gateway's own bound.
    #[serde(with = "friendly")]
    pub watch_wait: Duration,
    /// The largest answer that is read; 64 MiB by default, a thousand goals of the largest size.
    pub max_answer: ByteSize,
}

impl Default for GatewayClientSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(15),
            watch_wait: Duration::from_secs(15),
            max_answer: ByteSize::mib(64),
        }
    }
}

impl GatewayClientSettings {
    /// Sets how long the gateway may take to answer.
    #[must_use]
    pub fn with_request_timeout(mut self, request_timeout: Duration) -> Self {
        self.request_timeout = request_timeout;
        self
    }

    /// Sets how long one request of a watch waits.
    #[must_use]
    pub fn with_watch_wait(mut self, watch_wait: Duration) -> Self {
        self.watch_wait = watch_wait;
        self
    }
}
