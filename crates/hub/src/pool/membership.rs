//! Which nodes the pool has, as the NodePool says (`status.nodes`) or, with `--enable-pool-service-topology`, its NodeBuckets;
//! followed through the hub's own pipeline, so that it is known offline as well.

use super::rank::MOST_CANDIDATES;
use crate::{
    follow::{Objects, follow},
    identity::Refusal,
    proxy::Hub,
};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use serde_json::Value;
use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};
use tokio::sync::watch;
use yurt_wire::{Object, request::encode_query_value};

/// Nodes of a pool that are known; more are not let in.
const MOST_NODES: usize = 16 << 10;
/// The label of NodeBuckets that names their pool.
const BUCKET_LABEL: &str = "openyurt.io/pool-name";
const GROUP: &str = "/apis/apps.openyurt.io";
/// Versions of the API, the best first.
const VERSIONS: [&str; 3] = ["v1beta2", "v1beta1", "v1alpha1"];
/// Between attempts to learn which versions are served.
const RETRY: Duration = Duration::from_secs(30);
const WAIT: Duration = Duration::from_secs(30);
const MOST_BYTES: usize = 1 << 20;

/// Who is in this node's pool. The default is what holds while nothing is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The pool's name.
    pub pool: Option<String>,
    /// Its nodes.
    pub nodes: Option<BTreeSet<Box<str>>>,
    /// The leaders that the cloud elected (`status.leaderEndpoints`), with their addresses.
    pub leaders: Vec<(String, IpAddr)>,
    /// Whether there are to be leaders (`spec.enableLeaderElection`).
    pub leader_election: bool,
    /// Whether the pool wants its pods on the network of their node (`spec.hostNetwork`); NodeBuckets do not tell.
    pub host_network: bool,
}

impl Membership {
    /// Whether a node is in the pool.
    pub(crate) fn admits(&self, node: &str) -> Result<(), Refusal> {
        let (Some(pool), Some(nodes)) = (&self.pool, &self.nodes) else {
            return Err(Refusal::PoolUnknown);
        };
        if nodes.contains(node) {
            return Ok(());
        }
        Err(Refusal::OtherPool {
            node: node.to_owned(),
            pool: pool.clone(),
        })
    }
}

/// Follows who is in the pool that the settings name, until shutdown.
pub(crate) async fn follow_members(
    hub: Arc<Hub>,
    buckets: bool,
    members: watch::Sender<Membership>,
) {
    let mut settings = hub.settings.clone();
    loop {
        let pool = settings.borrow_and_update().pool.clone();
        members.send_replace(Membership {
            pool: (!pool.is_empty()).then(|| pool.clone()),
            ..Membership::default()
        });
        let follow = async {
            if pool.is_empty() {
                std::future::pending().await
            } else {
                follow_pool(&hub, &pool, buckets, &members).await
            }
        };
        let another = async {
            let named = settings.wait_for(|settings| settings.pool != pool);
            // Otherwise the settings are as they will be.
            if named.await.is_err() {
                std::future::pending().await
            }
        };
        tokio::select! {
            () = hub.shutdown.cancelled() => return,
            () = another => {}
            () = follow => {}
        }
    }
}

fn name_selector(name: &str) -> String {
    encode_query_value(&format!("metadata.name={name}"))
}

async fn follow_pool(
    hub: &Arc<Hub>,
    pool: &str,
    buckets: bool,
    members: &watch::Sender<Membership>,
) {
    let (resource, selector) = if buckets {
        let label = encode_query_value(&format!("{BUCKET_LABEL}={pool}"));
        ("nodebuckets", format!("labelSelector={label}"))
    } else {
        (
            "nodepools",
            format!("fieldSelector={}", name_selector(pool)),
        )
    };
    let mut modes = hub.modes();
    let version = loop {
        modes.mark_unchanged();
        // NodeBuckets never had another version.
        if let Some(version) = served(hub).await {
            break if buckets { "v1alpha1" } else { version };
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            _ = modes.changed() => {}
        }
    };
    let mut objects = follow(hub, &format!("{GROUP}/{version}/{resource}"), &selector);
    loop {
        let told = {
            let objects = objects.borrow_and_update();
            let (leaders, leader_election) = objects.as_ref().map(leaders_of).unwrap_or_default();
            Membership {
                pool: Some(pool.to_owned()),
                nodes: objects.as_ref().and_then(nodes_of),
                leaders,
                leader_election,
                host_network: objects.as_ref().is_some_and(host_network_of),
            }
        };
        members.send_if_modified(|known| {
            let changed = *known != told;
            *known = told;
            changed
        });
        if objects.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// The best version of the API that the cloud serves, or served when it was last asked.
async fn served(hub: &Arc<Hub>) -> Option<&'static str> {
    let mut request = Request::new(Bytes::new());
    *request.uri_mut() = http::Uri::from_static(GROUP);
    for (name, value) in [
        (header::ACCEPT, "application/json"),
        (header::USER_AGENT, crate::USER_AGENT),
    ] {
        request
            .headers_mut()
            .insert(name, http::HeaderValue::from_static(value));
    }
    let response = tokio::time::timeout(WAIT, hub.own(request)).await.ok()?;
    if response.status() != StatusCode::OK {
        return None;
    }
    let body = yurt_transport::collect(response.into_body(), MOST_BYTES);
    let body = tokio::time::timeout(WAIT, body).await.ok()?.ok()?;
    best_version(&serde_json::from_slice(&body).ok()?)
}

fn best_version(group: &Value) -> Option<&'static str> {
    let served: Vec<&str> = group
        .get("versions")?
        .as_array()?
        .iter()
        .filter_map(|version| version.get("version")?.as_str())
        .collect();
    VERSIONS
        .into_iter()
        .find(|version| served.contains(version))
}

/// The nodes that NodePools (`status.nodes: [NAME]`) or NodeBuckets (`nodes: [{name: NAME}]`) list; `None` when there are none of them.
fn nodes_of(objects: &Objects) -> Option<BTreeSet<Box<str>>> {
    let lists: Vec<Value> = objects.values().filter_map(list_of).collect();
    if lists.is_empty() {
        return None;
    }
    let nodes = lists
        .iter()
        .filter_map(Value::as_array)
        .flatten()
        .filter_map(|node| node.as_str().or_else(|| node.get("name")?.as_str()))
        .take(MOST_NODES)
        .map(Into::into)
        .collect();
    Some(nodes)
}

/// The leaders that a NodePool tells of (`status.leaderEndpoints: [{nodeName, address}]`), and whether there are to be any.
fn leaders_of(objects: &Objects) -> (Vec<(String, IpAddr)>, bool) {
    let Some(pool) = objects.values().find_map(|pool| pool.to_json_value().ok()) else {
        return Default::default();
    };
    let endpoints = pool.pointer("/status/leaderEndpoints");
    let leaders = endpoints
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|endpoint| {
            let node = endpoint
                .get("nodeName")?
                .as_str()
                .filter(|n| !n.is_empty())?;
            let address = endpoint.get("address")?.as_str()?.parse().ok()?;
            Some((node.to_owned(), address))
        })
        .take(MOST_CANDIDATES)
        .collect();
    let elects = pool.pointer("/spec/enableLeaderElection");
    (leaders, elects.and_then(Value::as_bool).unwrap_or_default())
}

fn host_network_of(objects: &Objects) -> bool {
    let wants = |object: &Object| object.field("spec.hostNetwork").as_deref() == Some("true");
    objects.values().any(wants)
}

fn list_of(object: &Object) -> Option<Value> {
    let mut object = object.to_json_value().ok()?;
    let kind = object
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let list = if kind == "NodeBucket" {
        object.get_mut("nodes")
    } else {
        object.pointer_mut("/status/nodes")
    };
    Some(list.map(Value::take).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use yurt_wire::Encoding;

    fn objects(values: &[Value]) -> Objects {
        let named = values.iter().enumerate().map(|(index, value)| {
            let object = Object::from_json_value(value, Encoding::Json).unwrap();
            (format!("/{index}").into(), object)
        });
        Arc::new(named.collect())
    }

    fn nodes(values: &[Value]) -> Option<Vec<String>> {
        let nodes = nodes_of(&objects(values))?;
        Some(nodes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn pools_and_buckets_name_their_nodes() {
        let pool = |nodes: Value| json!({"apiVersion": "apps.openyurt.io/v1beta2", "kind": "NodePool", "metadata": {"name": "a"}, "status": {"nodes": nodes}});
        assert_eq!(nodes(&[pool(json!(["x", "y", 7]))]).unwrap(), ["x", "y"]);
        assert_eq!(nodes(&[pool(Value::Null)]).unwrap(), [""; 0]);
        let new = json!({"kind": "NodePool", "metadata": {"name": "a"}});
        assert_eq!(nodes(&[new]).unwrap(), [""; 0]);
        let bucket = |names: Value| json!({"apiVersion": "apps.openyurt.io/v1alpha1", "kind": "NodeBucket", "metadata": {"name": "a-1"}, "nodes": names});
        let both = [
            bucket(json!([{"name": "x"}])),
            bucket(json!([{"name": "y"}, {}])),
        ];
        assert_eq!(nodes(&both).unwrap(), ["x", "y"]);
        assert_eq!(nodes(&[]), None);
    }

    #[test]
    fn pools_name_their_leaders() {
        let told = json!({"apiVersion": "apps.openyurt.io/v1beta2", "kind": "NodePool", "metadata": {"name": "a"},
            "spec": {"enableLeaderElection": true},
            "status": {"leaderEndpoints": [{"nodeName": "y", "address": "10.0.0.2"}, {"nodeName": "", "address": "10.0.0.3"},
                {"nodeName": "x", "address": "10.0.0.1"}, {"nodeName": "z", "address": "here"}, 7]}});
        let (leaders, elects) = leaders_of(&objects(&[told]));
        let named: Vec<&str> = leaders.iter().map(|(node, _)| node.as_str()).collect();
        assert_eq!(named, ["y", "x"]);
        assert!(elects);
        assert_eq!(leaders_of(&objects(&[])), (vec![], false));
    }

    #[test]
    fn the_best_version_is_taken() {
        let group = |versions: &[&str]| {
            let versions: Vec<Value> = versions.iter().map(|v| json!({"version": v})).collect();
            best_version(&json!({"kind": "APIGroup", "versions": versions}))
        };
        assert_eq!(group(&["v1alpha1", "v1beta2", "v1beta1"]), Some("v1beta2"));
        assert_eq!(group(&["v1alpha1"]), Some("v1alpha1"));
        assert_eq!(group(&["v9"]), None);
        assert_eq!(best_version(&json!({})), None);
    }

    #[test]
    fn only_members_are_admitted() {
        let membership = Membership {
            pool: Some("here".into()),
            nodes: Some(["a".into()].into()),
            ..Membership::default()
        };
        assert!(membership.admits("a").is_ok());
        let Err(refusal) = membership.admits("b") else {
            panic!("admitted")
        };
        assert_eq!(
            refusal.to_string(),
            r#"node "b" is not in this node's pool "here""#
        );
        assert!(matches!(
            Membership::default().admits("a"),
            Err(Refusal::PoolUnknown)
        ));
    }
}
