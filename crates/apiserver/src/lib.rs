//! An embeddable Kubernetes API server.

mod causes;
pub mod crd;
pub mod defaults;
pub mod managed;
#[cfg(test)]
mod recorded;
pub mod resources;
pub mod validation;
