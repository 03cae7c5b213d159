//! What is done to an object through a path of its own.

pub(crate) mod binding;
pub(crate) mod connect;
pub(crate) mod eviction;
pub(crate) mod scale;
pub(crate) mod token;
