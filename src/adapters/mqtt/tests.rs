//! Sessions with a client on one side and a hub on the other that answers when it is told to.

mod bench;
mod commands;
mod entering;
mod messages;
mod sessions;
mod stream;
