//! What is wrong with an object of a built-in kind.

pub(crate) mod names;
