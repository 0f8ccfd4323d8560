//! Component tests: real agents over fake hypervisors, asked over their API.

mod access;
mod damaged;
mod moves;
mod networks;
mod offline;
mod places;
mod site;
mod stalls;
mod storage;
