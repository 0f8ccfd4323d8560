//! Program `ferry-agent`.
fn main() {}
