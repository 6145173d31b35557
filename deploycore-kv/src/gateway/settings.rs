//! How a gateway bounds what it does for whom.

use std::time::Duration;

use bytesize::ByteSize;
use deploycore::model::friendly;
use serde::{Deserialize, Serialize};

/// Who may change goals through a gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Nobody: it serves machines.
    #[default]
    ReadOnly,
    /// Whoever reaches it: it serves the control plane.
    Writable,
}

/// Settings of a [`Gateway`](super::Gateway).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewaySettings {
    /// Whether goals may be written; read-only by default.
    pub access: Access,
    /// The longest that an answer is held back for a change; 60 s by default. A longer wish is cut to it, and with 0 none is held back.
    #[serde(with = "friendly")]
    pub max_wait: Duration,
    /// Answers held back at once; 50,000 by default. One costs its connection and less than 16 KiB.
    pub max_waiters: usize,
    /// Those who wait for one change are answered over so long, and at once where they are few; 1 s by default.
    #[serde(with = "friendly")]
    pub release_within: Duration,
    /// How long the store may take, and before that the body of the request, until it is answered with an error; 10 s by default.
    #[serde(with = "friendly")]
    pub request_timeout: Duration,
    /// Calls to the store at once, waits and manifests not counted; 10,000 by default. Past that a request is answered with `429`.
    pub max_requests: usize,
    /// Requests at once that wait for a manifest to be read; 10,000 by default. They share one read for each artifact. Past that a request for one
    /// that is not at hand is answered with `429`.
    pub max_manifests: usize,
    /// Connections at once; 60,000 by default. One too many is told to come again and closed. The process must be allowed as many open
    /// files, and some more.
    pub max_connections: usize,
    /// A connection that asks for nothing is closed after so long, as is one that does not finish to ask; 60 s by default. Machines poll more
    /// often.
    #[serde(with = "friendly")]
    pub idle_timeout: Duration,
    /// A client that does not take its answer whole so long after it began to refuse bytes is cut off; 30 s by default.
    #[serde(with = "friendly")]
    pub send_timeout: Duration,
    /// What a machine is told to let pass between two polls, at the least; 10 s by default.
    #[serde(with = "friendly")]
    pub next_poll: Duration,
    /// Polls a second that machines shall come to all together, by what they are told; 500 by default. With 20,000 connections one is told
    /// to come every 40 s. Waits are not polls.
    pub polls_per_second: u32,
    /// The largest request body; 1 MiB by default.
    pub max_body: ByteSize,
    /// Prepared manifests kept in memory; 64 MiB by default, about a thousand large artifacts.
    pub manifest_cache: ByteSize,
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self {
            access: Access::ReadOnly,
            max_wait: Duration::from_mins(1),
            max_waiters: 50_000,
            release_within: Duration::from_secs(1),
            request_timeout: Duration::from_secs(10),
            max_requests: 10_000,
            max_manifests: 10_000,
            max_connections: 60_000,
            idle_timeout: Duration::from_mins(1),
            send_timeout: Duration::from_secs(30),
            next_poll: Duration::from_secs(10),
            polls_per_second: 500,
            max_body: ByteSize::mib(1),
            manifest_cache: ByteSize::mib(64),
        }
    }
}

impl GatewaySettings {
    /// Sets who may change goals.
    #[must_use]
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Sets the longest wait for a change.
    #[must_use]
    pub fn with_max_wait(mut self, max_wait: Duration) -> Self {
        self.max_wait = max_wait;
        self
    }

    /// Sets how many answers are held back at once.
    #[must_use]
    pub fn with_max_waiters(mut self, max_waiters: usize) -> Self {
        self.max_waiters = max_waiters;
        self
    }

    /// Sets how long the store may take.
    #[must_use]
    pub fn with_request_timeout(mut self, request_timeout: Duration) -> Self {
        self.request_timeout = request_timeout;
        self
    }

    /// Sets how many connections there are at once.
    #[must_use]
    pub fn with_max_connections(mut self, max_connections: usize) -> Self {
        self.max_connections = max_connections;
        self
    }

    /// Sets how long a connection may say nothing.
    #[must_use]
    pub fn with_idle_timeout(mut self, idle_timeout: Duration) -> Self {
        self.idle_timeout = idle_timeout;
        self
    }

    /// Sets how long a client may take over its answer.
    #[must_use]
    pub fn with_send_timeout(mut self, send_timeout: Duration) -> Self {
        self.send_timeout = send_timeout;
        self
    }

    /// Sets what a machine is told to let pass between two polls, at the least.
    #[must_use]
    pub fn with_next_poll(mut self, next_poll: Duration) -> Self {
        self.next_poll = next_poll;
        self
    }
}
