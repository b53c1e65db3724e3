//! One input in, the whole list of effects out.

mod assignments;
mod drain;
mod fetch;
mod hostile;
mod isr;
mod lease;
mod push;
mod registration;
mod support;
