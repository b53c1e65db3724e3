//! Every way to reach NATS, and every way in which it fails: the real binary, told as a person tells it, and real
//! nats-servers.

mod commands;
mod contexts;
mod home;
mod jwt;
mod rolling;
mod settings;
mod start;
#[path = "../support/mod.rs"]
mod support;
mod tls;
mod ways;
