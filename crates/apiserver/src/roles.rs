//! The stored roles: those every cluster begins with are brought up to date when the server starts, aggregated ones
//! whenever cluster roles change.

use crate::{
    authz::{
        CLUSTER_ROLES, aggregation,
        bootstrap_policy::{self, Reconciled},
    },
    lifecycle::own_target,
    meta,
    registry::{DeleteOptions, Registry, Reply},
    storage::Key,
};
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use yurt_wire::{Reason, Status};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Aggregated roles may be aggregated again; chains longer than this are brought up to date step by step.
const MAX_ROUNDS: usize = 8;

/// How long a failed update waits for the next try.
const RETRY: Duration = Duration::from_secs(5);

/// Creates what is missing of the first roles and bindings, and completes what is there.
pub(crate) async fn reconcile(registry: &Arc<Registry>) -> Reply<()> {
    // All at once: their writes share the disk's syncs.
    let mut under_way = JoinSet::new();
    for (plural, wanted) in bootstrap_policy::objects() {
        let registry = registry.clone();
        under_way.spawn(async move { reconcile_one(&registry, plural, wanted).await });
    }
    while let Some(done) = under_way.join_next().await {
        done.map_err(|error| Box::new(Status::internal_error(error)))??;
    }
    aggregate(registry).await
}

async fn reconcile_one(registry: &Registry, plural: &str, wanted: Value) -> Reply<()> {
    let (namespace, name) = (meta::text(&wanted, "namespace"), meta::name(&wanted));
    let Some(target) = own_target(registry, GROUP, "v1", plural, namespace, name) else {
        return Ok(());
    };
    let key = Key::new(namespace, name);
    let outcome = match registry.storage.get(&target.resource.storage, &key) {
        None => registry.create(&target, wanted, None).await,
        Some(stored) => match bootstrap_policy::reconcile(&stored.value(), &wanted) {
            Reconciled::Keep => return Ok(()),
            Reconciled::Update(object) => registry.update(&target, object, None).await,
            Reconciled::Recreate(object) => {
                registry.delete(&target, &DeleteOptions::default()).await?;
                registry.create(&target, object, None).await
            }
        },
    };
    match outcome {
        Ok(_) => Ok(()),
        Err(status) if matches!(status.reason, Reason::AlreadyExists | Reason::Conflict) => Ok(()),
        Err(status) => Err(status),
    }
}

/// Gives every aggregated cluster role the rules of the roles it is made of.
async fn aggregate(registry: &Registry) -> Reply<()> {
    for _ in 0..MAX_ROUNDS {
        let (stored, _) = registry.storage.list(&CLUSTER_ROLES, "", None);
        let all: Vec<Value> = stored.iter().map(|role| role.value()).collect();
        let mut settled = true;
        for role in &all {
            let Some(rules) = aggregation::outdated(role, &all) else {
                continue;
            };
            settled = false;
            let name = meta::name(role);
            let Some(mut target) = own_target(registry, GROUP, "v1", "clusterroles", "", name)
            else {
                return Ok(());
            };
            target.options.field_manager = "clusterrole-aggregation-controller".into();
            let change = |role: &mut Value| {
                role["rules"] = rules.clone();
                Ok(())
            };
            match registry.modify(&target, &change).await {
                Ok(_) => {}
                Err(status) if status.reason == Reason::NotFound => {}
                Err(status) => return Err(status),
            }
        }
        if settled {
            break;
        }
    }
    Ok(())
}

/// Aggregates again whenever cluster roles change, until `shutdown`.
pub(crate) async fn keep_aggregated(registry: Arc<Registry>, shutdown: CancellationToken) {
    let mut changed = registry.storage.partition(&CLUSTER_ROLES).subscribe();
    loop {
        changed.borrow_and_update();
        let failed = aggregate(&registry).await.err();
        if let Some(status) = &failed {
            tracing::warn!(%status, "aggregated cluster roles are out of date");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            outcome = changed.changed() => if outcome.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed.is_some() => {}
        }
    }
}
