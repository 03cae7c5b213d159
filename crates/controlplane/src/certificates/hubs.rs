//! `csrapprover` (OpenYurt's name): client and serving certificates of hubs.
//!
//! OpenYurt's controller compares shapes only, so that whoever may create requests becomes any node, and a server under any name.
//! Here who asks must be entitled: to a client certificate a bootstrap token or the node itself, to a serving certificate the node
//! itself, for names and addresses that are the node's.

use super::{is_open, parse, rules, usages, with_condition};
use crate::{Context, Controller, Failure, Key, Next, Watch, collections::CSRS};
use jiff::Timestamp;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};
use yurt_controller::kube::KubeError;
use yurt_pki::SigningRequest;

const HUBS: &str = "openyurt:yurthub";
const NODES: &str = "system:nodes";
const TENANT: &str = "openyurt:tenant:";
const BOOTSTRAPPERS: &str = "system:bootstrappers";
const USER: &str = "system:node:";
/// Names of the API server, in whose place hubs answer pods.
const SERVICE_NAMES: [&str; 4] = [
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];
/// The default address of the dummy interface in IPv6.
const DUMMY: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 2, 1);

/// When it is looked again whether the node has the addresses by now: hubs ask before their kubelets register them.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Which certificate of a hub is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Client,
    Serving,
}

impl Shape {
    fn message(self) -> &'static str {
        match self {
            Self::Client => "Auto approving yurthub node client certificate",
            Self::Serving => "Auto approving openyurt tls server certificate",
        }
    }
}

/// The controller.
#[derive(Debug, Default)]
pub(crate) struct HubApproving;

impl Controller for HubApproving {
    const NAME: &'static str = "csrapprover";

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        vec![Watch::own(CSRS)]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(csr) = context.objects(&CSRS).get(key) else {
            return Ok(Next::Done);
        };
        if !is_open(&csr) {
            return Ok(Next::Done);
        }
        let Some(request) = parse(&csr) else {
            return Ok(Next::Done);
        };
        let signer = csr["spec"]["signerName"].as_str().unwrap_or_default();
        let Some(shape) = shape(signer, &request, &usages(&csr)) else {
            return Ok(Next::Done);
        };
        let decide = async |kind: &str, reason: &str, message: &str| {
            let patch = with_condition(&csr, kind, reason, message, Timestamp::now());
            context.merge(&CSRS, key, "approval", &patch).await?;
            Ok(Next::Done)
        };
        if let Err(why) = entitled(shape, &csr["spec"], &request) {
            return decide("Denied", "NotEntitled", &why).await;
        }
        if shape == Shape::Serving {
            let get = async |path: String| match context.kube().get(&path).await {
                Ok(object) => Ok(object),
                Err(error) if error.code() == Some(404) => Ok(Value::Null),
                Err(error) => Err::<Value, KubeError>(error),
            };
            let name = request.subject.user.strip_prefix(USER).unwrap_or_default();
            let node = get(format!("/api/v1/nodes/{name}")).await?;
            let service = get("/api/v1/namespaces/default/services/kubernetes".into()).await?;
            if let Some(foreign) = foreign_name(&request, name, &node, &service) {
                tracing::debug!(
                    controller = Self::NAME,
                    csr = key.name,
                    foreign,
                    "not the node's"
                );
                return Ok(Next::After(LOOK_AGAIN));
            }
        }
        decide("Approved", "AutoApproved", shape.message()).await
    }
}

/// Which certificate of a hub this is, if any.
fn shape(signer: &str, request: &SigningRequest, usages: &[&str]) -> Option<Shape> {
    let are = |last| {
        let all = BTreeSet::from(["digital signature", "key encipherment", last]);
        usages.iter().copied().collect::<BTreeSet<_>>() == all
    };
    let subject = &request.subject;
    let named = !request.dns.is_empty() || !request.ips.is_empty();
    let otherwise_named = !request.emails.is_empty() || !request.uris.is_empty();
    if subject.user.len() <= USER.len() || !subject.user.starts_with(USER) || otherwise_named {
        return None;
    }
    let hubs = |group: &String| group == HUBS || group == NODES || group.starts_with(TENANT);
    match signer {
        rules::CLIENT
            if !named
                && subject.groups.len() >= 2
                && subject.groups.iter().all(hubs)
                && are("client auth") =>
        {
            Some(Shape::Client)
        }
        rules::KUBELET_SERVING if named && subject.groups == [NODES] && are("server auth") => {
            Some(Shape::Serving)
        }
        _ => None,
    }
}

/// Whether who asks may have it; otherwise why not.
fn entitled(shape: Shape, spec: &Value, request: &SigningRequest) -> Result<(), String> {
    let who = spec["username"].as_str().unwrap_or_default();
    let groups: Vec<&str> = spec["groups"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let itself = who == request.subject.user;
    let node = &request.subject.user;
    if shape == Shape::Serving {
        return match itself {
            true => Ok(()),
            false => Err(format!("only {node} itself may ask for it, not {who}")),
        };
    }
    if groups.contains(&BOOTSTRAPPERS) {
        return Ok(());
    }
    if !itself {
        return Err(format!(
            "only {node} itself or a bootstrap token may ask for it, not {who}"
        ));
    }
    // A node stays of the tenant it is of.
    let mut wanted = request.subject.groups.iter();
    match wanted.find(|g| g.starts_with(TENANT) && !groups.contains(&g.as_str())) {
        Some(tenant) => Err(format!("{who} is not of {tenant}")),
        None => Ok(()),
    }
}

/// A name or address of the request that is not the node's.
fn foreign_name(
    request: &SigningRequest,
    name: &str,
    node: &Value,
    service: &Value,
) -> Option<String> {
    let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
    let of_node: Vec<&str> = addresses.filter_map(|a| a["address"].as_str()).collect();
    let several = service["spec"]["clusterIPs"]
        .as_array()
        .into_iter()
        .flatten();
    let of_service: Vec<&str> = several
        .chain([&service["spec"]["clusterIP"]])
        .filter_map(Value::as_str)
        .collect();
    let is_own = |ip: &IpAddr| {
        let local = match ip {
            IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_loopback() || *v6 == DUMMY,
        };
        let mut known = of_node.iter().chain(&of_service);
        local || known.any(|text| text.parse() == Ok(*ip))
    };
    let mut dns = request.dns.iter();
    let foreign = dns.find(|dns| {
        !SERVICE_NAMES.contains(&dns.as_str()) && *dns != name && !of_node.contains(&dns.as_str())
    });
    foreign.cloned().or_else(|| {
        request
            .ips
            .iter()
            .find(|ip| !is_own(ip))
            .map(IpAddr::to_string)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use yurt_pki::{Profile, request};

    const CLIENT: [&str; 3] = ["client auth", "digital signature", "key encipherment"];
    const SERVING: [&str; 3] = ["digital signature", "key encipherment", "server auth"];

    fn asked(user: &str, groups: &[&str], dns: &[&str], ips: &[&str]) -> SigningRequest {
        let profile = Profile {
            common_name: user.into(),
            organizations: groups.iter().map(|g| (*g).into()).collect(),
            dns: dns.iter().map(|d| (*d).into()).collect(),
            ips: ips
                .iter()
                .map(|ip| ip.parse().expect("an address"))
                .collect(),
            ..Profile::default()
        };
        SigningRequest::from_pem(&request(&profile).expect("made").request).expect("read")
    }

    #[test]
    fn shapes_are_openyurts() {
        let client = |groups: &[&str], usages: &[&str]| {
            shape(
                rules::CLIENT,
                &asked("system:node:a", groups, &[], &[]),
                usages,
            )
        };
        assert_eq!(client(&[HUBS, NODES], &CLIENT), Some(Shape::Client));
        let tenant = [HUBS, NODES, "openyurt:tenant:x"];
        assert_eq!(client(&tenant, &CLIENT), Some(Shape::Client));
        assert_eq!(client(&[NODES], &CLIENT), None);
        assert_eq!(client(&[HUBS, "system:masters"], &CLIENT), None);
        assert_eq!(client(&[HUBS, NODES], &CLIENT[..2]), None);
        assert_eq!(client(&[HUBS, NODES], &SERVING), None);
        let user = |user| {
            shape(
                rules::CLIENT,
                &asked(user, &[HUBS, NODES], &[], &[]),
                &CLIENT,
            )
        };
        assert_eq!(user("admin"), None);
        assert_eq!(user("system:node:"), None);
        let serving = |dns: &[&str], groups: &[&str]| {
            let request = asked("system:node:a", groups, dns, &[]);
            shape(rules::KUBELET_SERVING, &request, &SERVING)
        };
        assert_eq!(serving(&["kubernetes"], &[NODES]), Some(Shape::Serving));
        assert_eq!(serving(&[], &[NODES]), None);
        assert_eq!(serving(&["kubernetes"], &[HUBS, NODES]), None);
    }

    #[test]
    fn who_asks_must_be_entitled() {
        let hub = asked("system:node:a", &[HUBS, NODES], &[], &[]);
        let by = |shape, user: &str, groups: &[&str], request: &SigningRequest| {
            entitled(shape, &json!({"username": user, "groups": groups}), request)
        };
        let token = ["system:bootstrappers", "system:authenticated"];
        assert_eq!(
            by(Shape::Client, "system:bootstrap:abcdef", &token, &hub),
            Ok(())
        );
        assert_eq!(by(Shape::Client, "system:node:a", &[NODES], &hub), Ok(()));
        assert!(by(Shape::Client, "system:node:b", &[NODES], &hub).is_err());
        assert!(by(Shape::Client, "jane", &["system:authenticated"], &hub).is_err());
        assert!(by(Shape::Serving, "system:bootstrap:abcdef", &token, &hub).is_err());
        assert_eq!(by(Shape::Serving, "system:node:a", &[NODES], &hub), Ok(()));
        let tenant = asked(
            "system:node:a",
            &[HUBS, NODES, "openyurt:tenant:x"],
            &[],
            &[],
        );
        assert!(by(Shape::Client, "system:node:a", &[NODES], &tenant).is_err());
        let of_it = [NODES, "openyurt:tenant:x"];
        assert_eq!(by(Shape::Client, "system:node:a", &of_it, &tenant), Ok(()));
        assert_eq!(
            by(Shape::Client, "system:bootstrap:abcdef", &token, &tenant),
            Ok(())
        );
    }

    #[test]
    fn names_must_be_the_nodes() {
        let node = json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.7"},
            {"type": "Hostname", "address": "a.example"}]}});
        let service = json!({"spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"]}});
        let foreign = |dns: &[&str], ips: &[&str], node: &Value| {
            let request = asked("system:node:a", &[NODES], dns, ips);
            foreign_name(&request, "a", node, &service)
        };
        let dns = [
            "kubernetes",
            "kubernetes.default.svc.cluster.local",
            "a",
            "a.example",
        ];
        let ips = [
            "10.96.0.1",
            "169.254.2.1",
            "127.0.0.1",
            "10.0.0.7",
            "::1",
            "fd00::2:1",
        ];
        assert_eq!(foreign(&dns, &ips, &node), None);
        assert_eq!(foreign(&["b"], &[], &node).as_deref(), Some("b"));
        assert_eq!(
            foreign(&[], &["10.0.0.8"], &node).as_deref(),
            Some("10.0.0.8")
        );
        // The kubelet has not registered yet.
        assert_eq!(
            foreign(&dns[..3], &ips, &Value::Null).as_deref(),
            Some("10.0.0.7")
        );
    }
}
