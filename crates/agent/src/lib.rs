//! One per host, next to libvirtd: observes the host and moves the bytes.
