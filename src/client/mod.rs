//! What speaks to a cluster from outside: a typed client of the admin verbs.
//!
//! Nothing here knows the metadata's rules: it asks, tries again where that is safe, and says what the answer was.

mod admin;
mod attempts;

pub use admin::{Admin, AdminError};
