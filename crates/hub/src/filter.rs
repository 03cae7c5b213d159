//! What a component of an edge node is to see otherwise than the cloud has it: filters, applied when the hub serves. What is cached and
//! what is shared with other nodes stays as the cloud has it (design rule R2).
//!
//! A [`Filter`] is a pure function of one object and a [`Context`]. Which filters are in force, in which order and for whom is a value as
//! well ([`Force`]); a request gets its [`Chain`] out of it. `inputs` keeps that value true; `screen` and `watching` apply chains
//! to watches, [`crate::proxy`] to other answers. To write one: a file beside this one that implements [`Filter`], and its line in `built_in`; see `docs/filters.md`.

mod chain;
mod inputs;
mod screen;
pub(crate) mod watching;

mod discardcloudservice;
mod forwardkubesvctraffic;
mod hostnetworkpropagation;
mod inclusterconfig;
mod masterservice;
mod nodeportisolation;
mod serviceenvupdater;
mod servicetopology;

pub use chain::{BuiltIn, Chain, Force, Outcome, Placed, Selection};
pub use inputs::{Filters, TOPOLOGY_KEYS};
pub(crate) use inputs::{keep, topology};
pub use screen::{Before, Screen};

use crate::{config::WorkingMode, pool::Membership};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr},
    ops::{BitAnd, BitOr},
    sync::Arc,
};
use yurt_wire::{Gvr, Object, ObjectMeta, RequestInfo, Verb};

/// What a filter made of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays as it is.
    Kept,
    /// It is another now.
    Changed,
    /// The caller is not to see it.
    Dropped,
}

/// Something that shows objects otherwise than the cloud has them.
///
/// The same object and context always give the same verdict: what a watcher was told is found out again by asking once more.
pub trait Filter: fmt::Debug + Send + Sync {
    /// Its name in flags, config maps and metrics.
    fn name(&self) -> &str;

    /// Which requests it is for by default. Asked when filters come into force, not for each request.
    fn scope(&self) -> Scope;

    /// What else than the object its verdict depends on: when that changes, running watches are told what shows otherwise now.
    fn inputs(&self) -> Inputs {
        Inputs::NONE
    }

    /// Whether it may do anything at all as things are. When no filter of a chain does, lists pass unread.
    fn is_idle(&self, _context: &Context) -> bool {
        false
    }

    /// Whether it may have a say about an object, as far as its metadata tells (and [`Object::field`], where one field does): only these
    /// are decoded. Sees the object as it came, also where filters before it change it.
    fn concerns(&self, object: &Object, meta: &ObjectMeta, context: &Context) -> bool;

    /// Why it can do nothing to an object that it concerns, where that is not meant so: for people who ask, nothing is counted.
    fn failure(&self, _object: &Value, _context: &Context) -> Option<String> {
        None
    }

    /// Filters the object in place. What it leaves half done when it drops the object is forgotten.
    fn apply(&self, object: &mut Value, context: &Context) -> Verdict;
}

/// Which requests a filter is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Components (user agents up to the first slash, in lower case); `None` for every one.
    pub components: Option<BTreeSet<String>>,
    /// Resources; [`Scope::ANY`] stands for any group, version or resource.
    pub resources: Vec<Gvr>,
    /// Verbs.
    pub verbs: Vec<Verb>,
    /// Namespace and name, where it is about one object only.
    pub object: Option<(String, String)>,
    /// Whether it is applied beside API servers too (`--working-mode=cloud`).
    pub in_cloud: bool,
}

impl Scope {
    /// Any group, version or resource.
    pub const ANY: &str = "*";

    /// For components, resources as `(group, resource)` in all versions, and verbs; on edge and cloud nodes.
    pub fn of(components: &[&str], resources: &[(&str, &str)], verbs: &[Verb]) -> Self {
        let components = components.iter().map(|name| (*name).to_owned());
        let resources = resources.iter();
        Self {
            components: Some(components.collect()),
            resources: resources
                .map(|(group, resource)| Gvr::new(group, Self::ANY, resource))
                .collect(),
            verbs: verbs.to_vec(),
            object: None,
            in_cloud: true,
        }
    }

    /// About one object only.
    #[must_use]
    pub fn only(mut self, namespace: &str, name: &str) -> Self {
        self.object = Some((namespace.to_owned(), name.to_owned()));
        self
    }

    /// Not beside API servers.
    #[must_use]
    pub fn on_edge_only(mut self) -> Self {
        self.in_cloud = false;
        self
    }

    /// Whether it covers a request of an agent (the `User-Agent` up to the first slash). An object's status is the object.
    pub fn covers(&self, agent: &str, info: &RequestInfo) -> bool {
        let any = |wanted: &str, is: &str| wanted == Self::ANY || wanted == is;
        let named = |wanted: &str, is: &str| is.is_empty() || wanted == is;
        info.is_resource
            && matches!(info.subresource.as_str(), "" | "status")
            && self.verbs.contains(&info.verb)
            && self.resources.iter().any(|gvr| {
                any(&gvr.resource, &info.resource)
                    && any(&gvr.group, &info.group)
                    && any(&gvr.version, &info.version)
            })
            && self.object.as_ref().is_none_or(|(namespace, name)| {
                named(namespace, &info.namespace) && named(name, &info.name)
            })
            && self
                .components
                .as_ref()
                .is_none_or(|names| names.iter().any(|name| name.eq_ignore_ascii_case(agent)))
    }
}

/// What verdicts depend on beside the object: a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inputs(u8);

impl Inputs {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Name, nodes and settings of the pool.
    pub const POOL: Self = Self(1);
    /// Which services have a topology of their own.
    pub const SERVICES: Self = Self(1 << 1);
    /// The labels of the node.
    pub const NODE: Self = Self(1 << 2);

    /// Whether one of `others` is among them.
    pub fn any_of(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }

    /// Whether all of `others` are among them.
    pub fn has(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }
}

impl BitAnd for Inputs {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for Inputs {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The annotation `openyurt.io/topologyKeys` of the services that have one, by `NAMESPACE/NAME`.
pub type Topologies = BTreeMap<Box<str>, Box<str>>;

/// What filters know: a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// Name of the node.
    pub node: String,
    /// Its labels, while a filter in force asks for them ([`Inputs::NODE`]); empty while unknown.
    pub node_labels: Arc<BTreeMap<String, String>>,
    /// Name of its pool; empty while unknown and for nodes of none.
    pub pool: String,
    /// The pool's nodes and settings.
    pub membership: Membership,
    /// Where pods and the node's components reach the hub.
    pub hub_host: IpAddr,
    /// Its TLS port there.
    pub hub_port: u16,
    /// Where the hub stands.
    pub mode: WorkingMode,
    /// Topologies of services, while a filter in force asks for them ([`Inputs::SERVICES`]); `None` while unknown.
    pub topologies: Option<Arc<Topologies>>,
}

impl Context {
    /// Of a node of which nothing but the name is known, with OpenYurt's address of the hub.
    pub fn of_node(name: &str) -> Self {
        Self {
            node: name.to_owned(),
            node_labels: Arc::default(),
            pool: String::new(),
            membership: Membership::default(),
            hub_host: Ipv4Addr::new(169, 254, 2, 1).into(),
            hub_port: 10268,
            mode: WorkingMode::Edge,
            topologies: None,
        }
    }

    /// Whether something that `inputs` names is otherwise than in `other`.
    pub fn differs(&self, other: &Self, inputs: Inputs) -> bool {
        inputs.any_of(Inputs::POOL)
            && (self.pool != other.pool || self.membership != other.membership)
            || inputs.any_of(Inputs::SERVICES) && self.topologies != other.topologies
            || inputs.any_of(Inputs::NODE) && self.node_labels != other.node_labels
    }
}

/// The filters that come with the hub, in the order in which they are applied.
fn built_in() -> Vec<Arc<dyn Filter>> {
    vec![
        Arc::new(discardcloudservice::DiscardCloudService),
        Arc::new(nodeportisolation::NodePortIsolation),
        Arc::new(masterservice::MasterService),
        Arc::new(servicetopology::ServiceTopology),
        Arc::new(forwardkubesvctraffic::ForwardKubeSvcTraffic),
        Arc::new(inclusterconfig::InClusterConfig),
        Arc::new(hostnetworkpropagation::HostNetworkPropagation),
        Arc::new(serviceenvupdater::ServiceEnvUpdater),
    ]
}

/// Whether a name is that of a filter that comes with the hub.
pub fn is_built_in(name: &str) -> bool {
    built_in().iter().any(|filter| filter.name() == name)
}

/// The value of a label or annotation.
pub fn value_of<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let pair = pairs.iter().find(|(key, _)| key == name);
    pair.map(|(_, value)| value.as_str())
}
