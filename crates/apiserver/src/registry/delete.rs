//! Deletion: preconditions, finalizers, grace periods.

use super::{Content, MAX_RETRIES, MODIFIED, Registry, Reply, Target, update::is_finished};
use crate::{
    conversion, meta,
    resources::Resource,
    storage::{Expect, WriteError},
};
use serde_json::Value;
use yurt_wire::Status;

/// `metav1.DeleteOptions`.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds until the object is gone; only pods wait.
    pub grace_period: Option<i64>,
    /// The uid the object must have.
    pub uid: Option<String>,
    /// The resourceVersion the object must have.
    pub resource_version: Option<String>,
    /// `Orphan`, `Background` or `Foreground`.
    pub propagation: Option<String>,
    /// Everything but the deletion.
    pub dry_run: bool,
    /// Admission was asked about this already, in other words (evictions).
    pub admitted: bool,
}

/// What a deletion did.
#[derive(Clone, Debug)]
pub struct Deleted {
    /// The object in its last or present state.
    pub content: Content,
    /// Whether it is gone; otherwise it waits for finalizers or its grace period.
    pub gone: bool,
    /// For `Warning` headers.
    pub warnings: Vec<String>,
}

/// Finalizers that stand for a propagation policy.
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

impl Registry {
    /// Deletes an object, or begins to.
    pub async fn delete(&self, target: &Target, options: &DeleteOptions) -> Reply<Deleted> {
        for _ in 0..MAX_RETRIES {
            if let Some(deleted) = self.try_delete(target, options).await? {
                return Ok(deleted);
            }
        }
        Err(target.conflict(MODIFIED))
    }

    async fn try_delete(&self, target: &Target, options: &DeleteOptions) -> Reply<Option<Deleted>> {
        let resource = &target.resource;
        let key = target.key();
        let current = match self.current(target) {
            Ok(current) => current,
            Err(gone) => {
                // Gone only once the deletion that was seen is durable.
                let storage = &target.resource.storage;
                self.storage.settle(storage, &target.key()).await;
                return Err(gone);
            }
        };
        let live = self.served_value(resource, current.value()).await?;
        check(target, options, &live)?;
        self.restrict_node(target, Some(&live), None)?;
        let mut warnings = Vec::new();
        if !options.admitted {
            self.admit_deletion(target, &live, options, &mut warnings)
                .await?;
        }
        let expect = Expect::At(current.revision);
        let mut dying = live.clone();
        mark(resource, &mut dying, options, meta::now_seconds());
        let gone = is_finished(resource, &dying);
        if options.dry_run || (dying == live && !gone) {
            return Ok(Some(Deleted {
                content: Content::Value(dying),
                gone,
                warnings,
            }));
        }
        let written = if gone {
            // The last state is the live one: marks of a deletion nobody waited for are not shown.
            let last = current.value();
            self.storage
                .delete(&resource.storage, key, expect, last)
                .await
        } else {
            let dying = stored_form(resource, &current.value(), dying.clone());
            self.storage
                .put(&resource.storage, key, expect, dying)
                .await
        };
        match written {
            Ok(stored) => {
                self.after_write(resource);
                Ok(Some(Deleted {
                    content: Content::written(
                        resource,
                        stored,
                        resource
                            .asks_webhook()
                            .then_some(if gone { live } else { dying }),
                    ),
                    gone,
                    warnings,
                }))
            }
            Err(WriteError::Conflict) => Ok(None),
            Err(error) => Err(self.write_failed(target, &error)),
        }
    }

    /// Deletes everything a list selects; the objects deleted or dying.
    pub async fn delete_collection(
        &self,
        target: &Target,
        selection: &yurt_wire::request::ListOptions,
        options: &DeleteOptions,
    ) -> Reply<Vec<Content>> {
        let page = self.list(&target.resource, &target.namespace, selection)?;
        let mut deleted = Vec::with_capacity(page.items.len());
        for object in page.items {
            let one = Target {
                namespace: object.key.namespace.to_string(),
                name: object.key.name.to_string(),
                ..target.clone()
            };
            match self.delete(&one, options).await {
                Ok(outcome) => deleted.push(outcome.content),
                Err(status) if status.reason == yurt_wire::Reason::NotFound => {}
                Err(status) => return Err(status),
            }
        }
        Ok(deleted)
    }
}

/// A marked object as it is stored: of a custom resource only the metadata changed, which needs no conversion.
fn stored_form(resource: &Resource, stored: &Value, dying: Value) -> Value {
    if resource.custom.is_none() {
        return conversion::to_stored(resource, dying);
    }
    let mut form = stored.clone();
    form["metadata"] = dying["metadata"].clone();
    form
}

/// Namespaces that a cluster cannot do without.
const IMMORTAL: &[&str] = &["default", "kube-public", "kube-system"];

fn check(target: &Target, options: &DeleteOptions, live: &Value) -> Reply<()> {
    if target.resource.storage == *super::NAMESPACES && IMMORTAL.contains(&target.name.as_str()) {
        return Err(Box::new(Status::forbidden(
            "",
            "namespaces",
            &target.name,
            "this namespace may not be deleted",
        )));
    }
    let failed = |what: &str, wanted: &str, found: &str| {
        Err(target.conflict(&format!(
            "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
        )))
    };
    if let Some(uid) = &options.uid
        && uid != meta::uid(live)
    {
        return failed("UID", uid, meta::uid(live));
    }
    let revision = meta::text(live, "resourceVersion");
    if let Some(wanted) = &options.resource_version
        && wanted != revision
    {
        return failed("ResourceVersion", wanted, revision);
    }
    Ok(())
}

/// Marks an object as being deleted.
fn mark(resource: &Resource, object: &mut Value, options: &DeleteOptions, now: i64) {
    let mut finalizers = meta::finalizers(object);
    match propagation(resource, options, &finalizers) {
        None => {}
        Some(policy) => {
            finalizers.retain(|f| f != ORPHAN && f != FOREGROUND);
            match policy {
                "Orphan" => finalizers.push(ORPHAN.into()),
                "Foreground" => finalizers.push(FOREGROUND.into()),
                _ => {}
            }
        }
    }
    let grace = grace_period(resource, object, options);
    let begun = meta::is_deleting(object);
    let waits = object["metadata"]["deletionGracePeriodSeconds"]
        .as_i64()
        .unwrap_or_default();
    meta::set_finalizers(object, &finalizers);
    if begun && grace >= waits {
        return;
    }
    object["metadata"]["deletionTimestamp"] = meta::rfc3339(now + grace).into();
    object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
    if !begun {
        if let Some(generation) = object["metadata"]["generation"].as_i64() {
            object["metadata"]["generation"] = (generation + 1).into();
        }
        if resource.group.is_empty() && resource.kind == "Namespace" {
            object["status"]["phase"] = "Terminating".into();
        }
    }
}

/// What becomes of the dependents where the request decides it: by its options; else the finalizers there are say it
/// (`None`); else the kind does. Kinds from before garbage collection leave their pods alone.
fn propagation<'a>(
    resource: &Resource,
    options: &'a DeleteOptions,
    finalizers: &[String],
) -> Option<&'a str> {
    if let Some(policy) = &options.propagation {
        return Some(policy);
    }
    let decided = finalizers.iter().any(|f| f == ORPHAN || f == FOREGROUND);
    let orphans = matches!(
        (&*resource.group, &*resource.kind),
        ("", "ReplicationController") | ("batch", "Job")
    );
    (orphans && !decided).then_some("Orphan")
}

/// Only a pod that a kubelet runs has somebody who needs time to stop it.
fn grace_period(resource: &Resource, object: &Value, options: &DeleteOptions) -> i64 {
    if !(resource.group.is_empty() && resource.kind == "Pod") {
        return 0;
    }
    let assigned = object["spec"]["nodeName"]
        .as_str()
        .is_some_and(|node| !node.is_empty());
    let over = matches!(
        object["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed")
    );
    if !assigned || over {
        return 0;
    }
    let own = object["spec"]["terminationGracePeriodSeconds"].as_i64();
    options.grace_period.or(own).unwrap_or(30).max(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Catalog;
    use serde_json::json;

    fn pods() -> Resource {
        let catalog = Catalog::new(&[]);
        Resource::clone(catalog.find("", "v1", "pods").expect("a built-in resource"))
    }

    #[test]
    fn a_running_pod_gets_its_grace_period_and_can_be_hurried() {
        let resource = pods();
        let mut pod = json!({"metadata": {"name": "p", "generation": 1},
            "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 10}, "status": {"phase": "Running"}});
        mark(&resource, &mut pod, &DeleteOptions::default(), 100);
        assert_eq!(pod["metadata"]["deletionTimestamp"], "1970-01-01T00:01:50Z");
        assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 10);
        assert_eq!(pod["metadata"]["generation"], 2);
        assert!(!is_finished(&resource, &pod));

        let before = pod.clone();
        mark(&resource, &mut pod, &DeleteOptions::default(), 200);
        assert_eq!(pod, before, "a second deletion changes nothing");

        let now = DeleteOptions {
            grace_period: Some(0),
            ..DeleteOptions::default()
        };
        mark(&resource, &mut pod, &now, 105);
        assert!(is_finished(&resource, &pod));
    }

    #[test]
    fn a_pod_nobody_runs_is_gone_at_once_unless_a_finalizer_holds_it() {
        let resource = pods();
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {}});
        let mut held = pod.clone();
        mark(&resource, &mut pod, &DeleteOptions::default(), 100);
        assert!(is_finished(&resource, &pod));
        let foreground = DeleteOptions {
            propagation: Some("Foreground".into()),
            ..DeleteOptions::default()
        };
        mark(&resource, &mut held, &foreground, 100);
        assert!(!is_finished(&resource, &held));
        assert_eq!(meta::finalizers(&held), [FOREGROUND]);
    }

    #[test]
    fn jobs_leave_their_pods_unless_told_otherwise() {
        let catalog = Catalog::new(&[]);
        let jobs = catalog.find("batch", "v1", "jobs").expect("built in");
        let policy = |policy: &str| DeleteOptions {
            propagation: Some(policy.into()),
            ..DeleteOptions::default()
        };
        for (options, held, expected) in [
            (DeleteOptions::default(), vec![], vec![ORPHAN]),
            (DeleteOptions::default(), vec![FOREGROUND], vec![FOREGROUND]),
            (policy("Background"), vec![], vec![]),
            (policy("Background"), vec![ORPHAN], vec![]),
            (policy("Foreground"), vec![], vec![FOREGROUND]),
        ] {
            let mut job = json!({"metadata": {"name": "j", "finalizers": held}, "spec": {}});
            mark(jobs, &mut job, &options, 100);
            assert_eq!(meta::finalizers(&job), expected, "{options:?} {held:?}");
        }
    }
}
