//! The control plane: REST API, jobs, inventory.
