//! Component tests: the real server and real agents over fake hypervisors, in one process.

mod actions;
mod api;
mod bad_input;
mod jobs;
mod metrics;
mod moves;
mod networks;
mod offline;
mod places;
mod rules;
mod shares;
mod storage;
mod support;
mod transfer;
mod trust;
mod with_disks;
