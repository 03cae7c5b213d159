//! Finds what a request names among the stored objects, and where that is.

use super::{
    location::{self, Id},
    options::LogOptions,
};
use crate::{
    config::Kubelets,
    registry::{Registry, Reply},
};
use serde_json::Value;
use yurt_transport::Destination;
use yurt_wire::Status;

/// What a backend must prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    /// Nothing, in plain text.
    Plain,
    /// To be a kubelet.
    Kubelet,
    /// Nothing, though the server shows it who it is.
    AnyKubelet,
    /// Nothing, and nothing is shown to it.
    AnyPod,
}

/// Where a request goes.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) channel: Channel,
    pub(super) to: Destination,
    /// Encoded path; may be empty for proxies.
    pub(super) path: String,
    /// Without the question mark.
    pub(super) query: String,
}

impl Backend {
    pub(super) fn scheme(&self) -> &'static str {
        match self.channel {
            Channel::Plain => "http",
            _ => "https",
        }
    }

    pub(super) fn target(&self) -> String {
        let path = if self.path.is_empty() {
            "/"
        } else {
            &self.path
        };
        match self.query.is_empty() {
            true => path.to_owned(),
            false => format!("{path}?{}", self.query),
        }
    }
}

/// Finds what a request names among the stored objects.
pub(super) struct Lookup<'a> {
    pub(super) registry: &'a Registry,
    pub(super) settings: &'a Kubelets,
    pub(super) namespace: &'a str,
}

impl Lookup<'_> {
    fn find(&self, resource: &str, namespace: &str, name: &str) -> Reply<Value> {
        let partition = format!("/{resource}").into();
        let key = crate::storage::Key::new(namespace, name);
        let found = self.registry.storage.get(&partition, &key);
        found
            .map(|stored| stored.value())
            .ok_or_else(|| Box::new(Status::not_found("", resource, name)))
    }

    fn pod(&self, name: &str) -> Reply<Value> {
        self.find("pods", self.namespace, name)
    }

    /// The kubelet of a node.
    fn kubelet(&self, node: &str) -> Reply<Backend> {
        let object = self.find("nodes", "", node)?;
        let (host, port) = location::kubelet(&object, &self.settings.preferred_addresses)?;
        Ok(Backend {
            channel: Channel::Kubelet,
            to: Destination {
                node: Some(node.to_owned()),
                host,
                port,
            },
            path: String::new(),
            query: String::new(),
        })
    }

    /// `None`: the pod is on no node, so that there are no logs.
    pub(super) fn log(&self, name: &str, options: &LogOptions) -> Reply<Option<Backend>> {
        let pod = self.pod(name)?;
        let container = location::container(&pod, &options.container)?;
        let Some(node) = location::node_of(&pod) else {
            return Ok(None);
        };
        let mut backend = self.kubelet(node)?;
        backend.path = format!("/containerLogs/{}/{name}/{container}", self.namespace);
        backend.query = options.query();
        if options.insecure_backend {
            backend.channel = Channel::AnyKubelet;
        }
        Ok(Some(backend))
    }

    pub(super) fn container(&self, name: &str, container: &str, verb: &str) -> Reply<Backend> {
        let pod = self.pod(name)?;
        let container = location::container(&pod, container)?;
        let node = location::node_of(&pod).ok_or_else(|| location::no_host(name))?;
        let path = format!("/{verb}/{}/{name}/{container}", self.namespace);
        Ok(Backend {
            path,
            ..self.kubelet(node)?
        })
    }

    pub(super) fn port_forward(&self, name: &str) -> Reply<Backend> {
        let pod = self.pod(name)?;
        let node = location::node_of(&pod).ok_or_else(|| location::no_host(name))?;
        let path = format!("/portForward/{}/{name}", self.namespace);
        Ok(Backend {
            path,
            ..self.kubelet(node)?
        })
    }

    pub(super) fn node_proxy(&self, id: &str) -> Reply<Backend> {
        let id = Id::parse(id, "node")?;
        let mut backend = self.kubelet(id.name)?;
        if id.port.is_empty() || id.port == backend.to.port.to_string() {
            return Ok(backend);
        }
        if !location::is_proxyable(&backend.to.host) {
            return Err(location::not_allowed());
        }
        backend.to.port = location::port_number(id.port)?;
        backend.channel = pod_channel(&id);
        Ok(backend)
    }

    pub(super) fn pod_proxy(&self, id: &str) -> Reply<Backend> {
        let id = Id::parse(id, "pod")?;
        let pod = self.pod(id.name)?;
        let (host, port) = location::pod(&pod, &id)?;
        Ok(Backend {
            channel: pod_channel(&id),
            to: Destination {
                node: location::node_of(&pod).map(str::to_owned),
                host: host.to_owned(),
                port,
            },
            path: String::new(),
            query: String::new(),
        })
    }

    pub(super) fn service_proxy(&self, id: &str) -> Reply<Backend> {
        let id = Id::parse(id, "service")?;
        let service = self.find("services", self.namespace, id.name)?;
        let port = location::service_port(&service, &id)?;
        let partition = "discovery.k8s.io/endpointslices".into();
        let (slices, _) = self.registry.storage.list(&partition, self.namespace, None);
        let slices: Vec<Value> = slices
            .iter()
            .filter(|slice| {
                let mut labels = slice.labels.iter();
                labels.any(|(k, v)| k == "kubernetes.io/service-name" && v == id.name)
            })
            .map(|slice| slice.value())
            .collect();
        let mut candidates = location::endpoints(&service, &slices, port);
        fastrand::shuffle(&mut candidates);
        let usable = |endpoint: &location::Endpoint| {
            location::is_proxyable(&endpoint.address)
                && self
                    .pod(&endpoint.pod)
                    .is_ok_and(|pod| location::has_address(&pod, &endpoint.address))
        };
        let Some(endpoint) = candidates.into_iter().find(usable) else {
            let name = Value::from(id.name);
            return Err(Box::new(Status::service_unavailable(format!(
                "no endpoints available for service {name}"
            ))));
        };
        Ok(Backend {
            channel: pod_channel(&id),
            to: Destination {
                node: endpoint.node,
                host: endpoint.address,
                port: endpoint.port,
            },
            path: String::new(),
            query: String::new(),
        })
    }
}

fn pod_channel(id: &Id<'_>) -> Channel {
    if id.https {
        Channel::AnyPod
    } else {
        Channel::Plain
    }
}
