//! An embeddable Kubernetes API server.

pub mod crd;
pub mod resources;
