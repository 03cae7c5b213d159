//! `node-life-cycle-controller` of OpenYurt: Kubernetes' node life cycle, but that the pods of autonomous nodes stay in service while
//! the cloud hears nothing of their node. Only where it is named, for it takes the place of kube-controller-manager's
//! (`--controllers=-nodelifecycle,*` there).

use crate::Entry;
use serde_json::Value;
use yurt_api::autonomy::Autonomy;
use yurt_controller::{
    node_lifecycle::{Kind, Rates, Times, start},
    policy::Rule,
};

pub(crate) const ENTRY: Entry = Entry::new(
    AutonomousNodes::NAME,
    "nodelifecycle",
    &[
        Rule::new("", &["nodes"], &["get", "patch"]),
        Rule::new("", &["nodes/status"], &["patch"]),
        Rule::new("", &["pods"], &["list"]),
        Rule::new("", &["pods/status"], &["patch"]),
        Rule::EVENTS,
    ],
    |context, settings| {
        let told = &settings.node_life_cycle;
        let times = Times {
            grace: told.monitor_grace,
            startup_grace: told.startup_grace,
            ..Times::default()
        };
        let rates = Rates {
            eviction: told.eviction_rate,
            secondary: told.secondary_eviction_rate,
            small: told.large_cluster,
            unhealthy: told.unhealthy_zone,
        };
        let workers = settings.workers(AutonomousNodes::NAME, 8);
        start::<AutonomousNodes>(context, workers, times, rates);
    },
)
.off_by_default();

/// `node-life-cycle-controller`.
#[derive(Debug)]
struct AutonomousNodes;

impl Kind for AutonomousNodes {
    const NAME: &'static str = "node-life-cycle-controller";

    fn spares_pods(node: &Value) -> bool {
        !matches!(Autonomy::of(node), Autonomy::Off(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeLifeCycle, Settings, registry, stage::Stage};
    use serde_json::json;
    use std::time::Duration;
    use yurt_api::names::annotations::AUTONOMY_DURATION;
    use yurt_controller::{pod, selection::Selection, taint};

    #[test]
    fn only_its_name_selects_it() {
        let selected = |list: &str| {
            let selection = Selection::parse(list, registry::names()).expect("known");
            registry::selected(&selection).any(|entry| entry.names.alias == "nodelifecycle")
        };
        assert!(!selected("*") && !selected("-nodelifecycle,*"));
        assert!(selected("nodelifecycle") && selected("*,node-life-cycle-controller"));
    }

    #[tokio::test]
    async fn pods_of_autonomous_nodes_stay_in_service() {
        let settings = Settings {
            node_life_cycle: NodeLifeCycle {
                monitor_grace: Duration::from_secs(1),
                ..NodeLifeCycle::default()
            },
            ..Settings::default()
        };
        let stage = Stage::start_confined(AutonomousNodes::NAME, settings).await;
        let now = pod::stamp(jiff::Timestamp::now());
        for (name, annotations) in [
            ("plain", json!({})),
            ("edge", json!({AUTONOMY_DURATION: "0"})),
        ] {
            let ready = json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": now, "lastTransitionTime": now}]);
            let node = json!({"metadata": {"name": name, "annotations": annotations}, "status": {"conditions": ready}});
            stage.create("/api/v1/nodes", node).await;
            let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": name, "containers": [{"name": "c", "image": "i"}]}});
            stage.create("/api/v1/namespaces/default/pods", pod).await;
            stage.report("default", name, "Running", true).await;
        }
        for name in ["plain", "edge"] {
            let unreachable = |node: &Value| taint::has(node, taint::UNREACHABLE, "NoSchedule");
            stage
                .until(&format!("/api/v1/nodes/{name}"), unreachable)
                .await;
        }
        let path = |name: &str| format!("/api/v1/namespaces/default/pods/{name}");
        stage.until(&path("plain"), |pod| !pod::is_ready(pod)).await;
        let edge = stage.kube.get(&path("edge")).await.expect("there");
        assert!(pod::is_ready(&edge));
        // What is spared no longer is made up for.
        let off = json!({"metadata": {"annotations": {AUTONOMY_DURATION: null}}});
        stage
            .kube
            .merge("/api/v1/nodes/edge", &off)
            .await
            .expect("annotated");
        stage.until(&path("edge"), |pod| !pod::is_ready(pod)).await;
    }
}
