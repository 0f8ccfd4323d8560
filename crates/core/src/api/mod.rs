//! Bodies of the two APIs: the server's, for users and programs, and the agent's, which only the server calls.

pub mod agent;
pub mod problem;
pub mod server;
