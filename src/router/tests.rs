//! The router between engines that play device and hub, in memory and under a simulated clock.

mod closing;
mod credit;
mod deliveries;
mod hold;
mod hostile;
mod kit;
mod links;
mod random;
mod shared;
mod shared_kit;
