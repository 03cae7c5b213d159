//! `node-lifecycle-controller` of Kubernetes.

use crate::{Context, Settings};
use serde_json::Value;
use std::sync::Arc;
use yurt_controller::node_lifecycle::{self, Kind, Rates};

/// kube-controller-manager's name of this controller.
pub(super) const NAME: &str = "node-lifecycle-controller";
const WORKERS: usize = 4;

struct Native;

impl Kind for Native {
    const NAME: &'static str = NAME;

    fn spares_pods(_: &Value) -> bool {
        false
    }
}

/// Starts the controller.
pub(super) fn start(context: &Arc<Context>, settings: &Settings) {
    node_lifecycle::start::<Native>(context, WORKERS, settings.nodes.into(), Rates::default());
}

#[cfg(test)]
mod tests;
