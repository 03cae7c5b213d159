//! What nodes may list and watch because some pool shares it.

use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch,
    collections::{CLUSTER_ROLES, NODE_POOLS},
    pod,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use yurt_api::names::objects::MULTIPLEXER_ROLE as ROLE;
use yurt_controller::{Scope, policy::Rule};

/// The owner of the role's rules.
const MANAGER: &str = "yurt-manager/hubleaderrbac-controller";

pub(crate) const ENTRY: Entry = Entry::of::<HubLeaderRbac>(
    "hubleaderrbac",
    &[
        Rule::new("rbac.authorization.k8s.io", &["clusterroles"], &["create"]),
        Rule::new(
            "rbac.authorization.k8s.io",
            &["clusterroles"],
            &["patch", "escalate"],
        )
        .named(&[ROLE]),
    ],
);

/// `hubleaderrbac-controller`.
#[derive(Debug, Default)]
pub(crate) struct HubLeaderRbac;

/// The role, and no other.
fn scope() -> Scope {
    Scope {
        fields: format!("metadata.name={ROLE}"),
        ..Scope::default()
    }
}

/// The rules for everything that any pool shares. Pure.
fn rules(pools: &[Arc<Value>]) -> Value {
    let mut by_group: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let pools = pools.iter().filter(|pool| !pod::is_deleting(pool));
    for gvr in pools.flat_map(|pool| super::config::shared(pool)) {
        let mut parts = gvr.split('/');
        if let (Some(group), Some(resource)) = (parts.next(), parts.next_back()) {
            by_group
                .entry(group.into())
                .or_default()
                .insert(resource.into());
        }
    }
    let rules = by_group.into_iter().map(|(group, resources)| {
        json!({"apiGroups": [group], "resources": resources, "verbs": ["list", "watch"]})
    });
    rules.collect()
}

impl Controller for HubLeaderRbac {
    const NAME: &'static str = "hubleaderrbac-controller";
    const WORKERS: usize = 1;

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        let shared = |pool: &Option<Arc<Value>>| pool.as_deref().map(super::config::shared);
        let pools = Watch::of(NODE_POOLS, move |change| {
            let differs = shared(&change.old) != shared(&change.new);
            differs.then(|| Key::new("", ROLE)).into_iter().collect()
        });
        vec![pools, Watch::own(CLUSTER_ROLES).scoped(scope())]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let rules = rules(&context.objects(&NODE_POOLS).list(""));
        let role = context.scoped(&CLUSTER_ROLES, &scope()).get(key);
        if role.is_none_or(|role| role["rules"] != rules) {
            let role = json!({"metadata": {"name": ROLE}, "rules": rules});
            context.apply(&CLUSTER_ROLES, role, MANAGER, true).await?;
        }
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hubleader::tests::pool;

    #[test]
    fn the_role_is_the_union_of_the_pools() {
        let mut other = pool(1);
        other["spec"]["poolScopeMetadata"] = json!([{"group": "", "version": "v1", "resource": "configmaps"},
            {"group": "example.com", "version": "v1", "resource": "cameras"}]);
        assert_eq!(
            rules(&[Arc::new(pool(1)), Arc::new(other)]),
            json!([
                {"apiGroups": [""], "resources": ["configmaps", "services"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
                {"apiGroups": ["example.com"], "resources": ["cameras"], "verbs": ["list", "watch"]},
            ])
        );
    }
}
