//! The init of the ticker guest.
fn main() {}
