//! `pods/eviction`: a deletion that asks the pod's disruption budgets first.

use crate::{
    meta,
    registry::{DeleteOptions, Registry, Reply, Target},
    resources::Resource,
};
use serde_json::Value;
use std::sync::{Arc, LazyLock};
use yurt_wire::{Gvk, Reason, Status, selector::LabelSelector, status::Cause};

static BUDGETS: LazyLock<Arc<str>> = LazyLock::new(|| "policy/poddisruptionbudgets".into());

/// Evicts the pod `target`, when its budgets allow a disruption now (429 otherwise).
pub(crate) async fn evict(
    registry: &Registry,
    target: &Target,
    eviction: &Value,
    options: DeleteOptions,
) -> Reply<()> {
    crate::types::check_kind(&Gvk::from_api_version("policy/v1", "Eviction"), eviction)?;
    let stored = registry.current(target)?;
    let pod = stored.value();
    registry.restrict_eviction(target, &pod)?;
    let exempt = matches!(
        pod["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed" | "Pending")
    ) || meta::is_deleting(&pod);
    if !exempt {
        let (budgets, _) = registry.storage.list(&BUDGETS, &target.namespace, None);
        let covering: Vec<Value> = budgets
            .iter()
            .map(|b| b.value())
            .filter(|budget| covers(budget, &stored.labels))
            .collect();
        match covering.as_slice() {
            [] => {}
            [budget] => spend(registry, target, budget).await?,
            _ => {
                return Err(Box::new(Status::new(
                    Reason::InternalError,
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                )));
            }
        }
    }
    registry.delete(target, &options).await.map(|_| ())
}

fn covers(budget: &Value, labels: &[(String, String)]) -> bool {
    let selector = &budget["spec"]["selector"];
    selector.is_object()
        && LabelSelector::from_json(selector).is_ok_and(|selector| selector.matches(labels))
}

/// Takes one of the disruptions a budget allows.
async fn spend(registry: &Registry, pod: &Target, budget: &Value) -> Reply<()> {
    let catalog = registry.catalog();
    let Some(resource): Option<&Arc<Resource>> =
        catalog.find("policy", "v1", "poddisruptionbudgets")
    else {
        return Ok(());
    };
    let target = Target {
        resource: resource.clone(),
        name: meta::name(budget).to_owned(),
        subresource: "status".into(),
        ..pod.clone()
    };
    let refusal = || {
        let name = &target.name;
        let mut status = Status::new(
            Reason::TooManyRequests,
            "Cannot evict pod as it would violate the pod's disruption budget.",
        );
        status.causes.push(Cause {
            reason: "DisruptionBudget".into(),
            message: format!("The disruption budget {name} does not allow evicting pods currently"),
            field: String::new(),
        });
        Box::new(status)
    };
    let now = meta::now();
    registry
        .modify(&target, &|budget: &mut Value| {
            let allowed = budget["status"]["disruptionsAllowed"]
                .as_i64()
                .unwrap_or_default();
            let seen = budget["status"]["observedGeneration"]
                .as_i64()
                .unwrap_or_default();
            let generation = budget["metadata"]["generation"]
                .as_i64()
                .unwrap_or_default();
            if allowed <= 0 || seen < generation {
                return Err(refusal());
            }
            budget["status"]["disruptionsAllowed"] = (allowed - 1).into();
            budget["status"]["disruptedPods"][&pod.name] = now.clone().into();
            Ok(())
        })
        .await
        .map(|_| ())
}
