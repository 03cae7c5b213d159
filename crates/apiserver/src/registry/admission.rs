//! What Kubernetes' built-in admission plugins add to pods: their service account with its token, tolerations,
//! priority.

mod attributes;
mod certificates;
mod classes;
pub(crate) mod conditions;
mod gate;
mod hooks;
mod limits;
mod node_restriction;
pub(crate) mod policies;
mod quotas;
mod review;
mod rules;
mod webhooks;

pub(crate) use attributes::{Attributes, Operation};
pub(crate) use hooks::Hooks;
pub(crate) use quotas::Turns;
pub(crate) use webhooks::Objects;

use super::{Registry, Reply, Target};
use crate::{authz::is_mirror, meta, storage::Key};
use serde_json::{Value, json};
use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};
use yurt_wire::Status;

static SERVICE_ACCOUNTS: LazyLock<Arc<str>> = LazyLock::new(|| "/serviceaccounts".into());
static PRIORITY_CLASSES: LazyLock<Arc<str>> =
    LazyLock::new(|| "scheduling.k8s.io/priorityclasses".into());

/// Where a container finds its token.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// A new namespace gets its service account a moment after it was made.
const ACCOUNT_PATIENCE: Duration = Duration::from_secs(1);
/// Seconds a pod stays on a node that is not ready.
const TOLERATION_SECONDS: i64 = 300;

impl Registry {
    /// Completes a new object of the kinds that plugins know; others pass.
    pub(super) async fn admit(&self, target: &Target, object: &mut Value) -> Reply<()> {
        match (&*target.resource.group, &*target.resource.kind) {
            ("", "Pod") => {
                if is_mirror(object) {
                    check_mirror(object)?;
                } else {
                    self.service_account(target, object).await?;
                }
                tolerate(object);
                self.priority(object)?;
                self.runtime_class(object)
            }
            ("", "PersistentVolumeClaim") => {
                self.default_storage_class(object);
                Ok(())
            }
            ("certificates.k8s.io", _) => certificates::check_subject(target, object),
            ("scheduling.k8s.io", "PriorityClass") => self.check_default_class(object),
            _ => Ok(()),
        }
    }

    async fn service_account(&self, target: &Target, pod: &mut Value) -> Reply<()> {
        let name = match pod["spec"]["serviceAccountName"].as_str() {
            None | Some("") => "default".to_owned(),
            Some(name) => name.to_owned(),
        };
        let account = self.account(&target.namespace, &name).await.ok_or_else(|| {
            let namespace = &target.namespace;
            Box::new(Status::forbidden(
                "",
                "pods",
                meta::name(pod),
                &format!(
                    "error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found"
                ),
            ))
        })?;
        pod["spec"]["serviceAccountName"] = name.clone().into();
        pod["spec"]["serviceAccount"] = name.into();
        let secrets = &account["imagePullSecrets"];
        let has_own = pod["spec"]["imagePullSecrets"]
            .as_array()
            .is_some_and(|s| !s.is_empty());
        if secrets.is_array() && !has_own {
            pod["spec"]["imagePullSecrets"] = secrets.clone();
        }
        let automount = pod["spec"]["automountServiceAccountToken"]
            .as_bool()
            .or(account["automountServiceAccountToken"].as_bool());
        if automount != Some(false) {
            mount_token(pod);
        }
        Ok(())
    }

    async fn account(&self, namespace: &str, name: &str) -> Option<Value> {
        let key = Key::new(namespace, name);
        let mut changed = self.storage.partition(&SERVICE_ACCOUNTS).subscribe();
        let found = async {
            loop {
                changed.borrow_and_update();
                if let Some(account) = self.storage.get(&SERVICE_ACCOUNTS, &key) {
                    return Some(account.value());
                }
                changed.changed().await.ok()?;
            }
        };
        tokio::time::timeout(ACCOUNT_PATIENCE, found)
            .await
            .ok()
            .flatten()
    }

    /// Of several default classes nobody would know which counts.
    fn check_default_class(&self, class: &Value) -> Reply<()> {
        if class["globalDefault"] != true {
            return Ok(());
        }
        let (classes, _) = self.storage.list(&PRIORITY_CLASSES, "", None);
        let mut others = classes.iter().map(|class| class.value());
        let taken = others
            .find(|other| other["globalDefault"] == true && meta::name(other) != meta::name(class));
        let Some(other) = taken else {
            return Ok(());
        };
        let why = format!(
            "PriorityClass {} is already marked as default. Only one default can exist",
            meta::name(&other)
        );
        let name = meta::name(class);
        Err(Box::new(Status::forbidden(
            "scheduling.k8s.io",
            "priorityclasses",
            name,
            &why,
        )))
    }

    fn priority(&self, pod: &mut Value) -> Reply<()> {
        let named = pod["spec"]["priorityClassName"]
            .as_str()
            .unwrap_or_default();
        let class = if named.is_empty() {
            let (classes, _) = self.storage.list(&PRIORITY_CLASSES, "", None);
            classes
                .iter()
                .map(|class| class.value())
                .find(|class| class["globalDefault"] == true)
        } else {
            let key = Key::new("", named);
            let class = self.storage.get(&PRIORITY_CLASSES, &key);
            Some(class.map(|class| class.value()).ok_or_else(|| {
                Box::new(Status::forbidden(
                    "",
                    "pods",
                    meta::name(pod),
                    &format!("no PriorityClass with name {named} was found"),
                ))
            })?)
        };
        let (value, policy) = match &class {
            Some(class) => {
                pod["spec"]["priorityClassName"] = meta::name(class).into();
                (
                    class["value"].as_i64().unwrap_or_default(),
                    class["preemptionPolicy"].as_str(),
                )
            }
            None => (0, None),
        };
        let given = &pod["spec"]["priority"];
        if given.as_i64().is_some_and(|given| given != value) {
            return Err(Box::new(Status::forbidden(
                "",
                "pods",
                meta::name(pod),
                &format!(
                    "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
                ),
            )));
        }
        pod["spec"]["priority"] = value.into();
        if pod["spec"]["preemptionPolicy"].is_null() {
            pod["spec"]["preemptionPolicy"] = policy.unwrap_or("PreemptLowerPriority").into();
        }
        Ok(())
    }
}

/// A pod that mirrors one of the kubelet's own has no service account.
fn check_mirror(pod: &Value) -> Reply<()> {
    let account = pod["spec"]["serviceAccountName"].as_str();
    if account.is_none_or(str::is_empty) {
        return Ok(());
    }
    Err(Box::new(Status::forbidden(
        "",
        "pods",
        meta::name(pod),
        "a mirror pod may not reference service accounts",
    )))
}

/// Mounts the service account's token into every container that has nothing else there.
fn mount_token(pod: &mut Value) {
    let volume = meta::generate_name("kube-api-access-");
    let mut mounted = false;
    for field in ["initContainers", "containers"] {
        let Some(Value::Array(containers)) = pod["spec"].get_mut(field) else {
            continue;
        };
        for container in containers {
            let taken = container["volumeMounts"]
                .as_array()
                .is_some_and(|mounts| mounts.iter().any(|m| m["mountPath"] == TOKEN_PATH));
            if taken {
                continue;
            }
            let mount = json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH});
            match container.get_mut("volumeMounts") {
                Some(Value::Array(mounts)) => mounts.push(mount),
                _ => container["volumeMounts"] = json!([mount]),
            }
            mounted = true;
        }
    }
    if !mounted {
        return;
    }
    let source = json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace",
            "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}});
    match pod["spec"].get_mut("volumes") {
        Some(Value::Array(volumes)) => volumes.push(source),
        _ => pod["spec"]["volumes"] = json!([source]),
    }
}

/// Pods stay for a while on nodes that are not ready or out of reach, unless they say otherwise.
fn tolerate(pod: &mut Value) {
    let mut tolerations = pod["spec"]["tolerations"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    for key in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        let tolerated = tolerations.iter().any(|t| {
            let of_key = t["key"] == key || t["key"].as_str().is_none_or(str::is_empty);
            let of_effect =
                t["effect"] == "NoExecute" || t["effect"].as_str().is_none_or(str::is_empty);
            of_key && of_effect
        });
        if !tolerated {
            tolerations.push(
                json!({"key": key, "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": TOLERATION_SECONDS}),
            );
        }
    }
    pod["spec"]["tolerations"] = tolerations.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_tolerates_what_it_does_not_speak_of() {
        let mut pod = json!({"spec": {"tolerations": [
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}]}});
        tolerate(&mut pod);
        let tolerations = pod["spec"]["tolerations"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        assert_eq!(tolerations.len(), 2);
        assert!(tolerations[0].get("tolerationSeconds").is_none());
        assert_eq!(tolerations[1]["key"], "node.kubernetes.io/not-ready");
        let before = pod.clone();
        tolerate(&mut pod);
        assert_eq!(pod, before);
        let mut everything = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        let before = everything.clone();
        tolerate(&mut everything);
        assert_eq!(everything, before);
    }

    #[test]
    fn a_token_is_mounted_where_nothing_else_is() {
        let mut pod = json!({"spec": {"containers": [
            {"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": TOKEN_PATH}]}]}});
        mount_token(&mut pod);
        let name = &pod["spec"]["volumes"][0]["name"];
        assert_eq!(
            &pod["spec"]["containers"][0]["volumeMounts"][0]["name"],
            name
        );
        assert_eq!(
            pod["spec"]["containers"][1]["volumeMounts"]
                .as_array()
                .map(Vec::len),
            Some(1)
        );
    }
}
