//! What nodes may list and watch because some pool shares it.

use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch,
    collections::{CLUSTER_ROLES, NODE_POOLS},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use yurt_controller::policy::Rule;

/// The role.
pub(crate) const ROLE: &str = "yurt-hub-multiplexer";

pub(crate) const ENTRY: Entry = Entry::of::<HubLeaderRbac>(
    "hubleaderrbac",
    &[
        Rule::new("rbac.authorization.k8s.io", &["clusterroles"], &["create"]),
        Rule::new(
            "rbac.authorization.k8s.io",
            &["clusterroles"],
            &["update", "escalate"],
        )
        .named(&[ROLE]),
    ],
);

/// `hubleaderrbac-controller`.
#[derive(Debug, Default)]
pub(crate) struct HubLeaderRbac;

/// The rules for everything that any pool shares. Pure.
fn rules(pools: &[Arc<Value>]) -> Value {
    let mut by_group: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for gvr in pools.iter().flat_map(|pool| super::config::shared(pool)) {
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
        let all = |_: &_| vec![Key::new("", ROLE)];
        vec![Watch::of(NODE_POOLS, all), Watch::own(CLUSTER_ROLES)]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        if key.name != ROLE {
            return Ok(Next::Done);
        }
        let rules = rules(&context.objects(&NODE_POOLS).list(""));
        match context.objects(&CLUSTER_ROLES).get(key) {
            Some(role) if role["rules"] == rules => {}
            Some(_) => {
                context
                    .merge(&CLUSTER_ROLES, key, "", &json!({"rules": rules}))
                    .await?;
            }
            None => {
                let role = json!({"metadata": {"name": ROLE}, "rules": rules});
                context.create(&CLUSTER_ROLES, role).await?;
            }
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
