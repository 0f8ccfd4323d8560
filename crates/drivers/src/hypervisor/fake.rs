//! A hypervisor for tests: guests with memory, dirty rate and disks, and a fault plan.
