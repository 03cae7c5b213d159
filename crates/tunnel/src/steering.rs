//! Brings callers in the cloud to the interceptor: connections of this host to the kubelets' ports are translated (`rules`), and names
//! of nodes lead to the tunnel's service for whoever asks the DNS (`names`).
//!
//! - [`settings`]: the config map `yurt-tunnel-server-cfg`.
//! - `plan` (pure): which ports go where, and which destinations are left alone.
//! - `nftables`, `iptables`: a plan as rules, each written in one transaction, and only when something differs.
//! - `names`: the config map `yurt-tunnel-nodes` and the ports of the internal service, kept by one instance.

mod arguments;
mod iptables;
mod metrics;
mod names;
mod nftables;
mod plan;
mod rules;
pub mod settings;
#[cfg(test)]
mod tests;
mod tool;

pub use arguments::SteeringArgs;
pub use metrics::Metrics;
pub use names::{NamesConfig, keep_names};
pub use plan::{Family, Forget, Plan, Targets};
pub use rules::{Backend, Config, SteeringError, run};
pub use tool::{ToolError, Tools};
