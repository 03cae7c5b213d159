//! What is done to an object through a path of its own.

pub mod binding;
pub mod eviction;
pub mod scale;
pub mod token;
