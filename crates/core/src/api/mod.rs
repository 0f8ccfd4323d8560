//! Bodies of the two APIs: the server's, for people and programs, and the agent's, for the server alone.

pub mod agent;
pub mod problem;
pub mod server;
