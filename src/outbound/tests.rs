//! A hub and a disk that do what they are told, and the way out between them.

mod cases;
mod lives;
mod world;
