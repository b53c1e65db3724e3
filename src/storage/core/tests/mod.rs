//! One input, and everything that follows from it.
