//! Any text is a UNC path whose text form parses to the same path, or causes an error.
#![no_main]

use ferry_core::unc::UncPath;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(unc) = text.parse::<UncPath>() {
        assert_eq!(unc.to_string().parse::<UncPath>().expect("its own text"), unc);
    }
});
