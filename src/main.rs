//! The program `fieldgate`.

fn main() {}
