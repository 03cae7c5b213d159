//! `load-balancer-set-controller` of OpenYurt: a service with a load balancer in every pool that its annotation selects. For each
//! of them there is a PoolService, which a controller of the load balancer's class serves; what those report becomes the service's.

mod plan;

use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch,
    collections::{NODE_POOLS, POOL_SERVICES, SERVICES},
    condition, controller_of,
    fields::items,
    pod,
};
use jiff::Timestamp;
use plan::{Found, Plan, is_candidate, is_finalized, plan};
use serde_json::{Value, json};
use std::{collections::BTreeSet, sync::Arc};
use yurt_api::names::labels::{POOL_SERVICE_MANAGED_BY, POOL_SERVICE_MANAGER, SERVICE_NAME};
use yurt_controller::{Scope, policy::Rule};

pub(crate) const ENTRY: Entry = Entry::of::<LoadBalancerSets>(
    "loadbalancerset",
    &[
        Rule::new(
            "network.openyurt.io",
            &["poolservices"],
            &["create", "patch", "delete"],
        ),
        Rule::new("", &["services"], &["get", "patch"]),
        Rule::new("", &["services/status"], &["patch"]),
        // Owners that are not to go before what they own.
        Rule::new("", &["services/finalizers"], &["update"]),
        Rule::new("apps.openyurt.io", &["nodepools/finalizers"], &["update"]),
        Rule::EVENTS,
    ],
);

/// The owner of what is wanted of PoolServices.
const MANAGER: &str = "yurt-manager/load-balancer-set-controller";

/// `load-balancer-set-controller`.
#[derive(Debug, Default)]
pub(crate) struct LoadBalancerSets;

/// The service that a PoolService is of: by its owner, and by its label where it is managed.
fn services_of(pool_service: &Value) -> BTreeSet<String> {
    let owner = controller_of(pool_service).filter(|owner| owner["kind"] == "Service");
    let labels = &pool_service["metadata"]["labels"];
    let label =
        (labels[POOL_SERVICE_MANAGED_BY] == POOL_SERVICE_MANAGER).then(|| &labels[SERVICE_NAME]);
    let owner = owner.map(|owner| &owner["name"]);
    let names = owner.into_iter().chain(label).filter_map(Value::as_str);
    names.map(str::to_owned).collect()
}

impl Controller for LoadBalancerSets {
    const NAME: &'static str = "load-balancer-set-controller";
    const WORKERS: usize = 3;

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let services = Watch::of(SERVICES, |change| {
            let both = [&change.old, &change.new].into_iter().flatten();
            let concerns = both.into_iter().any(|service| is_candidate(service));
            concerns.then(|| change.key()).into_iter().collect()
        });
        let pool_services = Watch::of(POOL_SERVICES, |change| {
            let both = [&change.old, &change.new].into_iter().flatten();
            let names: BTreeSet<String> = both.flat_map(|object| services_of(object)).collect();
            let namespace = change.key().namespace;
            names
                .iter()
                .map(|name| Key::new(&namespace, name))
                .collect()
        });
        let known = context.scoped(&SERVICES, &Scope::metadata());
        let pools = Watch::of(NODE_POOLS, move |change| {
            let seen = |pool: &Option<Arc<Value>>| {
                let pool = pool.as_deref().filter(|pool| !pod::is_deleting(pool))?;
                Some((
                    pool["metadata"]["uid"].clone(),
                    pool["metadata"]["labels"].clone(),
                ))
            };
            if seen(&change.old) == seen(&change.new) {
                return Vec::new();
            }
            // Rare enough to look at all services.
            let services = known.list("");
            let sets = services.iter().filter(|service| is_candidate(service));
            sets.map(|service| Key::of(service)).collect()
        });
        vec![services.scoped(Scope::metadata()), pool_services, pools]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let known = context.scoped(&SERVICES, &Scope::metadata()).get(key);
        if known.is_none_or(|service| !is_candidate(&service)) {
            return Ok(Next::Done);
        }
        // What of a service counts beside its metadata is nowhere cached.
        let service = match context.kube().get(&SERVICES.object_path(key)).await {
            Err(error) if error.is_not_found() => return Ok(Next::Done),
            other => other?,
        };
        let objects = context.objects(&POOL_SERVICES);
        let uid = service["metadata"]["uid"].as_str().unwrap_or_default();
        let mut own = objects.labelled(SERVICE_NAME, &key.name);
        own.retain(|object| object["metadata"]["namespace"] == key.namespace.as_str());
        for object in objects.owned_by(uid) {
            if !own.iter().any(|known| Key::of(known) == Key::of(&object)) {
                own.push(object);
            }
        }
        let pools = context.objects(&NODE_POOLS).list("");
        let taken = |name: &str| objects.get(&Key::new(&key.namespace, name));
        let found = Found {
            service: &service,
            own: &own,
            pools: &pools,
        };
        let plan = plan(&found, taken, Timestamp::now());
        self.carry_out(&plan, key, &service, context).await?;
        Ok(Next::Done)
    }
}

impl LoadBalancerSets {
    /// Does what is planned, in the order in which it is safe: the finalizer before what it is for, and off after that is gone.
    async fn carry_out(
        &self,
        plan: &Plan,
        key: &Key,
        service: &Value,
        context: &Context,
    ) -> Result<(), Failure> {
        let mut failed = None;
        if let Some(patch) = &plan.metadata {
            // Without the finalizer nothing is made, and a label that cannot be written hinders nothing else.
            if let Err(error) = context.merge(&SERVICES, key, "", patch).await {
                if !is_finalized(service) {
                    return Err(error.into());
                }
                failed = Some(error);
            }
        }
        for object in &plan.apply {
            if let Err(error) = context
                .apply(&POOL_SERVICES, object.clone(), MANAGER, true)
                .await
            {
                failed = Some(error);
            }
        }
        for object in &plan.delete {
            if let Err(error) = context.delete(&POOL_SERVICES, object).await {
                failed = Some(error);
            }
        }
        for (object, message) in &plan.modified {
            context.event(Self::NAME, object, "Warning", "Modified", message);
        }
        if let Some(status) = &plan.status {
            match context
                .patch(&SERVICES, key, "status", &json!({"status": status}))
                .await
            {
                // A verdict is told when it is new, and that is when it is written.
                Ok(_) => self.tell(status, service, context),
                Err(error) if error.is_not_found() => {}
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    fn tell(&self, status: &Value, service: &Value, context: &Context) {
        let written = items(&status["conditions"])
            .find(|c| c["type"] == plan::READY && c["status"] == "False");
        let Some(written) = written else {
            return;
        };
        let text = |field: &str| written[field].as_str().unwrap_or_default();
        let before = condition::find(&service["status"], plan::READY);
        if before.is_none_or(|before| {
            before["reason"] != written["reason"] || before["message"] != written["message"]
        }) {
            context.event(
                Self::NAME,
                service,
                "Warning",
                text("reason"),
                text("message"),
            );
        }
    }
}

#[cfg(test)]
mod tests;
