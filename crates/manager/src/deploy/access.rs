//! RBAC of the manager: its own account reads what all controllers keep; each controller's account may do what its rules say.

use super::Values;
use crate::{CONTROLLERS, Context, Entry, Settings, webhook};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use yurt_api::names::objects::{CONTROLLER_ACCOUNT_PREFIX, MANAGER};
use yurt_controller::{Objects, kube::Kube, policy::Rule};

const GROUP: &str = "rbac.authorization.k8s.io";
/// The role of the manager itself, under OpenYurt's name.
const BASE: &str = "yurt-manager-basecontroller";
/// The role of its webhooks.
const WEBHOOK: &str = "yurt-manager-webhook";

/// A ClusterRole, or a Role where there is a namespace.
pub(super) fn role(namespace: Option<&str>, name: &str, rules: Vec<Value>) -> Value {
    let kind = namespace.map_or("ClusterRole", |_| "Role");
    let mut role = json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind,
        "metadata": {"name": name}, "rules": rules});
    if let Some(namespace) = namespace {
        role["metadata"]["namespace"] = namespace.into();
    }
    role
}

/// Who a role is bound to.
pub(super) enum Subject<'a> {
    /// A service account: its namespace and name.
    Account(&'a str, &'a str),
    /// A group.
    Group(&'a str),
    /// A user.
    User(&'a str),
}

/// Binds a role of the same name and namespace (`None`: of the cluster).
pub(super) fn bind(namespace: Option<&str>, name: &str, subject: &Subject<'_>) -> Value {
    let kind = namespace.map_or("ClusterRole", |_| "Role");
    let subject = match subject {
        Subject::Account(namespace, name) => {
            json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
        }
        Subject::Group(name) => json!({"apiGroup": GROUP, "kind": "Group", "name": name}),
        Subject::User(name) => json!({"apiGroup": GROUP, "kind": "User", "name": name}),
    };
    let mut binding = json!({"apiVersion": format!("{GROUP}/v1"), "kind": format!("{kind}Binding"),
        "metadata": {"name": name},
        "roleRef": {"apiGroup": GROUP, "kind": kind, "name": name}, "subjects": [subject]});
    if let Some(namespace) = namespace {
        binding["metadata"]["namespace"] = namespace.into();
    }
    binding
}

/// A role and its binding, unless there is nothing to allow.
fn allow(
    objects: &mut Vec<Value>,
    namespace: Option<&str>,
    name: &str,
    rules: Vec<Value>,
    subject: &Subject<'_>,
) {
    if !rules.is_empty() {
        objects.push(role(namespace, name, rules));
        objects.push(bind(namespace, name, subject));
    }
}

/// The caches that controllers and webhooks ask for when they start: what there is to read is written nowhere else.
fn caches(settings: &Settings) -> Vec<Arc<Objects>> {
    // A server that never answers, for controllers that have ended before they begin.
    let silent = Kube::in_process(
        Arc::new(|_| Box::pin(std::future::pending())),
        "",
        Duration::MAX,
    );
    let ended = CancellationToken::new();
    ended.cancel();
    let context = Context::new(silent, ended);
    // Also those that are off unless they are named.
    for entry in CONTROLLERS {
        (entry.start)(&context, settings);
    }
    let options = webhook::Options {
        namespace: settings.namespace.clone(),
        ..webhook::Options::default()
    };
    webhook::ask_for_caches(&options, &context);
    context.caches()
}

/// Namespace (none: everywhere), API group, and name of the only object (none: all); the resources.
type Reads = BTreeMap<(Option<String>, String, Option<String>), BTreeSet<String>>;

fn reads(caches: &[Arc<Objects>]) -> Reads {
    let mut reads = Reads::new();
    for objects in caches {
        let (collection, scope) = (objects.collection(), objects.scope());
        let group = collection
            .api_version
            .rsplit_once('/')
            .map_or("", |(group, _)| group);
        let namespace = (!scope.namespace.is_empty()).then(|| scope.namespace.clone());
        let name = scope.fields.strip_prefix("metadata.name=");
        let name = name.filter(|name| !name.contains(',')).map(str::to_owned);
        let of = reads
            .entry((namespace, group.to_owned(), name))
            .or_default();
        of.insert(collection.plural.to_string());
    }
    // What is read everywhere needs not be allowed for a part.
    let everywhere = reads.clone();
    for ((namespace, group, name), resources) in &mut reads {
        if namespace.is_some() || name.is_some() {
            let all = everywhere.get(&(None, group.clone(), None));
            resources.retain(|resource| all.is_none_or(|all| !all.contains(resource)));
        }
    }
    reads.retain(|_, resources| !resources.is_empty());
    reads
}

fn account(values: &Values, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": values.metadata(name)})
}

fn account_of(entry: &Entry) -> String {
    format!("{CONTROLLER_ACCOUNT_PREFIX}{}", entry.names.name)
}

fn rule(group: &str, resources: &[&str], verbs: &[&str], names: &[String]) -> Value {
    let mut rule = json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    if !names.is_empty() {
        rule["resourceNames"] = json!(names);
    }
    rule
}

/// What the manager itself may do besides reading: hold its lease, be its controllers, tell that it leads.
fn own_rules(values: &Values) -> Vec<Value> {
    let accounts: Vec<String> = CONTROLLERS.iter().map(account_of).collect();
    let lease = [values.lease.clone()];
    vec![
        rule("coordination.k8s.io", &["leases"], &["create"], &[]),
        rule(
            "coordination.k8s.io",
            &["leases"],
            &["get", "update"],
            &lease,
        ),
        rule("", &["serviceaccounts"], &["create"], &[]),
        rule("", &["serviceaccounts/token"], &["create"], &accounts),
        rule("", &["events"], &["create"], &[]),
    ]
}

fn base(values: &Values) -> Vec<Value> {
    let settings = Settings {
        namespace: values.namespace.clone(),
        ..Settings::default()
    };
    let mut by_namespace: BTreeMap<Option<String>, Vec<Value>> = BTreeMap::new();
    for ((namespace, group, name), resources) in reads(&caches(&settings)) {
        let resources: Vec<&str> = resources.iter().map(String::as_str).collect();
        let names: Vec<String> = name.into_iter().collect();
        let read = rule(&group, &resources, &["list", "watch"], &names);
        by_namespace.entry(namespace).or_default().push(read);
    }
    let own = by_namespace
        .entry(Some(values.namespace.clone()))
        .or_default();
    own.extend(own_rules(values));
    let subject = Subject::Account(&values.namespace, MANAGER);
    let mut objects = Vec::new();
    // The manager's own namespace before others, whatever it is called.
    let (near, far): (Vec<_>, Vec<_>) = by_namespace
        .into_iter()
        .partition(|(namespace, _)| namespace.as_ref().is_none_or(|n| *n == values.namespace));
    for (namespace, rules) in near.into_iter().chain(far) {
        allow(&mut objects, namespace.as_deref(), BASE, rules, &subject);
    }
    objects
}

/// The rules of one account, in the cluster and in the manager's namespace.
fn split<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> (Vec<Value>, Vec<Value>) {
    let (local, everywhere): (Vec<&Rule>, Vec<&Rule>) =
        rules.into_iter().partition(|rule| rule.local);
    let json = |rules: Vec<&Rule>| rules.into_iter().map(Rule::to_json).collect();
    (json(everywhere), json(local))
}

/// All of them: accounts, roles and bindings.
pub(super) fn objects(values: &Values) -> Vec<Value> {
    let namespace = Some(values.namespace.as_str());
    let mut objects = vec![account(values, MANAGER)];
    objects.extend(base(values));
    let subject = Subject::Account(&values.namespace, MANAGER);
    let (everywhere, _) = split(webhook::RULES);
    allow(&mut objects, None, WEBHOOK, everywhere, &subject);
    let local = webhook::NAMESPACED_RULES
        .iter()
        .map(Rule::to_json)
        .collect();
    allow(&mut objects, namespace, WEBHOOK, local, &subject);
    for entry in CONTROLLERS {
        let name = account_of(entry);
        objects.push(account(values, &name));
        let subject = Subject::Account(&values.namespace, &name);
        let (everywhere, local) = split(entry.rules);
        allow(&mut objects, None, &name, everywhere, &subject);
        allow(&mut objects, namespace, &name, local, &subject);
    }
    objects
}

#[cfg(test)]
mod tests {
    use super::*;
    use yurt_controller::{
        Scope,
        collections::{LEASES, NODES, PODS},
    };

    #[test]
    fn what_is_read_is_allowed_once_and_no_wider() {
        let of = |collection, scope| Arc::new(Objects::new(collection, scope));
        let named = Scope {
            fields: "metadata.name=a".into(),
            ..Scope::metadata().within("kube-system")
        };
        let reads = reads(&[
            of(NODES, Scope::default()),
            of(PODS, Scope::metadata().labelled("a=b")),
            of(PODS, Scope::default().within("kube-system")),
            of(LEASES, Scope::metadata().within("kube-node-lease")),
            of(LEASES, named),
        ]);
        let shown: Vec<String> = reads
            .iter()
            .map(|((namespace, group, name), resources)| {
                format!("{namespace:?} {group:?} {name:?} {resources:?}")
            })
            .collect();
        assert_eq!(
            shown,
            [
                r#"None "" None {"nodes", "pods"}"#,
                r#"Some("kube-node-lease") "coordination.k8s.io" None {"leases"}"#,
                r#"Some("kube-system") "coordination.k8s.io" Some("a") {"leases"}"#,
            ]
        );
    }
}
