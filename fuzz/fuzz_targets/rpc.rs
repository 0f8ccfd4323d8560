//! Any bytes pass libvirt's RPC gate and tap without a panic, and the output contains nothing that was not in the
//! input.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| ferry_drivers::hypervisor::rpc::fuzz(bytes));
