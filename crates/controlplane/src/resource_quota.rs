//! `resourcequota-controller`: what quotas say is used, counted anew when something changes.

use super::{
    Change, Collection, Context, Controller, Failure, Key, Next, Objects, Watch,
    collections::{PERSISTENT_VOLUME_CLAIMS, PODS, RESOURCE_QUOTAS, SERVICES},
};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::{sync::Arc, time::Duration};
use yurt_apiserver::{
    quota::{self, Usage},
    resources::{Catalog, Resource},
};
use yurt_wire::quantity::Quantity;

/// How often kinds are counted of which no changes are followed.
const RECOUNT: Duration = Duration::from_secs(30);
/// Kinds of which every change is followed: group version and plural.
const FOLLOWED: [&Collection; 4] = [
    &PODS,
    &SERVICES,
    &PERSISTENT_VOLUME_CLAIMS,
    &RESOURCE_QUOTAS,
];

/// The controller.
pub(super) struct ResourceQuotas {
    catalog: Catalog,
}

impl Default for ResourceQuotas {
    fn default() -> Self {
        Self {
            catalog: Catalog::new(&[]),
        }
    }
}

impl Controller for ResourceQuotas {
    const NAME: &'static str = "resourcequota-controller";

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let quotas = context.objects(&RESOURCE_QUOTAS);
        let mut watches = vec![Watch::of(RESOURCE_QUOTAS, |change| {
            match (&change.old, &change.new) {
                // Its own status is no news, unless somebody else wrote it.
                (Some(old), Some(new))
                    if old["spec"] == new["spec"] && old["status"] == new["status"] =>
                {
                    Vec::new()
                }
                _ => vec![change.key()],
            }
        })];
        for collection in [PODS, SERVICES, PERSISTENT_VOLUME_CLAIMS] {
            watches.push(of_namespace(collection, quotas.clone()));
        }
        watches
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(quota) = context.objects(&RESOURCE_QUOTAS).get(key) else {
            return Ok(Next::Done);
        };
        let hard = quota["spec"]["hard"]
            .as_object()
            .cloned()
            .unwrap_or_default();
        let now = Timestamp::now().as_second();
        let mut used = Usage::new();
        let mut followed = true;
        for resource in self.catalog.stored().filter(|resource| resource.namespaced) {
            if !hard.keys().any(|name| quota::concerns(resource, name)) {
                continue;
            }
            let objects = if let Some(collection) = FOLLOWED.iter().find(|c| is(c, resource)) {
                context.objects(collection).list(&key.namespace)
            } else {
                followed = false;
                list(context, resource, &key.namespace).await?
            };
            add(&mut used, resource, &quota, &hard, &objects, now);
        }
        let status = json!({"hard": hard, "used": shown(&used, &hard, &quota["status"]["used"])});
        if !same(&quota["status"], &status) {
            let mut counted = Value::clone(&quota);
            counted["status"] = status;
            context.update_status(&RESOURCE_QUOTAS, &counted).await?;
        }
        Ok(if followed {
            Next::Done
        } else {
            Next::After(RECOUNT)
        })
    }
}

fn is(collection: &Collection, resource: &Resource) -> bool {
    collection.plural == resource.plural && resource.group.is_empty()
}

/// A change concerns the quotas of its namespace, if it is one that is charged for.
fn of_namespace(collection: Collection, quotas: Arc<Objects>) -> Watch {
    Watch::of(collection, move |change| {
        if !is_charged(change) {
            return Vec::new();
        }
        let quotas = quotas.list(&change.key().namespace);
        quotas.iter().map(|quota| Key::of(quota)).collect()
    })
}

fn is_charged(change: &Change) -> bool {
    let (Some(old), Some(new)) = (&change.old, &change.new) else {
        return true;
    };
    // Of a status only that matters which ends the charge.
    let charged = |object: &Value| {
        [
            object["spec"].clone(),
            object["status"]["phase"].clone(),
            object["metadata"]["deletionTimestamp"].clone(),
        ]
    };
    charged(old) != charged(new)
}

async fn list(
    context: &Context,
    resource: &Resource,
    namespace: &str,
) -> Result<Vec<Arc<Value>>, Failure> {
    let root = if resource.group.is_empty() {
        format!("/api/{}", resource.version)
    } else {
        format!("/apis/{}/{}", resource.group, resource.version)
    };
    let path = format!("{root}/namespaces/{namespace}/{}", resource.plural);
    let mut list = context.kube().get(&path).await?;
    let items = match list["items"].take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    };
    Ok(items.into_iter().map(Arc::new).collect())
}

/// Adds what objects of a kind use. Every name that the quota limits and the kind is charged to appears, with nothing if need be. Pure.
fn add(
    used: &mut Usage,
    resource: &Resource,
    quota: &Value,
    hard: &Map<String, Value>,
    objects: &[Arc<Value>],
    now: i64,
) {
    for name in hard.keys().filter(|name| quota::concerns(resource, name)) {
        used.entry(name.clone())
            .or_insert_with(|| Quantity::integer(0));
    }
    for object in objects
        .iter()
        .filter(|object| quota::in_scope(resource, quota, object))
    {
        for (name, amount) in quota::usage(resource, object, now) {
            if let Some(sum) = used.get_mut(&name) {
                *sum = *sum + amount;
            }
        }
    }
}

/// What the status shows as used: what was counted, and what somebody else counts. Pure.
fn shown(used: &Usage, hard: &Map<String, Value>, before: &Value) -> Map<String, Value> {
    hard.keys()
        .filter_map(|name| {
            let counted = used.get(name).map(|amount| amount.to_string().into());
            let kept = before[name].is_string().then(|| before[name].clone());
            Some((name.clone(), counted.or(kept)?))
        })
        .collect()
}

/// Whether two statuses say the same, however amounts are written.
fn same(a: &Value, b: &Value) -> bool {
    let amounts = |list: &Value| -> Vec<(String, Option<i64>, String)> {
        let entries = list.as_object().into_iter().flatten();
        entries
            .map(|(name, amount)| {
                let text = amount.as_str().unwrap_or_default();
                let milli = Quantity::parse(text).map(Quantity::milli);
                let written = if milli.is_some() {
                    String::new()
                } else {
                    amount.to_string()
                };
                (name.clone(), milli, written)
            })
            .collect()
    };
    ["hard", "used"].iter().all(|field| {
        let (mut a, mut b) = (amounts(&a[field]), amounts(&b[field]));
        a.sort();
        b.sort();
        a == b
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Stage;

    #[test]
    fn what_is_limited_is_counted_and_nothing_else() {
        let catalog = Catalog::new(&[]);
        let pods = catalog.find("", "v1", "pods").expect("a built-in resource");
        let quota =
            json!({"spec": {"hard": {"pods": "3", "requests.cpu": "2", "count/secrets": "9"}}});
        let hard = quota["spec"]["hard"]
            .as_object()
            .cloned()
            .unwrap_or_default();
        let pod = |phase: &str| {
            Arc::new(
                json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "300m"}}}]}, "status": {"phase": phase}}),
            )
        };
        let mut used = Usage::new();
        add(
            &mut used,
            pods,
            &quota,
            &hard,
            &[pod("Running"), pod("Pending"), pod("Succeeded")],
            0,
        );
        let before = json!({"count/secrets": "4", "other": "1"});
        let shown = Value::Object(shown(&used, &hard, &before));
        assert_eq!(
            shown,
            json!({"pods": "2", "requests.cpu": "600m", "count/secrets": "4"})
        );
    }

    #[test]
    fn amounts_are_compared_as_numbers() {
        let status = |cpu: &str| json!({"hard": {"cpu": cpu}, "used": {"cpu": "0"}});
        assert!(same(&status("1"), &status("1000m")));
        assert!(!same(&status("1"), &status("1001m")));
        assert!(!same(&Value::Null, &status("1")));
    }

    #[tokio::test]
    async fn use_is_told_and_told_again_when_it_ends() {
        let stage = Stage::start(ResourceQuotas::NAME).await;
        let default = "/api/v1/namespaces/default";
        let quota =
            json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "3", "services": "5"}}});
        stage
            .create(&format!("{default}/resourcequotas"), quota)
            .await;
        let path = format!("{default}/resourcequotas/q");
        stage
            .until(&path, |q| {
                q["status"]["used"] == json!({"pods": "0", "services": "1"})
            })
            .await;
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        stage.create(&format!("{default}/pods"), pod).await;
        stage
            .until(&path, |q| q["status"]["used"]["pods"] == "1")
            .await;
        stage.quiet(&path).await;
        stage
            .kube
            .delete(&format!("{default}/pods/p"))
            .await
            .expect("deleted");
        let freed = stage
            .until(&path, |q| q["status"]["used"]["pods"] == "0")
            .await;
        assert_eq!(
            freed["status"]["hard"],
            json!({"pods": "3", "services": "5"})
        );
    }
}
