//! Component tests: channels, sessions, codecs and disks between two carriers, over real links.

mod coded;
mod lanes;
mod link;
mod long_links;
mod nbd;
mod nbd_model;
mod scan;
mod session;
