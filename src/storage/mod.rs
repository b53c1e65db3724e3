//! The storage node: a core that decides, and a shell that carries out what was decided.

pub mod core;
