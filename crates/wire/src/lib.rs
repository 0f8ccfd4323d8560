//! Moves bytes between two sockets over TLS, and reports.
