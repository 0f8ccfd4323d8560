//! Drivers of what Ferry does not own: hypervisors and file shares.
