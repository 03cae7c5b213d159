//! OpenYurt's custom resources: their types, definitions, conversions and every well-known name.
//!
//! - [`apps`] and [`network`]: a module per kind with the types of all its versions, each with the schema it is checked by
//!   ([`schema`]). Pod templates are free-form JSON: their schema is Kubernetes' own.
//! - [`crd`]: the definitions as the API server takes them; `yurt crds` prints them, `deploy/crds` ships them.
//! - [`conversion`]: between versions, without a loss, as the webhook of the manager does it.
//! - [`translation`]: older ways to say what YurtAppSet v1beta1 says: YurtAppDaemon, YurtAppOverrider, patches of pools.
//! - [`autonomy`]: what a Node says of its pods while it is cut off.
//! - [`names`]: labels, annotations, taints, finalizers, conditions and fixed objects.

pub mod apps;
pub mod autonomy;
pub mod conversion;
pub mod crd;
pub mod meta;
pub mod names;
pub mod network;
pub mod schema;
pub mod translation;

pub use meta::{Metadata, Object, Resource};
