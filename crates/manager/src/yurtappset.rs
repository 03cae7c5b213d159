//! `yurt-app-set-controller`: the same workload in many pools, different where tweaks say so.
//!
//! A [`Subject`] (a YurtAppSet, or a YurtAppDaemon translated into one) is looked at as a whole ([`engine`]): which pools it is for
//! ([`pools`]), what each workload is to be ([`render`]), what is there ([`child`]), whose turn it is ([`rollout`]), what follows
//! ([`plan`]); then it is done ([`write`]) and told ([`status`]). Everything but the writing is a function of values.

mod child;
mod engine;
pub(crate) mod plan;
pub(crate) mod pools;
pub(crate) mod render;
mod revision;
mod rollout;
pub(crate) mod status;
#[cfg(test)]
mod tests;
mod write;

use crate::{Context, Controller, Entry, Failure, Key, Next, Watch, pod};
pub(crate) use engine::Engine;
use jiff::Timestamp;
use pools::Pool;
use render::Owner;
use serde_json::{Value, json};
use std::sync::Arc;
use yurt_api::{apps::yurtappset::YurtAppSetSpec, names::labels};
use yurt_controller::{
    Change, Collection, Scope,
    collections::{
        CONTROLLER_REVISIONS, DEPLOYMENTS, NODE_POOLS, STATEFUL_SETS, YURT_APP_OVERRIDERS,
        YURT_APP_SETS,
    },
    controller_of,
    fields::{self, Labels},
    policy::Rule,
};
use yurt_wire::selector::LabelSelector;

/// What both controllers may do besides what is their own.
pub(crate) const WORKLOAD_RULE: Rule = Rule::new(
    "apps",
    &["deployments", "statefulsets"],
    &["get", "create", "patch", "delete"],
);
/// What both controllers may do with revisions.
pub(crate) const REVISION_RULE: Rule = Rule::new(
    "apps",
    &["controllerrevisions"],
    &["get", "create", "update", "patch", "delete"],
);
/// Events.
pub(crate) const EVENT_RULE: Rule = Rule::new("", &["events"], &["create"]);

pub(crate) const ENTRY: Entry = Entry::of::<YurtAppSets>(
    "yurtappset",
    &[
        WORKLOAD_RULE,
        REVISION_RULE,
        EVENT_RULE,
        Rule::new("apps.openyurt.io", &["yurtappsets"], &["get"]),
        Rule::new("apps.openyurt.io", &["yurtappsets/status"], &["patch"]),
        // Owner references that block the deletion of the owner ask for it, where that is enforced.
        Rule::new("apps.openyurt.io", &["yurtappsets/finalizers"], &["update"]),
    ],
);

/// The kinds of workloads.
pub(crate) const WORKLOADS: [(&str, Collection); 2] =
    [("Deployment", DEPLOYMENTS), ("StatefulSet", STATEFUL_SETS)];

/// The workloads that are read: those of a pool.
pub(crate) fn workload_scope() -> Scope {
    Scope::default().labelled(labels::WORKLOAD_POOL)
}

/// Whose workloads are looked after: a YurtAppSet, or what is translated into one.
#[derive(Debug)]
pub(crate) struct Subject {
    /// What it is.
    pub(crate) collection: Collection,
    /// It.
    pub(crate) object: Arc<Value>,
    /// What is wanted, as a set; or what of it cannot be read.
    pub(crate) spec: Result<YurtAppSetSpec, String>,
    /// Whose the workloads are.
    pub(crate) owner: Owner,
    /// The events' source.
    pub(crate) component: &'static str,
}

impl Subject {
    /// A subject whose spec is read by `read`; of a daemon, with the labels of its selector.
    pub(crate) fn new(
        collection: Collection,
        object: Arc<Value>,
        component: &'static str,
        daemon: Option<Labels>,
        read: impl Fn(&Value) -> serde_json::Result<YurtAppSetSpec>,
    ) -> Self {
        Self {
            owner: Owner::of(&collection, &object, daemon),
            spec: read(&object["spec"]).map_err(|error| error.to_string()),
            collection,
            object,
            component,
        }
    }

    fn event(&self, context: &Context, reason: &str, message: &str) {
        context.event(self.component, &self.object, "Normal", reason, message);
    }

    fn warn(&self, context: &Context, reason: &str, message: &str) {
        context.event(self.component, &self.object, "Warning", reason, message);
    }

    /// Writes the status when it differs, and then tells what became worse.
    pub(crate) async fn tell(&self, context: &Context, status: &Value) -> Result<(), Failure> {
        let known = &self.object["status"];
        if status::is_told(known, status) {
            return Ok(());
        }
        let patch = json!({"metadata": {"uid": self.object["metadata"]["uid"]}, "status": status});
        let key = Key::of(&self.object);
        match context
            .merge(&self.collection, &key, "status", &patch)
            .await
        {
            Ok(_) => {}
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        for (reason, message) in status::news(known, status) {
            self.warn(context, &reason, &message);
        }
        Ok(())
    }
}

/// A watch of NodePools that concerns the subjects that a pool is or was selected by, when its labels or taints change.
pub(crate) fn watch_pools(context: &Arc<Context>, collection: Collection) -> Watch {
    let subjects = context.objects(&collection);
    Watch::of(NODE_POOLS, move |change: &Change| {
        let seen = |pool: &Option<Arc<Value>>| pool.as_deref().map(Pool::of);
        let (old, new) = (seen(&change.old), seen(&change.new));
        if old == new {
            return Vec::new();
        }
        let selects = |spec: &Value, pool: &Pool| {
            let named = fields::items(&spec["pools"]).any(|name| *name == *pool.name);
            let selector = LabelSelector::from_json(&spec["nodepoolSelector"]);
            named || selector.is_ok_and(|selector| selector.matches(&pool.labels))
        };
        let subjects = subjects.list("");
        let concerned = subjects.iter().filter(|subject| {
            let mut pools = [&old, &new].into_iter().flatten();
            pools.any(|pool| selects(&subject["spec"], pool))
        });
        concerned.map(|subject| Key::of(subject)).collect()
    })
}

/// Watches of the workloads of a kind of subject, by their owner or by `label`.
pub(crate) fn watch_workloads(
    kind: &'static str,
    label: Option<&'static str>,
) -> impl Iterator<Item = Watch> {
    WORKLOADS.into_iter().map(move |(_, collection)| {
        let owned = Watch::owned(collection.clone(), kind).concerns;
        let concerns = move |change: &Change| {
            let mut keys = owned(change);
            let orphan = change
                .new
                .as_deref()
                .filter(|object| controller_of(object).is_none());
            let said =
                |object: &Value| Some(object["metadata"]["labels"][label?].as_str()?.to_owned());
            if let Some(object) = orphan
                && let Some(name) = said(object)
            {
                keys.push(Key::new(&Key::of(object).namespace, &name));
            }
            keys
        };
        Watch::of(collection, concerns).scoped(workload_scope())
    })
}

/// A watch of overriders that concerns their subjects of a kind.
pub(crate) fn watch_overriders(kind: &'static str) -> Watch {
    Watch::of(YURT_APP_OVERRIDERS, move |change: &Change| {
        let versions = [&change.old, &change.new].into_iter().flatten();
        let about = versions.filter(|overrider| overrider["subject"]["kind"] == kind);
        let key = |overrider: &Arc<Value>| {
            let name = overrider["subject"]["name"].as_str().unwrap_or_default();
            Key::new(&Key::of(overrider).namespace, name)
        };
        about.map(key).collect()
    })
}

/// A watch of the revisions of a kind of subject.
pub(crate) fn watch_revisions(kind: &'static str) -> Watch {
    Watch::owned(CONTROLLER_REVISIONS, kind).scoped(revision::scope())
}

/// `yurt-app-set-controller`.
#[derive(Debug)]
pub(crate) struct YurtAppSets(Engine);

impl Default for YurtAppSets {
    fn default() -> Self {
        Self(Engine::new("yurt-manager/yurtappset"))
    }
}

impl Controller for YurtAppSets {
    const NAME: &'static str = "yurt-app-set-controller";
    const WORKERS: usize = 3;

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let mut watches = vec![
            Watch::own(YURT_APP_SETS),
            watch_pools(context, YURT_APP_SETS),
            watch_overriders("YurtAppSet"),
            watch_revisions("YurtAppSet"),
        ];
        watches.extend(watch_workloads(
            "YurtAppSet",
            Some(labels::REF_YURT_APP_SET),
        ));
        watches
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let object = context.objects(&YURT_APP_SETS).get(key);
        let Some(object) = object.filter(|object| !pod::is_deleting(object)) else {
            return Ok(Next::Done);
        };
        let subject = Subject::new(YURT_APP_SETS, object, Self::NAME, None, |spec| {
            serde_json::from_value(spec.clone())
        });
        let (report, outcome) = self.0.look(&subject, context).await;
        let status = report.set_status(&subject.object, Timestamp::now());
        subject.tell(context, &status).await?;
        outcome
    }
}
