//! What is to be applied to a cluster for the manager, for hubs and for the tunnel, made of what the code declares: `yurt manifests` prints it,
//! `deploy/manager`, `deploy/tunnel` and the charts in `deploy/charts` ship it.
//!
//! `access` makes RBAC of the rules that controllers declare and of the collections that they read; `chart` makes templates of the
//! same objects.

mod access;
mod chart;
mod hub;
mod tunnel;

pub use chart::{Chart, Template};
pub use tunnel::Tunnel;

use serde_json::{Value, json};
use yurt_api::{
    crd::{self, Conversion, WebhookClient},
    names::objects::{MANAGER, MANAGER_NAMESPACE, WEBHOOK_CERTIFICATES, WEBHOOK_SERVICE},
};

/// What manifests are made of: values, or for the chart expressions that stand for them.
#[derive(Clone, Debug)]
pub struct Values {
    /// Where everything is.
    pub namespace: String,
    /// The name of the Deployment.
    pub name: String,
    /// The release: with the name, what selects the pods.
    pub instance: String,
    /// The image of the manager.
    pub image: String,
    /// Secrets to pull it with.
    pub pull_secrets: Value,
    /// How many managers stand by for each other.
    pub replicas: Value,
    /// Ports of metrics, health probes and webhooks.
    pub ports: [Value; 3],
    /// klog's verbosity.
    pub verbosity: Value,
    /// `--controllers`.
    pub controllers: String,
    /// `--disable-independent-webhooks`.
    pub disabled_webhooks: String,
    /// The name of the lease.
    pub lease: String,
    /// The image of what runs on nodes.
    pub node_servant_image: String,
    /// Agents that hubs cache beside the usual ones.
    pub cache_agents: String,
    /// What else the manager is told; an expression that stands for a list in the chart.
    pub extra_args: Vec<String>,
    /// Of the container.
    pub resources: Value,
    /// Of the pods.
    pub affinity: Value,
    /// The tunnel's.
    pub tunnel: Tunnel,
}

impl Default for Values {
    fn default() -> Self {
        let control_plane = json!([{"matchExpressions":
            [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]}]);
        Self {
            namespace: MANAGER_NAMESPACE.into(),
            name: MANAGER.into(),
            instance: MANAGER.into(),
            image: format!("openyurt/yurt-manager:v{}", env!("CARGO_PKG_VERSION")),
            pull_secrets: json!([]),
            replicas: 1.into(),
            ports: [10271, 10272, 10273].map(Value::from),
            verbosity: 4.into(),
            controllers: "-nodelifecycle,*".into(),
            disabled_webhooks: String::new(),
            lease: "cloud-yurt-manager".into(),
            node_servant_image: "openyurt/node-servant:latest".into(),
            cache_agents: String::new(),
            extra_args: Vec::new(),
            resources: json!({"requests": {"cpu": "100m", "memory": "256Mi"},
                "limits": {"cpu": "2000m", "memory": "1024Mi"}}),
            affinity: json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": control_plane}}}),
            tunnel: Tunnel::default(),
        }
    }
}

impl Values {
    fn labels(&self) -> Value {
        json!({"app.kubernetes.io/name": self.name, "app.kubernetes.io/instance": self.instance})
    }

    fn metadata(&self, name: &str) -> Value {
        json!({"name": name, "namespace": self.namespace, "labels": self.labels()})
    }
}

/// A part of what is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// The custom resources.
    Crds,
    /// The manager, what it and its controllers may do.
    Manager,
    /// What hubs are told and may do.
    Hub,
    /// The tunnel: server, agents, and what they may do. Only where it is asked for: it opens a port to the outside.
    Tunnel,
}

impl Component {
    /// All, in the order in which they are applied.
    pub const ALL: [Self; 4] = [Self::Crds, Self::Manager, Self::Hub, Self::Tunnel];
    /// Those that every cluster needs.
    pub const USUAL: [Self; 3] = [Self::Crds, Self::Manager, Self::Hub];

    /// Its name, in commands and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crds => "crds",
            Self::Manager => "manager",
            Self::Hub => "hub",
            Self::Tunnel => "tunnel",
        }
    }

    /// Its objects, in the order in which they are applied. Within a tokio runtime.
    pub fn objects(self, values: &Values) -> Vec<Value> {
        match self {
            Self::Crds => crds(&values.namespace),
            Self::Manager => manager(values),
            Self::Hub => hub::objects(values),
            Self::Tunnel => tunnel::objects(values),
        }
    }
}

/// Objects as a YAML stream.
pub fn yaml(objects: &[Value]) -> Result<String, serde_saphyr::ser::Error> {
    let documents = objects.iter().map(|object| {
        let text = serde_saphyr::to_string(object)?;
        Ok(format!("---\n{text}"))
    });
    documents.collect()
}

fn crds(namespace: &str) -> Vec<Value> {
    let conversion = Conversion::Webhook(WebhookClient {
        namespace: namespace.into(),
        service: WEBHOOK_SERVICE.into(),
        ca_bundle: None,
    });
    let definitions = crd::DEFINITIONS.iter();
    definitions
        .map(|definition| definition.render(&conversion))
        .collect()
}

fn manager(values: &Values) -> Vec<Value> {
    let mut objects = access::objects(values);
    objects.extend([certificates(values), service(values), deployment(values)]);
    objects
}

/// Empty; the manager fills it. It is made here so that the manager needs not create Secrets.
fn certificates(values: &Values) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": values.metadata(WEBHOOK_CERTIFICATES)})
}

fn service(values: &Values) -> Value {
    let [metrics, _, webhook] = &values.ports;
    json!({"apiVersion": "v1", "kind": "Service", "metadata": values.metadata(WEBHOOK_SERVICE),
        "spec": {"selector": values.labels(), "ports": [
            {"name": "https", "port": 443, "protocol": "TCP", "targetPort": webhook},
            {"name": "metrics", "port": metrics, "protocol": "TCP", "targetPort": metrics}]}})
}

/// A value within an argument.
fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn deployment(values: &Values) -> Value {
    let [metrics, health, webhook] = &values.ports;
    let mut args = vec![
        format!("--metrics-addr=:{}", plain(metrics)),
        format!("--health-probe-addr=:{}", plain(health)),
        format!("--webhook-port={}", plain(webhook)),
        format!("--v={}", plain(&values.verbosity)),
        format!("--working-namespace={}", values.namespace),
        format!("--leader-elect-resource-name={}", values.lease),
        format!("--node-servant-image={}", values.node_servant_image),
        format!("--controllers={}", values.controllers),
        format!(
            "--disable-independent-webhooks={}",
            values.disabled_webhooks
        ),
    ];
    args.extend(values.extra_args.iter().cloned());
    let port =
        |name: &str, port: &Value| json!({"name": name, "containerPort": port, "protocol": "TCP"});
    let probe = |path: &str, failures: u32| json!({"httpGet": {"path": path, "port": "health"}, "periodSeconds": 10, "failureThreshold": failures});
    let container = json!({
        "name": MANAGER,
        "image": values.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/usr/local/bin/yurt", "manager"],
        "args": args,
        "ports": [port("webhook-server", webhook), port("metrics", metrics), port("health", health)],
        "livenessProbe": probe("/healthz", 6),
        "readinessProbe": probe("/readyz", 1),
        "resources": values.resources,
        "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]}},
    });
    let tolerated = [
        "node-role.kubernetes.io/control-plane",
        "node-role.kubernetes.io/master",
    ];
    let tolerations =
        tolerated.map(|key| json!({"key": key, "operator": "Exists", "effect": "NoSchedule"}));
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": values.metadata(&values.name),
        "spec": {
            "replicas": values.replicas,
            "selector": {"matchLabels": values.labels()},
            // The old one leads until the new one is ready to.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": values.labels()},
                "spec": {
                    "serviceAccountName": MANAGER,
                    "priorityClassName": "system-cluster-critical",
                    "imagePullSecrets": values.pull_secrets,
                    "tolerations": tolerations,
                    "affinity": values.affinity,
                    "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
                        "seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [container],
                },
            },
        },
    })
}

#[cfg(test)]
mod tests;
