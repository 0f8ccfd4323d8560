//! Typed clients of the server's and the agent's API.
