//! Program `ferry-lab`.
fn main() {}
