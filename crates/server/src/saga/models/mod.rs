//! A model of the world for the real sagas. An implementation of [`world::Model`] decides what hosts have and what
//! happens to requests: the sweep by a plan, the simulation at random. This folder contains what both share.

mod host;
pub(super) mod jobs;
pub(super) mod site;
pub(super) mod world;
