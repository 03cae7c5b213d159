//! What is read of the cluster for an answer. Lists are read in portions; what may not be read is left out and said, where the answer
//! makes sense without it.

use crate::{
    app::{self, AppObserved},
    node::{self, Leases},
    pools::{PoolObserved, PoolsObserved},
    status::StatusObserved,
    why::{NodeObserved, PodObserved},
};
use serde_json::Value;
use std::cell::RefCell;
use yurt_api::{
    crd::DEFINITIONS,
    names::{annotations, labels, objects},
};
use yurt_controller::{
    Collection,
    collections::{
        CONTROLLER_REVISIONS, CSRS, DAEMON_SETS, DEPLOYMENTS, LEASES, NODE_POOLS, NODES, PODS,
        REPLICA_SETS, SERVICES, STATEFUL_SETS,
    },
    kube::{Kube, KubeError},
};

/// How many objects one answer holds.
const PORTION: usize = 500;
/// How many objects of a list are read at most.
const MOST: usize = 200_000;
/// The namespace of nodes' leases.
const NODE_LEASES: &str = "kube-node-lease";
/// By which the manager's own pods are found.
const MANAGER: &str = "app.kubernetes.io/name=yurt-manager";
/// Names of the manager's Lease: the binary's default, the chart's.
const MANAGER_LEASES: [&str; 2] = ["yurt-manager", "cloud-yurt-manager"];
const APPS: &str = "apps.openyurt.io/v1beta1";
const OLD_APPS: &str = "apps.openyurt.io/v1alpha1";

/// Why the cluster does not tell what is needed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// It does not know OpenYurt's kinds.
    #[error(
        "the cluster does not know {0}.apps.openyurt.io: install the definitions with `yurt crds | kubectl apply -f -`, or with the chart"
    )]
    NoDefinition(&'static str),
    /// There is no such object.
    #[error("there is no {kind} {name}")]
    NotFound {
        /// What kind it would be.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It refuses, or does not answer.
    #[error(transparent)]
    Kube(#[from] KubeError),
}

/// Reads a cluster.
pub(crate) struct Reader {
    kube: Kube,
    /// What could not be read, and why.
    unseen: RefCell<Vec<String>>,
}

/// Something of `all`, or everything.
#[derive(Clone, Copy, Default)]
struct Scope<'s> {
    namespace: &'s str,
    query: &'s str,
}

impl Reader {
    pub(crate) fn new(kube: Kube) -> Self {
        Self {
            kube,
            unseen: RefCell::default(),
        }
    }

    fn unseen(&self) -> Vec<String> {
        self.unseen.take()
    }

    /// A list, whole.
    async fn list(&self, of: &Collection, scope: Scope<'_>) -> Result<Vec<Value>, KubeError> {
        let path = of.path(scope.namespace);
        let mut items = Vec::new();
        let mut next = String::new();
        loop {
            let query = [scope.query, &next].join("&");
            let url = format!("{path}?limit={PORTION}&{}", query.trim_matches('&'));
            let mut list = self.kube.get(url.trim_end_matches('&')).await?;
            if let Some(Value::Array(more)) = list.get_mut("items").map(Value::take) {
                items.extend(more);
            }
            match list["metadata"]["continue"].as_str() {
                Some(token) if !token.is_empty() && items.len() < MOST => {
                    next = format!("continue={token}");
                }
                _ => return Ok(items),
            }
        }
    }

    /// A list without which the answer still makes sense.
    async fn perhaps(&self, of: &Collection, scope: Scope<'_>) -> Vec<Value> {
        match self.list(of, scope).await {
            Ok(items) => items,
            Err(error) => {
                self.miss(&of.plural, &error);
                Vec::new()
            }
        }
    }

    fn miss(&self, what: &str, error: &KubeError) {
        let message = format!("{what}: {}", error.message());
        self.unseen.borrow_mut().push(message);
    }

    /// An object that may be missing.
    async fn find(
        &self,
        of: &Collection,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, KubeError> {
        match self
            .kube
            .get(&format!("{}/{name}", of.path(namespace)))
            .await
        {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// An object that may be missing, without which the answer still makes sense.
    async fn find_perhaps(&self, of: &Collection, namespace: &str, name: &str) -> Option<Value> {
        match self.find(of, namespace, name).await {
            Ok(object) => object,
            Err(error) => {
                self.miss(&of.plural, &error);
                None
            }
        }
    }

    async fn node_pools(&self) -> Result<Vec<Value>, ObserveError> {
        match self.list(&NODE_POOLS, Scope::default()).await {
            Err(error) if error.is_not_found() => Err(ObserveError::NoDefinition("nodepools")),
            other => Ok(other?),
        }
    }

    async fn leases(&self) -> Leases {
        let scope = Scope {
            namespace: NODE_LEASES,
            ..Scope::default()
        };
        let leases = self.perhaps(&LEASES, scope).await;
        leases
            .into_iter()
            .map(|lease| (node::name(&lease).to_owned(), lease))
            .collect()
    }

    async fn lease_of(&self, node: &str) -> Option<Value> {
        self.find_perhaps(&LEASES, NODE_LEASES, node).await
    }

    /// The workloads of sets, of all namespaces.
    async fn workloads(&self, scope: Scope<'_>) -> Vec<Value> {
        let mut all = Vec::new();
        for of in [DEPLOYMENTS, STATEFUL_SETS] {
            let items = self.perhaps(&of, scope).await;
            all.extend(items.into_iter().map(|item| kinded(item, &of)));
        }
        all
    }

    pub(crate) async fn status(&self, manager: &str) -> Result<StatusObserved, ObserveError> {
        let version = self.kube.get("/version").await?;
        let nodes = self.list(&NODES, Scope::default()).await?;
        let mut definitions = Vec::new();
        for definition in DEFINITIONS {
            let name = format!("{}.{}", definition.plural, definition.group);
            let found = self
                .find_perhaps(&yurt_controller::collections::CRDS, "", &name)
                .await;
            definitions.push((name, found));
        }
        let pools = match self.node_pools().await {
            Ok(pools) => pools,
            // The table of definitions says so.
            Err(ObserveError::NoDefinition(_)) => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut lease = None;
        for name in MANAGER_LEASES {
            if lease.is_none() {
                lease = self.find_perhaps(&LEASES, manager, name).await;
            }
        }
        let scope = Scope {
            namespace: manager,
            query: &format!("labelSelector={}", encoded(MANAGER)),
        };
        let webhooks = async |kind: &str, name: &str| {
            let path = format!("/apis/admissionregistration.k8s.io/v1/{kind}/{name}");
            match self.kube.get(&path).await {
                Ok(configuration) => configuration["webhooks"].as_array().map(Vec::len),
                Err(error) if error.is_not_found() => None,
                Err(error) => {
                    self.miss(kind, &error);
                    None
                }
            }
        };
        Ok(StatusObserved {
            version,
            definitions,
            manager_pods: self.perhaps(&PODS, scope).await,
            manager_lease: lease,
            mutating: webhooks("mutatingwebhookconfigurations", objects::MUTATING_WEBHOOKS).await,
            validating: webhooks(
                "validatingwebhookconfigurations",
                objects::VALIDATING_WEBHOOKS,
            )
            .await,
            pools: PoolsObserved {
                pools,
                nodes,
                leases: self.leases().await,
                unseen: Vec::new(),
            },
            requests: self.perhaps(&CSRS, Scope::default()).await,
            unseen: self.unseen(),
        })
    }

    pub(crate) async fn pools(&self) -> Result<PoolsObserved, ObserveError> {
        Ok(PoolsObserved {
            pools: self.node_pools().await?,
            nodes: self.list(&NODES, Scope::default()).await?,
            leases: self.leases().await,
            unseen: self.unseen(),
        })
    }

    pub(crate) async fn pool(&self, name: &str) -> Result<PoolObserved, ObserveError> {
        let Some(pool) = self.find(&NODE_POOLS, "", name).await? else {
            // A cluster without the definitions says so.
            self.node_pools().await?;
            return Err(ObserveError::NotFound {
                kind: "NodePool",
                name: name.to_owned(),
            });
        };
        let of = |key: &str| format!("labelSelector={}", encoded(&format!("{key}={name}")));
        let in_pool = |query| Scope {
            namespace: "",
            query,
        };
        Ok(PoolObserved {
            nodes: self.list(&NODES, in_pool(&of(labels::NODE_POOL))).await?,
            workloads: self.workloads(in_pool(&of(labels::WORKLOAD_POOL))).await,
            leases: self.leases().await,
            unseen: self.unseen(),
            pool,
        })
    }

    pub(crate) async fn app(
        &self,
        namespace: &str,
        name: &app::Name,
    ) -> Result<AppObserved, ObserveError> {
        let (kind, object) = self.app_object(namespace, name).await?;
        let of_pools = format!("labelSelector={}", encoded(labels::WORKLOAD_POOL));
        let within = |query| Scope { namespace, query };
        let sets = matches!(kind, app::Kind::YurtAppSet | app::Kind::YurtAppDaemon);
        let workloads = match sets {
            true => self.workloads(within(&of_pools)).await,
            false => Vec::new(),
        };
        let selector = match kind {
            app::Kind::YurtStaticSet => None,
            _ => app::selector(&object)
                .map(|selector| format!("labelSelector={}", encoded(&selector))),
        };
        let pods = within(selector.as_deref().unwrap_or_default());
        Ok(AppObserved {
            kind,
            workloads,
            pods: self.perhaps(&PODS, pods).await,
            pools: self.node_pools().await?,
            nodes: self.perhaps(&NODES, Scope::default()).await,
            leases: self.leases().await,
            unseen: self.unseen(),
            object,
        })
    }

    /// The app of a name: of the kind that is said, or the first that has it.
    async fn app_object(
        &self,
        namespace: &str,
        name: &app::Name,
    ) -> Result<(app::Kind, Value), ObserveError> {
        let kinds: Vec<app::Kind> = match name.kind {
            Some(kind) => vec![kind],
            None => app::KINDS.to_vec(),
        };
        for kind in kinds {
            let of = match kind {
                app::Kind::YurtAppSet => Collection::namespaced(APPS, "yurtappsets", "YurtAppSet"),
                app::Kind::YurtAppDaemon => {
                    Collection::namespaced(OLD_APPS, "yurtappdaemons", "YurtAppDaemon")
                }
                app::Kind::YurtStaticSet => {
                    Collection::namespaced(OLD_APPS, "yurtstaticsets", "YurtStaticSet")
                }
                app::Kind::DaemonSet => DAEMON_SETS,
            };
            if let Some(object) = self.find(&of, namespace, &name.name).await? {
                return Ok((kind, object));
            }
        }
        self.node_pools().await?;
        Err(ObserveError::NotFound {
            kind: name.kind.map_or(
                "YurtAppSet, YurtAppDaemon, YurtStaticSet or DaemonSet",
                app::Kind::name,
            ),
            name: format!("{} in namespace {namespace}", name.name),
        })
    }

    pub(crate) async fn why_node(&self, name: &str) -> Result<NodeObserved, ObserveError> {
        let node = self.find(&NODES, "", name).await?;
        let node = node.ok_or_else(|| ObserveError::NotFound {
            kind: "node",
            name: name.to_owned(),
        })?;
        let query = format!("fieldSelector=spec.nodeName%3D{name}");
        let on_it = Scope {
            namespace: "",
            query: &query,
        };
        Ok(NodeObserved {
            pool: self.pool_of(&node).await,
            lease: self.lease_of(name).await,
            pods: self.perhaps(&PODS, on_it).await,
            requests: self.perhaps(&CSRS, Scope::default()).await,
            unseen: self.unseen(),
            node,
        })
    }

    async fn pool_of(&self, node: &Value) -> Option<Value> {
        let pool = node::pool(node)?;
        self.find_perhaps(&NODE_POOLS, "", pool).await
    }

    pub(crate) async fn why_pod(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<PodObserved, ObserveError> {
        let pod = self.find(&PODS, namespace, name).await?;
        let pod = pod.ok_or_else(|| ObserveError::NotFound {
            kind: "pod",
            name: format!("{name} in namespace {namespace}"),
        })?;
        let node = match pod["spec"]["nodeName"]
            .as_str()
            .filter(|node| !node.is_empty())
        {
            Some(node) => self.find_perhaps(&NODES, "", node).await,
            None => None,
        };
        let lease = match &node {
            Some(node) => self.lease_of(node::name(node)).await,
            None => None,
        };
        let here = Scope {
            namespace,
            query: "",
        };
        let owners = self.owners(namespace, &pod).await;
        let daemons = owners
            .first()
            .is_some_and(|owner| owner["kind"] == *DAEMON_SETS.kind);
        let revisions = match daemons {
            true => self.perhaps(&CONTROLLER_REVISIONS, here).await,
            false => Vec::new(),
        };
        // Where it would go, for one that is nowhere.
        let nodes = match pod["spec"]["nodeName"].is_string() {
            true => Vec::new(),
            false => self.perhaps(&NODES, Scope::default()).await,
        };
        Ok(PodObserved {
            services: self.perhaps(&SERVICES, here).await,
            unseen: self.unseen(),
            owners,
            revisions,
            nodes,
            lease,
            node,
            pod,
        })
    }

    /// Who controls a pod, who controls that, and so on.
    async fn owners(&self, namespace: &str, pod: &Value) -> Vec<Value> {
        let known = [
            DEPLOYMENTS,
            REPLICA_SETS,
            STATEFUL_SETS,
            DAEMON_SETS,
            Collection::namespaced(APPS, "yurtappsets", "YurtAppSet"),
            Collection::namespaced(OLD_APPS, "yurtappdaemons", "YurtAppDaemon"),
        ];
        let mut owners: Vec<Value> = Vec::new();
        while owners.len() < 4 {
            let of = owners.last().unwrap_or(pod);
            let references = of["metadata"]["ownerReferences"]
                .as_array()
                .into_iter()
                .flatten();
            let mut controllers = references.filter(|reference| reference["controller"] == true);
            let Some(reference) = controllers.next().cloned() else {
                break;
            };
            let Some(collection) = known.iter().find(|known| reference["kind"] == *known.kind)
            else {
                break;
            };
            let name = reference["name"].as_str().unwrap_or_default();
            let Some(owner) = self.find_perhaps(collection, namespace, name).await else {
                break;
            };
            owners.push(kinded(owner, collection));
        }
        owners
    }
}

/// An item of a list does not say its kind.
fn kinded(mut object: Value, of: &Collection) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.insert("kind".to_owned(), of.kind.as_ref().into());
    }
    object
}

/// Text in a query.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// The annotation that says how a DaemonSet is upgraded.
pub(crate) fn strategy(set: &Value) -> Option<&str> {
    node::annotation(set, annotations::UPDATE_STRATEGY)
}
