//! Component tests: channels, sessions, codecs and disks between two carriers, over real links.

mod coded;
mod ends;
mod lanes;
mod link;
mod long_links;
mod nbd;
mod nbd_model;
mod rate;
mod scan;
mod session;
mod spool;
mod waits;
