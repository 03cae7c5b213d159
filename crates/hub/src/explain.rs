//! Which filters a component's request passes, and what each makes of an object: what the hub does silently, told step by step. Pure.
//!
//! Of a running hub ([`explain`] over its [`Force`]) or of settings that somebody thinks of ([`Supposed`]).

mod difference;

pub use difference::{Change, changes};

use crate::{
    filter::{
        BuiltIn, Context, Filter, Force, Placed, Scope, Selection, Topologies, Verdict,
        is_built_in, topology,
    },
    pool::Membership,
    rules::{Complaint, InForce, Origin, plural},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};
use yurt_wire::{Encoding, Gvk, Object, RequestInfo, Verb, schema::message_of};

/// Objects of one question.
const MOST_OBJECTS: usize = 256;
/// Resources whose objects are read in one namespace are asked for across all of them.
const READS: [Verb; 3] = [Verb::Get, Verb::List, Verb::Watch];

/// What somebody wants to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Question {
    /// Who asks the hub: a user agent up to the first slash.
    pub component: String,
    /// `get`, `list` or `watch`.
    pub verb: String,
    /// The resource that is asked for (`services`, `endpointslices.discovery.k8s.io`); guessed from the kind when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The objects, as the cloud has them.
    pub objects: Vec<Value>,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// It cannot be read.
    #[error("the object cannot be read: {0}")]
    Unreadable(String),
    /// It has no kind.
    #[error("the object has no {0}")]
    Nameless(&'static str),
    /// Filters are for reads.
    #[error("{0:?} is none of get, list and watch: other answers are not filtered")]
    Verb(String),
    /// There are too many objects.
    #[error("{0} objects are more than {MOST_OBJECTS}")]
    TooMany(usize),
    /// There is none.
    #[error("there is no object")]
    Nothing,
}

/// What becomes of an object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The object: kind, namespace and name.
    pub object: String,
    /// Who reads.
    pub component: String,
    /// How.
    pub verb: String,
    /// What was asked for.
    pub resource: String,
    /// `kept`, `changed` or `dropped`.
    pub verdict: String,
    /// Each filter in force, in order.
    pub steps: Vec<Step>,
    /// What somebody should know beside that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
    /// What is shown; absent when nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown: Option<Value>,
}

/// A filter and what it did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Its name.
    pub filter: String,
    /// `hub`, `configmap` or `file`.
    pub origin: String,
    /// What it did.
    pub did: Did,
    /// Why, where that says more.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// What it changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

/// What a filter did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Did {
    /// It is not for requests like this one.
    NotAsked,
    /// It is not for this object.
    NotConcerned,
    /// It looked, and left it as it is.
    Kept,
    /// It changed it.
    Changed,
    /// It took it away.
    Dropped,
    /// It could not do what it is for, and left it as it is.
    Failed,
    /// The object was gone by then.
    NotReached,
}

/// Settings of a hub that need not run.
#[derive(Clone, Debug)]
pub struct Supposed {
    /// Name of the node.
    pub node: String,
    /// Its labels.
    pub node_labels: BTreeMap<String, String>,
    /// Its pool; empty for none.
    pub pool: String,
    /// The nodes of the pool; `None` while they are not known.
    pub pool_nodes: Option<BTreeSet<Box<str>>>,
    /// Where the hub is reached.
    pub hub_host: Option<IpAddr>,
    /// Filters not to be applied.
    pub disabled: Vec<String>,
}

impl Supposed {
    /// What would be in force, with users' rules. Services among the objects say their topologies.
    pub fn force(&self, rules: &[Arc<InForce>], objects: &[Value]) -> Arc<Force> {
        let mut context = Context::of_node(&self.node);
        context.node_labels = Arc::new(self.node_labels.clone());
        context.pool.clone_from(&self.pool);
        context.membership = Membership {
            pool: (!self.pool.is_empty()).then(|| self.pool.clone()),
            nodes: self.pool_nodes.clone(),
            ..Membership::default()
        };
        context.hub_host = self.hub_host.unwrap_or(context.hub_host);
        let services = objects.iter().filter(|object| object["kind"] == "Service");
        let topologies: Topologies = services
            .filter_map(|service| {
                let object = Object::from_json_value(service, Encoding::Json).ok()?;
                let key = object.key().ok()?;
                let at = format!("{}/{}", key.namespace, key.name).into();
                Some((at, topology(object.clone())?))
            })
            .collect();
        context.topologies = Some(Arc::new(topologies));
        let selection = Selection {
            enabled: true,
            disabled: self.disabled.clone(),
            added: BTreeMap::new(),
        };
        let users: Vec<Arc<dyn Filter>> = rules
            .iter()
            .map(|rule| rule.clone() as Arc<dyn Filter>)
            .collect();
        Arc::new(Force::of(&BuiltIn::default(), &users, &selection, context))
    }
}

/// The objects of a text in YAML or JSON: several documents, and lists of them.
pub fn objects(text: &str) -> Result<Vec<Value>, QuestionError> {
    let read = serde_saphyr::from_multiple::<Value>(text);
    let documents =
        read.map_err(|error| QuestionError::Unreadable(error.without_snippet().to_string()))?;
    let mut objects = Vec::new();
    for document in documents {
        let is_list = document["kind"]
            .as_str()
            .is_some_and(|kind| kind.ends_with("List"));
        match document {
            Value::Null => {}
            Value::Object(mut list) if is_list => match list.remove("items") {
                Some(Value::Array(items)) => objects.extend(items),
                _ => objects.push(Value::Object(list)),
            },
            document => objects.push(document),
        }
    }
    match objects.len() {
        0 => Err(QuestionError::Nothing),
        count if count > MOST_OBJECTS => Err(QuestionError::TooMany(count)),
        _ => Ok(objects),
    }
}

/// Explains what becomes of the objects of a question. `origins`: where users' rules come from, by name.
pub fn explain(
    force: &Arc<Force>,
    origins: &BTreeMap<String, Origin>,
    question: &Question,
) -> Result<Vec<Explanation>, QuestionError> {
    let known = |verb: &&Verb| verb.as_str() == question.verb;
    let verb = READS
        .iter()
        .find(known)
        .ok_or_else(|| QuestionError::Verb(question.verb.clone()))?;
    if question.objects.len() > MOST_OBJECTS {
        return Err(QuestionError::TooMany(question.objects.len()));
    }
    let objects = question.objects.iter();
    objects
        .map(|value| explain_one(force, origins, question, *verb, value))
        .collect()
}

fn explain_one(
    force: &Arc<Force>,
    origins: &BTreeMap<String, Origin>,
    question: &Question,
    verb: Verb,
    value: &Value,
) -> Result<Explanation, QuestionError> {
    for name in ["apiVersion", "kind"] {
        if value[name].as_str().is_none_or(str::is_empty) {
            return Err(QuestionError::Nameless(name));
        }
    }
    let unreadable = |error: yurt_wire::object::Malformed| QuestionError::Unreadable(error.what);
    let object = Object::from_json_value(value, Encoding::Json).map_err(unreadable)?;
    let meta = object.meta().map_err(unreadable)?;
    let info = request(question, verb, &meta.gvk, &meta.namespace, &meta.name);
    let agent = question.component.as_str();
    // The hub's own agents have no chain, whatever filters cover.
    let covered = force.filters.iter().any(|p| p.scope.covers(agent, &info));
    let own = covered && force.chain(agent, &info).is_none();
    let mut now = value.clone();
    let mut dropped = false;
    let mut steps = Vec::with_capacity(force.filters.len());
    for Placed { filter, scope } in &force.filters {
        let (did, why, changes) = if own {
            (
                Did::NotAsked,
                "the hub itself sees everything".to_owned(),
                Vec::new(),
            )
        } else if !scope.covers(agent, &info) {
            (Did::NotAsked, reason(scope, agent, &info), Vec::new())
        } else if dropped {
            (Did::NotReached, String::new(), Vec::new())
        } else if !filter.concerns(&object, &meta, &force.context) {
            (Did::NotConcerned, String::new(), Vec::new())
        } else if let Some(why) = filter.failure(&now, &force.context) {
            (Did::Failed, why, Vec::new())
        } else {
            let before = now.clone();
            match filter.apply(&mut now, &force.context) {
                Verdict::Kept => (Did::Kept, String::new(), Vec::new()),
                Verdict::Changed => (Did::Changed, String::new(), changes(&before, &now)),
                Verdict::Dropped => {
                    dropped = true;
                    (Did::Dropped, String::new(), Vec::new())
                }
            }
        };
        let name = filter.name();
        let origin = origins.get(name).map_or("hub", |origin| origin.as_str());
        steps.push(Step {
            filter: name.to_owned(),
            origin: if is_built_in(name) { "hub" } else { origin }.to_owned(),
            did,
            why,
            changes,
        });
    }
    let changed = steps.iter().any(|step| step.did == Did::Changed);
    let verdict = match (dropped, changed) {
        (true, _) => "dropped",
        (false, true) => "changed",
        (false, false) => "kept",
    };
    let mut remarks = Vec::new();
    if dropped && verb == Verb::Get {
        remarks.push("who gets it by its name is told that there is none".to_owned());
    }
    if !dropped && changed && message_of(&meta.gvk).is_some() {
        remarks.extend(lost_in_protobuf(&now));
    }
    Ok(Explanation {
        object: named(&meta.gvk, &meta.namespace, &meta.name),
        component: question.component.clone(),
        verb: question.verb.clone(),
        resource: resource_name(&info.group, &info.resource),
        verdict: verdict.to_owned(),
        steps,
        remarks,
        shown: (!dropped).then_some(now),
    })
}

/// What callers that ask for protobuf do not see of a built-in kind.
fn lost_in_protobuf(value: &Value) -> Option<String> {
    let there = |binary: Object| binary.to_json_value();
    match Object::from_json_value(value, Encoding::Protobuf).and_then(there) {
        Ok(back) => {
            let lost = changes(value, &back).into_iter();
            let lost =
                lost.filter(|change| change.after.is_none() && change.before != Some(Value::Null));
            let lost: Vec<String> = lost.map(|change| change.path).collect();
            (!lost.is_empty()).then(|| {
                format!(
                    "who asks for protobuf does not see {}: the kind has no such field",
                    lost.join(", ")
                )
            })
        }
        Err(error) => Some(format!(
            "who asks for protobuf sees the object as it was, for this cannot be written so: {}",
            error.what
        )),
    }
}

fn named(gvk: &Gvk, namespace: &str, name: &str) -> String {
    let slash = if namespace.is_empty() { "" } else { "/" };
    format!(
        "{} {namespace}{slash}{name} ({})",
        gvk.kind,
        gvk.api_version()
    )
}

fn resource_name(group: &str, resource: &str) -> String {
    let dot = if group.is_empty() { "" } else { "." };
    format!("{resource}{dot}{group}")
}

/// The request in whose answer the object is.
fn request(question: &Question, verb: Verb, gvk: &Gvk, namespace: &str, name: &str) -> RequestInfo {
    let (resource, group) = match question.resource.as_deref() {
        Some(text) => {
            let (resource, group) = text.split_once('.').unwrap_or((text, ""));
            (resource.to_owned(), group.to_owned())
        }
        None => (plural(&gvk.kind), gvk.group.clone()),
    };
    let is_get = verb == Verb::Get;
    let only = |text: &str| {
        if is_get {
            text.to_owned()
        } else {
            String::new()
        }
    };
    RequestInfo {
        is_resource: true,
        verb,
        group,
        version: gvk.version.clone(),
        resource,
        namespace: only(namespace),
        name: only(name),
        ..RequestInfo::parse(&http::Method::GET, "", None)
    }
}

/// Why a filter is not for a request.
fn reason(scope: &Scope, agent: &str, info: &RequestInfo) -> String {
    let listed = |names: Vec<String>| names.join(", ");
    if let Some(names) = &scope.components
        && !names.iter().any(|name| name.eq_ignore_ascii_case(agent))
    {
        return format!("it is for {}", listed(names.iter().cloned().collect()));
    }
    if !scope.verbs.contains(&info.verb) {
        let verbs = scope.verbs.iter().map(ToString::to_string).collect();
        return format!("it is for {}", listed(verbs));
    }
    let resources = scope.resources.iter();
    let resources = resources.map(|gvr| resource_name(&gvr.group, &gvr.resource));
    match &scope.object {
        Some((namespace, name)) => format!(
            "it is for {}, {namespace}/{name} only",
            listed(resources.collect())
        ),
        None => format!("it is for {}", listed(resources.collect())),
    }
}

/// A hub's filters and what is wrong with its users' rules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// In force, in order.
    pub filters: Vec<Shown>,
    /// What is wrong with rules as they are written now.
    pub complaints: Vec<Told>,
}

/// A filter in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// Its name.
    pub name: String,
    /// `hub`, `configmap` or `file`.
    pub origin: String,
    /// For whom; absent for every component.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub components: Option<BTreeSet<String>>,
    /// Of what.
    pub resources: Vec<String>,
    /// Verbs.
    pub verbs: Vec<String>,
}

/// A complaint and where the rules come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// `configmap` or `file`.
    pub origin: String,
    /// What is wrong, and where.
    pub complaint: String,
}

/// What is in force.
pub fn overview(
    force: &Force,
    origins: &BTreeMap<String, Origin>,
    complaints: &[(Origin, Complaint)],
) -> Overview {
    let shown = |Placed { filter, scope }: &Placed| Shown {
        name: filter.name().to_owned(),
        origin: origins
            .get(filter.name())
            .map_or("hub", |origin| origin.as_str())
            .to_owned(),
        components: scope.components.clone(),
        resources: scope
            .resources
            .iter()
            .map(|gvr| resource_name(&gvr.group, &gvr.resource))
            .collect(),
        verbs: scope.verbs.iter().map(ToString::to_string).collect(),
    };
    let told = |(origin, complaint): &(Origin, Complaint)| Told {
        origin: origin.as_str().to_owned(),
        complaint: complaint.to_string(),
    };
    Overview {
        filters: force.filters.iter().map(shown).collect(),
        complaints: complaints.iter().map(told).collect(),
    }
}

#[cfg(test)]
mod tests;
