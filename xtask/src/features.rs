//! What is built and tested. The structure test reads this file as well.

/// Features with which everything is built, checked and tested: tests stop programs and make them fail at named points.
pub(crate) const FEATURES: &str = "ferry-agent/failpoints,ferry-server/failpoints,ferry-lab/lab";
