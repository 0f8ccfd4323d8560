//! libvirt's C interface, made safe. The only `unsafe` of the project's programs.
//!
//! Every pointer that libvirt hands out is owned by exactly one value here and freed when it is dropped; every string
//! is copied. Errors are libvirt's last error of the calling thread. Calls block; libvirt's objects may be used from
//! several threads at once.
#![allow(unsafe_code)]

mod call;
mod connection;
mod domain;
mod params;
mod watch;

pub use self::{
    call::Fault,
    connection::Connection,
    domain::{Domain, Migrate, PausedReason, PowerState, Xml},
    watch::{Event, Watch},
};
