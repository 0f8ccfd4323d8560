//! Program `ferry-server`.
fn main() {}
