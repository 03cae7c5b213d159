//! `yurt-static-set-controller` of OpenYurt: a static pod on many nodes, upgraded from the cloud (`AdvancedRollingUpdate`: a worker pod
//! per node replaces the manifest, sees to it that the pod becomes ready, and goes back when it does not) or by the owner of each
//! node (`OTA`: the pods say that they are old).
//!
//! The config map `yurt-static-set-NAME` carries the manifest for workers, hubs and nodes that join. A pod is installed by who
//! joins the node: the set upgrades pods that are there. A failed worker is tried again, ever later, and holds up no other node.

mod manifest;
mod plan;
mod worker;

use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch,
    collections::{CONFIG_MAPS, CONTROLLER_REVISIONS, PODS},
    condition, controller_of,
    fields::{items, text},
    pod,
    presence::{self, Presence},
    revision,
    told::Told,
};
use jiff::Timestamp;
use plan::{Node, Phase, Plan, Strategy};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};
use yurt_api::names::{
    annotations::STATIC_POD_HASH,
    conditions::{POD_NEED_UPGRADE, REVISION_PREFIX},
    labels::STATIC_SET,
    objects::STATIC_SET_PREFIX,
};
use yurt_controller::{Collection, Objects, Scope, claim, policy::Rule, run_with};
use yurt_wire::selector::LabelSelector;

const SETS: Collection = Collection::namespaced(
    "apps.openyurt.io/v1alpha1",
    "yurtstaticsets",
    "YurtStaticSet",
);
/// The annotation that says where a pod comes from: the API server, or a file of its node.
const SOURCE: &str = "kubernetes.io/config.source";
/// The condition of a set.
const UPGRADED: &str = "Upgraded";

pub(crate) const ENTRY: Entry = Entry::new(
    YurtStaticSets::NAME,
    "yurtstaticset",
    &[
        Rule::new("apps.openyurt.io", &["yurtstaticsets/status"], &["patch"]),
        // To name the set as owner that keeps it from being deleted first.
        Rule::new(
            "apps.openyurt.io",
            &["yurtstaticsets/finalizers"],
            &["update"],
        ),
        Rule::new("apps.openyurt.io", &["yurtstaticsets"], &["get"]),
        Rule::new("", &["configmaps"], &["get", "create", "patch"]),
        Rule::new("", &["pods"], &["create", "delete"]),
        Rule::new("", &["pods/status"], &["patch"]),
        Rule::new("", &["events"], &["create"]),
        Rule::new(
            "apps",
            &["controllerrevisions"],
            &["get", "create", "update", "patch", "delete"],
        ),
    ],
    |context, settings| {
        let controller = YurtStaticSets {
            image: settings.node_servant_image.clone(),
            told: Told::default(),
        };
        let workers = settings.workers(YurtStaticSets::NAME, 3);
        run_with(context, controller, workers);
    },
);

/// `yurt-static-set-controller`.
#[derive(Debug)]
struct YurtStaticSets {
    /// That of the workers.
    image: String,
    told: Told,
}

/// Why a set cannot be brought in order: until it is changed, nothing happens.
#[derive(Debug, thiserror::Error)]
enum BadSet {
    #[error("spec.staticPodManifest {0:?} is not the name of a file")]
    Manifest(String),
    #[error("spec.template has no containers")]
    Template,
    #[error("spec.upgradeStrategy.type {0:?} is none: AdvancedRollingUpdate or OTA is expected")]
    Strategy(String),
    #[error("config map {0} belongs to another object")]
    ConfigMapTaken(String),
}

impl BadSet {
    fn reason(&self) -> &'static str {
        match self {
            Self::ConfigMapTaken(_) => "ConfigMapTaken",
            _ => "InvalidSpec",
        }
    }
}

/// The part of config maps that is looked at all the time: those that this controller has labelled.
fn maps() -> Scope {
    Scope::default().labelled(&format!("{STATIC_SET}=manifest"))
}

/// The set whose static pod a pod is, by its name and node.
fn set_of(p: &Value) -> Option<Key> {
    let source = p["metadata"]["annotations"][SOURCE].as_str()?;
    let node = Some(pod::node(p)).filter(|node| !node.is_empty() && source != "api")?;
    let name = p["metadata"]["name"].as_str()?;
    let set = name.strip_suffix(node)?.strip_suffix('-')?;
    let namespace = p["metadata"]["namespace"].as_str()?;
    (!set.is_empty()).then(|| Key::new(namespace, set))
}

/// The set that a pod concerns: as static pod, or as worker.
fn concerned(p: &Value) -> Option<Key> {
    let owner = controller_of(p).filter(|owner| owner["kind"] == SETS.kind.as_ref());
    match owner {
        Some(owner) => Some(Key::new(
            p["metadata"]["namespace"].as_str()?,
            owner["name"].as_str()?,
        )),
        None => set_of(p),
    }
}

/// What a set asks for.
fn check(set: &Value) -> Result<Strategy, BadSet> {
    let manifest = text(&set["spec"]["staticPodManifest"]);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if manifest.is_empty()
        || manifest.starts_with('.')
        || manifest.len() > 200
        || !manifest.bytes().all(plain)
    {
        return Err(BadSet::Manifest(manifest));
    }
    if items(&set["spec"]["template"]["spec"]["containers"])
        .next()
        .is_none()
    {
        return Err(BadSet::Template);
    }
    let strategy = text(&set["spec"]["upgradeStrategy"]["type"]);
    Strategy::of(&strategy).ok_or(BadSet::Strategy(strategy))
}

/// What is to be changed of a config map, if anything. Pure.
fn map_patch(set: &Value, map: &Value, hash: &str, data: &Value) -> Result<Option<Value>, BadSet> {
    let uid = &set["metadata"]["uid"];
    if controller_of(map).is_some_and(|owner| owner["uid"] != *uid) {
        return Err(BadSet::ConfigMapTaken(text(&map["metadata"]["name"])));
    }
    let owned = controller_of(map).is_some();
    let labelled = map["metadata"]["labels"][STATIC_SET] == "manifest";
    if owned && labelled && manifest::hash_of(map) == hash && map["data"] == *data {
        return Ok(None);
    }
    let mut patch = json!({"metadata": {"resourceVersion": map["metadata"]["resourceVersion"], "labels": {STATIC_SET: "manifest"},
        "annotations": {STATIC_POD_HASH: hash}}, "data": data});
    // A manifest of another name was that of before it was renamed.
    for (key, _) in map["data"].as_object().into_iter().flatten() {
        if data.get(key).is_none() {
            patch["data"][key] = Value::Null;
        }
    }
    if !owned {
        let others = items(&map["metadata"]["ownerReferences"]).cloned();
        let owners: Vec<Value> = others.chain([claim::reference(&SETS, set)]).collect();
        patch["metadata"]["ownerReferences"] = owners.into();
    }
    Ok(Some(patch))
}

/// Sees to the config map of a set.
async fn write_map(
    context: &Context,
    set: &Value,
    wanted: &Value,
) -> Result<Option<BadSet>, Failure> {
    let key = Key::of(set);
    let key = Key::new(&key.namespace, &format!("{STATIC_SET_PREFIX}{}", key.name));
    let hash = manifest::hash_of(wanted);
    let name = text(&set["spec"]["staticPodManifest"]);
    let data = json!({name: manifest::yaml(wanted)});
    let known = context.scoped(&CONFIG_MAPS, &maps()).get(&key);
    if known.is_some_and(|map| matches!(map_patch(set, &map, hash, &data), Ok(None))) {
        return Ok(None);
    }
    match context.kube().get(&CONFIG_MAPS.object_path(&key)).await {
        Ok(map) => match map_patch(set, &map, hash, &data) {
            Ok(Some(patch)) => {
                context.merge(&CONFIG_MAPS, &key, "", &patch).await?;
                Ok(None)
            }
            Ok(None) => Ok(None),
            Err(bad) => Ok(Some(bad)),
        },
        Err(error) if error.is_not_found() => {
            let map = json!({"metadata": {"name": key.name, "namespace": key.namespace, "labels": {STATIC_SET: "manifest"},
                "annotations": {STATIC_POD_HASH: hash}, "ownerReferences": [claim::reference(&SETS, set)]}, "data": data});
            context.create(&CONFIG_MAPS, map).await?;
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// The nodes with the static pod of a set, or a worker.
fn nodes_of(
    set: &Value,
    wanted: &Value,
    pods: &Objects,
    presence: &Presence,
    now: Timestamp,
) -> (BTreeMap<String, Node>, Vec<Arc<Value>>) {
    let key = Key::of(set);
    let uid = set["metadata"]["uid"].as_str().unwrap_or_default();
    let mut found: BTreeMap<String, Node> = BTreeMap::new();
    let mut all = pods.list(&key.namespace);
    all.retain(|p| set_of(p).as_ref() == Some(&key));
    for p in &all {
        let node = found.entry(pod::node(p).to_owned()).or_default();
        let ready = pod::is_ready(p) && !pod::is_deleting(p);
        node.pod = Some((manifest::is_current(wanted, p), ready));
    }
    for p in pods.owned_by(uid) {
        let ours = controller_of(&p).is_some_and(|owner| owner["uid"] == uid);
        if ours && p["metadata"]["labels"][STATIC_SET] == worker::LABEL {
            let node = found.entry(pod::node(&p).to_owned()).or_default();
            node.workers
                .push(worker::read(&p, manifest::hash_of(wanted), now));
        }
    }
    for (name, node) in &mut found {
        node.ready = presence.has(name);
    }
    (found, all)
}

/// The condition that tells the owner of a node, unless the pod says so already. Pure.
fn verdict(p: &Value, wanted: &Value, now: Timestamp) -> Option<Value> {
    let status = if manifest::is_current(wanted, p) {
        "False"
    } else {
        "True"
    };
    let message = format!("{REVISION_PREFIX}{}", manifest::hash_of(wanted));
    let known = condition::find(&p["status"], POD_NEED_UPGRADE);
    let says = |known: &Value| known["status"] == status && known["message"] == message.as_str();
    let condition = condition::new(POD_NEED_UPGRADE, status, "", &message, now);
    (!known.is_some_and(says)).then_some(condition)
}

impl YurtStaticSets {
    /// Writes the status where it differs.
    async fn write_status(
        &self,
        context: &Context,
        set: &Value,
        mut status: Value,
        told: (&str, &str, &str),
    ) -> Result<(), Failure> {
        let (state, reason, message) = told;
        let mut conditions = json!({"conditions": set["status"]["conditions"]});
        let known = condition::find(&set["status"], UPGRADED);
        if known.is_none_or(|known| {
            known["status"] != state || known["reason"] != reason || known["message"] != message
        }) {
            let mut new = condition::new(UPGRADED, state, reason, message, Timestamp::now());
            if let Some(known) = known.filter(|known| known["status"] == state) {
                new["lastTransitionTime"] = known["lastTransitionTime"].clone();
            }
            condition::put(&mut conditions, new);
        }
        status["conditions"] = conditions["conditions"].clone();
        status["observedGeneration"] = set["metadata"]["generation"].clone();
        let written = status.as_object().is_some_and(|fields| {
            let same = |(field, value): (&String, &Value)| {
                set["status"][field] == *value
                    || value.as_array().is_some_and(Vec::is_empty) && set["status"][field].is_null()
            };
            fields.iter().all(same)
        });
        if !written {
            let patch = json!({"metadata": {"resourceVersion": set["metadata"]["resourceVersion"]}, "status": status});
            context
                .merge(&SETS, &Key::of(set), "status", &patch)
                .await?;
        }
        Ok(())
    }

    /// Tells of a set that cannot be brought in order.
    async fn complain(
        &self,
        context: &Context,
        set: &Value,
        bad: &BadSet,
    ) -> Result<Next, Failure> {
        let message = bad.to_string();
        if self.told.is_news(&text(&set["metadata"]["uid"]), &message) {
            context.event(Self::NAME, set, "Warning", bad.reason(), &message);
        }
        let zero = |field: &str| set["status"][field].as_i64().unwrap_or(0);
        let [total, ready, upgraded] = ["totalNumber", "readyNumber", "upgradedNumber"].map(zero);
        let status =
            json!({"totalNumber": total, "readyNumber": ready, "upgradedNumber": upgraded});
        self.write_status(context, set, status, ("False", bad.reason(), &message))
            .await?;
        Ok(Next::Done)
    }

    /// Starts and deletes workers. What fails on one node stops no other.
    async fn work(
        &self,
        context: &Context,
        set: &Value,
        wanted: &Value,
        plan: &Plan,
    ) -> Result<(), Failure> {
        let mut failed = None;
        let uid = set["metadata"]["uid"].as_str().unwrap_or_default();
        for p in context.objects(&PODS).owned_by(uid) {
            let name = text(&p["metadata"]["name"]);
            if plan.delete.binary_search(&name).is_ok()
                && !pod::is_deleting(&p)
                && let Err(error) = context.delete(&PODS, &p).await
            {
                failed = Some(error);
            }
        }
        for (node, attempt) in &plan.start {
            let order = worker::Order {
                set,
                owner: claim::reference(&SETS, set),
                node,
                hash: manifest::hash_of(wanted),
                attempt: *attempt,
                image: &self.image,
            };
            match context.create(&PODS, order.pod()).await {
                Ok(made) => {
                    let message = format!(
                        "Created pod {} to upgrade node {node}",
                        text(&made["metadata"]["name"])
                    );
                    context.event(Self::NAME, set, "Normal", "SuccessfulCreate", &message);
                }
                // One of before is still on its way out.
                Err(error) if error.code() == Some(409) => {}
                Err(error) => failed = Some(error),
            }
        }
        for (node, (phase, _, message)) in &plan.phases {
            let about = format!("{uid}/{node}");
            let what = if *phase == Phase::Failed {
                message.as_str()
            } else {
                ""
            };
            if self.told.is_news(&about, what) {
                let message = format!("node {node}: {message}");
                context.event(Self::NAME, set, "Warning", "UpgradeFailed", &message);
            }
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Says on each static pod whether its owner should upgrade it.
    async fn tell_owners(
        context: &Context,
        wanted: &Value,
        pods: &[Arc<Value>],
    ) -> Result<(), Failure> {
        let mut failed = None;
        for p in pods.iter().filter(|p| !pod::is_deleting(p)) {
            let Some(condition) = verdict(p, wanted, Timestamp::now()) else {
                continue;
            };
            let patch = json!({"metadata": {"uid": p["metadata"]["uid"]}, "status": {"conditions": [condition]}});
            match context.patch(&PODS, &Key::of(p), "status", &patch).await {
                // Gone, or another of that name.
                Err(error) if !matches!(error.code(), Some(404 | 409 | 422)) => {
                    failed = Some(error)
                }
                _ => {}
            }
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }
}

impl Controller for YurtStaticSets {
    const NAME: &'static str = "yurt-static-set-controller";

    fn watches(&self, context: &Arc<Context>) -> Vec<Watch> {
        let pods = context.objects(&PODS);
        let [nodes, leases] = presence::watches(move |node| {
            let pods = pods.on_node(node);
            pods.iter().filter_map(|p| concerned(p)).collect()
        });
        let static_pods = Watch::of(PODS, |change| {
            let any = change.new.as_deref().or(change.old.as_deref());
            any.and_then(concerned).into_iter().collect()
        });
        vec![
            Watch::own(SETS),
            static_pods,
            Watch::owned(CONTROLLER_REVISIONS, "YurtStaticSet"),
            Watch::owned(CONFIG_MAPS, "YurtStaticSet").scoped(maps()),
            nodes,
            leases,
        ]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let set = context.objects(&SETS).get(key);
        let Some(set) = set.filter(|set| !pod::is_deleting(set)) else {
            return Ok(Next::Done);
        };
        let strategy = match check(&set) {
            Ok(strategy) => strategy,
            Err(bad) => return self.complain(context, &set, &bad).await,
        };
        // Revisions are found by their owner and this label.
        let selector =
            json!({"matchExpressions": [{"key": STATIC_POD_HASH, "operator": "Exists"}]});
        let selector = LabelSelector::from_json(&selector)
            .map_err(|error| Failure::Object(error.to_string()))?;
        let history = revision::history(context, &SETS, &set, &selector, STATIC_POD_HASH).await?;
        let hash = text(&history.current["metadata"]["labels"][STATIC_POD_HASH]);
        let wanted = manifest::pod(&set, &hash);
        if let Some(bad) = write_map(context, &set, &wanted).await? {
            return self.complain(context, &set, &bad).await;
        }
        self.told.is_news(&text(&set["metadata"]["uid"]), "");
        let pods = context.objects(&PODS);
        let (found, static_pods) = nodes_of(
            &set,
            &wanted,
            &pods,
            &Presence::of(context),
            Timestamp::now(),
        );
        let most = &set["spec"]["upgradeStrategy"]["maxUnavailable"];
        let plan = plan::plan(strategy, most, &found);
        let worked = self.work(context, &set, &wanted, &plan).await;
        let told = match strategy {
            Strategy::Ota => Self::tell_owners(context, &wanted, &static_pods).await,
            Strategy::Rolling => Ok(()),
        };
        let (state, reason, message) = plan.summary();
        let status = plan.status(&found);
        self.write_status(context, &set, status, (state, reason, &message))
            .await?;
        worked.and(told)?;
        revision::truncate(context, &set, &history, |_| false).await?;
        Ok(plan.next.map_or(Next::Done, Next::After))
    }
}

#[cfg(test)]
mod tests;
