//! What namespaces and CRDs need while they live and when they go.
//!
//! A live namespace has the service account `default` and the config map `kube-root-ca.crt`. A namespace that is being
//! deleted is emptied, then released; so is a CRD, whose objects go first. In Kubernetes controllers do this; here the
//! server does, so that it is whole without any.

mod contents;

use crate::{
    BuiltinControllers,
    authn::User,
    crd::naming::has_condition,
    meta,
    registry::{CRDS, DeleteOptions, NAMESPACES, Registry, Reply, Target, strategy::CRD_FINALIZER},
    resources::Resource,
    storage::{Key, Stored},
};
use contents::Contents;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use yurt_wire::Reason;

/// How soon unfinished work is looked at again.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// A target the server itself writes.
pub(crate) fn own_target(
    registry: &Registry,
    group: &str,
    version: &str,
    plural: &str,
    namespace: &str,
    name: &str,
) -> Option<Target> {
    let catalog = registry.catalog();
    let resource = catalog.find(group, version, plural)?.clone();
    Some(Target {
        resource,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        subresource: String::new(),
        user: User::server(),
        options: crate::registry::WriteOptions {
            field_manager: "kube-apiserver".into(),
            ..Default::default()
        },
    })
}

/// Keeps namespaces and CRDs in order.
pub(crate) struct Keeper {
    registry: Arc<Registry>,
    controllers: BuiltinControllers,
    root_ca: Option<String>,
}

impl Keeper {
    /// What to keep in order, and what is left to controllers.
    pub(crate) fn new(
        registry: Arc<Registry>,
        controllers: BuiltinControllers,
        root_ca: Option<String>,
    ) -> Self {
        Self {
            registry,
            controllers,
            root_ca: root_ca.filter(|_| controllers.root_ca_publisher),
        }
    }

    /// Works until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let partition = |storage: &Arc<str>| self.registry.storage.partition(storage).subscribe();
        let mut namespaces = partition(&NAMESPACES);
        let mut crds = partition(&CRDS);
        // What somebody deletes comes back.
        let mut accounts = partition(&"/serviceaccounts".into());
        let mut maps = partition(&"/configmaps".into());
        let mut retry = FIRST_RETRY;
        loop {
            for changes in [&mut namespaces, &mut crds, &mut accounts, &mut maps] {
                changes.borrow_and_update();
            }
            let finished = self.pass().await;
            retry = if finished {
                FIRST_RETRY
            } else {
                (retry * 2).min(LAST_RETRY)
            };
            let again = tokio::time::sleep(retry);
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = namespaces.changed() => retry = FIRST_RETRY,
                _ = crds.changed() => retry = FIRST_RETRY,
                _ = accounts.changed(), if self.controllers.service_account => {}
                _ = maps.changed(), if self.root_ca.is_some() => {}
                () = again, if !finished => {}
            }
        }
    }

    /// One look at everything; whether nothing is left to do.
    async fn pass(&self) -> bool {
        let registry = &self.registry;
        let mut finished = true;
        let (definitions, _) = registry.storage.list(&CRDS, "", None);
        for definition in definitions {
            let value = definition.value();
            if !meta::is_deleting(&value) && !has_condition(&value, "NamesAccepted") {
                // Whoever had the names may have gone.
                let outcome = judge_again(registry, meta::name(&value)).await;
                settled(outcome, "CRD", meta::name(&value));
            }
            if meta::is_deleting(&value)
                && meta::finalizers(&value).iter().any(|f| f == CRD_FINALIZER)
            {
                finished &= settled(
                    release_crd(registry, &value).await,
                    "CRD",
                    meta::name(&value),
                );
            }
        }
        let (namespaces, _) = registry.storage.list(&NAMESPACES, "", None);
        for namespace in namespaces {
            let value = namespace.value();
            let name = meta::name(&value);
            let outcome = if !meta::is_deleting(&value) {
                self.furnish(name).await
            } else if self.controllers.namespace && is_held(&value) {
                release_namespace(registry, &value).await
            } else {
                Ok(true)
            };
            finished &= settled(outcome, "namespace", name);
        }
        finished
    }

    /// Gives a namespace what every namespace has.
    async fn furnish(&self, namespace: &str) -> Reply<bool> {
        let registry = &self.registry;
        if self.controllers.service_account {
            let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": "default", "namespace": namespace}});
            ensure(registry, "serviceaccounts", namespace, account).await?;
        }
        if let Some(pem) = &self.root_ca {
            let roots = json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "kube-root-ca.crt", "namespace": namespace,
                    "annotations": {"kubernetes.io/description": ROOT_CA_DESCRIPTION}},
                "data": {"ca.crt": pem}});
            ensure(registry, "configmaps", namespace, roots).await?;
        }
        Ok(true)
    }
}

const ROOT_CA_DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

/// Whether the namespace waits for its content to go; others may hold it for longer.
fn is_held(namespace: &Value) -> bool {
    let finalizers = namespace["spec"]["finalizers"].as_array();
    finalizers.is_some_and(|all| all.iter().any(|f| f == "kubernetes"))
}

fn settled(outcome: Reply<bool>, what: &str, name: &str) -> bool {
    outcome.unwrap_or_else(|status| {
        tracing::warn!(%status, "{what} {name}");
        false
    })
}

/// Deletes the objects of a resource in a namespace (`""`: everywhere); those that are left.
async fn clear(
    registry: &Registry,
    resource: &Arc<Resource>,
    namespace: &str,
) -> Reply<Vec<Arc<Stored>>> {
    // As the namespace controller: nothing waits for a garbage collector that may not be there.
    let options = DeleteOptions {
        propagation: Some("Background".into()),
        ..DeleteOptions::default()
    };
    let (objects, _) = registry.storage.list(&resource.storage, namespace, None);
    for object in objects {
        let target = Target {
            resource: resource.clone(),
            namespace: object.key.namespace.to_string(),
            name: object.key.name.to_string(),
            subresource: String::new(),
            user: User::server(),
            options: Default::default(),
        };
        match registry.delete(&target, &options).await {
            Ok(_) => {}
            Err(status) if status.reason == Reason::NotFound => {}
            Err(status) => return Err(status),
        }
    }
    Ok(registry.storage.list(&resource.storage, namespace, None).0)
}

/// A change of an object by code.
type Change<'c> = &'c (dyn Fn(&mut Value) -> Reply<()> + Sync);

/// Empties a namespace, then releases it. Pods go before everything else: what they use outlives them.
async fn release_namespace(registry: &Registry, namespace: &Value) -> Reply<bool> {
    let name = meta::name(namespace);
    let catalog = registry.catalog();
    let (pods, others): (Vec<_>, Vec<_>) = catalog
        .stored()
        .filter(|r| r.namespaced)
        .partition(|r| r.group.is_empty() && r.kind == "Pod");
    let mut contents = Contents::default();
    for resources in [pods, others] {
        for resource in resources {
            match clear(registry, resource, name).await {
                Ok(left) => contents.count(resource, &left),
                Err(status) => contents.failed(status.message),
            }
        }
        if !contents.is_empty() {
            break;
        }
    }
    let now = meta::now();
    let report = |namespace: &mut Value| {
        contents.report(namespace, &now);
        Ok(())
    };
    let release = |namespace: &mut Value| {
        let finalizers = namespace["spec"]["finalizers"].as_array_mut();
        if let Some(finalizers) = finalizers {
            finalizers.retain(|f| f != "kubernetes");
        }
        Ok(())
    };
    let (subresource, change): (_, Change<'_>) = if contents.is_empty() {
        ("finalize", &release)
    } else {
        ("status", &report)
    };
    let Some(mut target) = own_target(registry, "", "v1", "namespaces", "", name) else {
        return Ok(true);
    };
    target.subresource = subresource.into();
    match registry.modify(&target, change).await {
        Ok(_) => Ok(contents.is_empty()),
        Err(status) if status.reason == Reason::NotFound => Ok(true),
        Err(status) => Err(status),
    }
}

/// Writes a definition as it is, so that its names are judged anew; whether that could be done.
async fn judge_again(registry: &Registry, name: &str) -> Reply<bool> {
    match crd_status(registry, name) {
        Some(target) => registry.modify(&target, &|_| Ok(())).await.map(|_| true),
        None => Ok(true),
    }
}

/// The status of a definition, to be written.
fn crd_status(registry: &Registry, name: &str) -> Option<Target> {
    let (group, plural) = ("apiextensions.k8s.io", "customresourcedefinitions");
    let mut target = own_target(registry, group, "v1", plural, "", name)?;
    target.subresource = "status".into();
    Some(target)
}

/// Says of a definition that its objects are being deleted.
async fn mark_terminating(registry: &Registry, definition: &Value) -> Reply<()> {
    let Some(target) = crd_status(registry, meta::name(definition)) else {
        return Ok(());
    };
    if has_condition(definition, "Terminating") {
        return Ok(());
    }
    let now = meta::now();
    let condition = json!({"type": "Terminating", "status": "True", "lastTransitionTime": now,
        "reason": "InstanceDeletionInProgress", "message": "CustomResource deletion is in progress"});
    let marked = registry
        .modify(&target, &|definition: &mut Value| {
            match definition["status"]["conditions"].as_array_mut() {
                Some(conditions) => {
                    conditions.retain(|known| known["type"] != "Terminating");
                    conditions.push(condition.clone());
                }
                None => definition["status"]["conditions"] = json!([condition]),
            }
            Ok(())
        })
        .await;
    marked.map(|_| ())
}

async fn release_crd(registry: &Registry, definition: &Value) -> Reply<bool> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let group = text(&definition["spec"]["group"]);
    let plural = text(&definition["spec"]["names"]["plural"]);
    let catalog = registry.catalog();
    let resource = catalog
        .resources()
        .iter()
        .filter(|r| r.custom.is_some() && r.group == group && r.plural == plural)
        // Where the objects need no conversion, which may be what is broken.
        .max_by_key(|r| r.is_storage_version());
    if let Some(resource) = resource
        && !clear(registry, resource, "").await?.is_empty()
    {
        mark_terminating(registry, definition).await?;
        return Ok(false);
    }
    let name = meta::name(definition);
    let target = own_target(
        registry,
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "",
        name,
    );
    let Some(target) = target else {
        return Ok(true);
    };
    let released = registry
        .modify(&target, &|definition: &mut Value| {
            let mut finalizers = meta::finalizers(definition);
            finalizers.retain(|f| f != CRD_FINALIZER);
            meta::set_finalizers(definition, &finalizers);
            Ok(())
        })
        .await;
    match released {
        Ok(_) => Ok(true),
        Err(status) if status.reason == Reason::NotFound => Ok(true),
        Err(status) => Err(status),
    }
}

/// Creates a core object unless there is one. Of one that is there, data and annotations are put right.
async fn ensure(registry: &Registry, plural: &str, namespace: &str, object: Value) -> Reply<()> {
    let name = meta::name(&object);
    let Some(target) = own_target(registry, "", "v1", plural, namespace, name) else {
        return Ok(());
    };
    let key = Key::new(namespace, name);
    if let Some(live) = registry.storage.get(&target.resource.storage, &key) {
        if is_right(&live.value(), &object) {
            return Ok(());
        }
        let put_right = |live: &mut Value| {
            live["data"] = object["data"].clone();
            for (name, value) in object["metadata"]["annotations"]
                .as_object()
                .into_iter()
                .flatten()
            {
                live["metadata"]["annotations"][name] = value.clone();
            }
            Ok(())
        };
        return match registry.modify(&target, &put_right).await {
            Ok(_) => Ok(()),
            Err(status) if status.reason == Reason::NotFound => Ok(()),
            Err(status) => Err(status),
        };
    }
    match registry.create(&target, object, None).await {
        Ok(_) => Ok(()),
        Err(status)
            if matches!(
                status.reason,
                Reason::AlreadyExists | Reason::NotFound | Reason::Forbidden
            ) =>
        {
            Ok(())
        }
        Err(status) => Err(status),
    }
}

/// Whether an object has the data and annotations that it should have.
fn is_right(live: &Value, wanted: &Value) -> bool {
    let mut annotations = wanted["metadata"]["annotations"]
        .as_object()
        .into_iter()
        .flatten();
    live["data"] == wanted["data"]
        && annotations.all(|(name, value)| live["metadata"]["annotations"][name] == *value)
}

#[cfg(test)]
mod tests;
