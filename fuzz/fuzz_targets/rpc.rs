//! Any bytes pass libvirt's RPC gate and tap without panic, and nothing is let through that did not come.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| ferry_drivers::hypervisor::rpc::fuzz(bytes));
