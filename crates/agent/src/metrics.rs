//! The agent's counters; `http::metrics` publishes them.

use ferry_core::metrics::Counter;

/// What the agent counts while it runs.
pub struct Metrics {
    /// Answers of the control API by method, route and status.
    pub(crate) requests: Counter<3>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { requests: Counter::new(["method", "route", "status"]) }
    }
}
