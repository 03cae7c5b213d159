//! Brings callers in the cloud to the interceptor.

pub mod settings;
