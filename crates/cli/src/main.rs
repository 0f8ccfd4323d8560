//! Program `ferry`.
fn main() {}
