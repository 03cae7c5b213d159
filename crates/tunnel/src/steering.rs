//! Brings callers in the cloud to the interceptor: connections of this host to the kubelets' ports are translated (`rules`), and names
//! of nodes lead to the tunnel's service for whoever asks the DNS (`names`).
//!
//! - [`settings`]: the config map `yurt-tunnel-server-cfg`.
//! - `plan` (pure): which ports go where, and which destinations are left alone.
//! - `nftables`, `iptables`: a plan as rules; `kernel`: rules of one owner, written in one transaction when they differ. The agent's way
//!   from the edge to the cloud ([`crate::reverse`]) is an owner, too.
//! - [`Pods`]: connections to pods on nodes that run an agent are led to the server, too.
//! - `names`: the config map `yurt-tunnel-nodes` and the ports of the internal service, kept by one instance.

mod arguments;
mod iptables;
mod kernel;
mod metrics;
mod names;
mod nftables;
mod plan;
mod pods;
mod rules;
pub mod settings;
#[cfg(test)]
mod tests;
mod tool;

pub use arguments::SteeringArgs;
pub use kernel::Backend;
pub(crate) use kernel::{Owner, Rules, Ruleset};
pub use metrics::Metrics;
pub use names::{NamesConfig, keep_names};
pub(crate) use nftables::{PRIORITY, family_of};
pub use plan::{Family, Forget, Plan, Targets};
pub use pods::{Pods, Ports};
pub use rules::{Config, SteeringError, run};
pub use tool::{ToolError, Tools};
