//! Component tests: the real server and real agents over fake hypervisors.

mod moves;
mod support;
