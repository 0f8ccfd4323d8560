//! Component tests: channels, sessions and disks between two carriers, over real links.

mod lanes;
mod link;
mod long_links;
mod nbd;
mod nbd_model;
mod scan;
mod session;
