//! What every hypervisor driver keeps: one suite for the fake and for libvirt.
