//! A model of the world, for the real sagas. What hosts have, and what becomes of a request, says whoever implements
//! [`world::Model`]: the sweep as planned, the simulation by chance. What is the same in both stands here.

mod host;
pub(super) mod jobs;
pub(super) mod site;
pub(super) mod world;
