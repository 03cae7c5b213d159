//! What the clients of the bench send. Bodies are made once; each request gets a number of its own written into them.

use super::super::{
    BenchError, dataset,
    load::{self, Target, call},
};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use std::fmt;
use yurt_wire::{Encoding, Object};

/// Stands for a request's number in a body or path.
const NUMBER: &str = "00000000";

/// How lists are asked for.
pub(super) const LISTS: [(&str, &str); 3] = [
    ("JSON", "application/json"),
    ("protobuf", "application/vnd.kubernetes.protobuf"),
    (
        "Table",
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
    ),
];

/// What an encoding is called.
pub(super) fn name(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Json => "JSON",
        Encoding::Protobuf => "protobuf",
    }
}

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Pod,
    ConfigMap,
}

impl Kind {
    fn plural(self) -> &'static str {
        match self {
            Self::Pod => "pods",
            Self::ConfigMap => "configmaps",
        }
    }

    fn object(self, namespace: &str, name: &str) -> Value {
        match self {
            Self::Pod => dataset::pod(namespace, name, 0),
            Self::ConfigMap => dataset::config_map(namespace, name),
        }
    }
}

/// Which objects, in which encoding.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    kind: Kind,
    encoding: Encoding,
}

impl Form {
    pub(super) fn new(kind: Kind, encoding: Encoding) -> Self {
        Self { kind, encoding }
    }

    /// For names.
    pub(super) fn slug(self) -> String {
        format!(
            "{}-{}",
            self.kind.plural(),
            name(self.encoding).to_ascii_lowercase()
        )
    }

    fn encode(self, object: &Value) -> Result<Bytes, BenchError> {
        Object::from_json_value(object, self.encoding)
            .map(|object| object.bytes)
            .map_err(|error| call("encoding a request", error))
    }
}

impl fmt::Display for Form {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Pod => "pod",
            Kind::ConfigMap => "config map",
        };
        write!(formatter, "{kind}, {}", name(self.encoding))
    }
}

/// One request.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) accept: &'static str,
    pub(super) body: Option<(&'static str, Bytes)>,
}

/// Bytes with places for a number.
#[derive(Clone, Debug)]
struct Template {
    bytes: Vec<u8>,
    places: Vec<usize>,
}

impl Template {
    fn new(bytes: &[u8]) -> Self {
        let places = bytes
            .windows(NUMBER.len())
            .enumerate()
            .filter(|(_, window)| *window == NUMBER.as_bytes())
            .map(|(at, _)| at)
            .collect();
        Self {
            bytes: bytes.to_vec(),
            places,
        }
    }

    fn with(&self, number: u64) -> Vec<u8> {
        let digits = format!("{:0width$}", number % 100_000_000, width = NUMBER.len());
        let mut bytes = self.bytes.clone();
        for at in &self.places {
            bytes[*at..at + NUMBER.len()].copy_from_slice(digits.as_bytes());
        }
        bytes
    }
}

/// What one client sends, request after request.
#[derive(Debug)]
pub(super) struct Requests {
    method: Method,
    path: Template,
    accept: &'static str,
    body: Option<(&'static str, Template)>,
    /// Numbers are below this.
    below: u64,
}

impl Requests {
    /// New objects; names are `prefix` and the request's number.
    pub(super) fn creates(form: Form, namespace: &str, prefix: &str) -> Result<Self, BenchError> {
        let object = form.kind.object(namespace, &format!("{prefix}-{NUMBER}"));
        let path = format!("/api/v1/namespaces/{namespace}/{}", form.kind.plural());
        Ok(Self {
            method: Method::POST,
            path: Template::new(path.as_bytes()),
            accept: form.encoding.content_type(),
            body: Some((
                form.encoding.content_type(),
                Template::new(&form.encode(&object)?),
            )),
            below: u64::MAX,
        })
    }

    /// Changes of one object that is created here, each to another annotation, as a program sends them that has read it.
    pub(super) async fn updates(
        target: &Target,
        form: Form,
        namespace: &str,
        name: &str,
    ) -> Result<Self, BenchError> {
        let collection = format!("/api/v1/namespaces/{namespace}/{}", form.kind.plural());
        let new = load::json(&form.kind.object(namespace, name));
        let created = target
            .call(Method::POST, &collection, Some(("application/json", new)))
            .await?;
        let mut object: Value =
            serde_json::from_slice(&created).map_err(|error| call(&collection, error))?;
        object["metadata"]["annotations"]["yurt.bench/number"] = NUMBER.into();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            // Each is to be taken, whatever came before it.
            metadata.remove("resourceVersion");
        }
        Ok(Self {
            method: Method::PUT,
            path: Template::new(format!("{collection}/{name}").as_bytes()),
            accept: form.encoding.content_type(),
            body: Some((
                form.encoding.content_type(),
                Template::new(&form.encode(&object)?),
            )),
            below: u64::MAX,
        })
    }

    /// Changes of the status of a pod that is created here, as a kubelet sends them.
    pub(super) async fn status_patches(
        target: &Target,
        namespace: &str,
        name: &str,
    ) -> Result<Self, BenchError> {
        let collection = format!("/api/v1/namespaces/{namespace}/pods");
        let new = load::json(&Kind::Pod.object(namespace, name));
        target
            .call(Method::POST, &collection, Some(("application/json", new)))
            .await?;
        let patch = json!({"status": {
            "phase": "Running",
            "message": NUMBER,
            "podIP": "10.0.0.7",
            "podIPs": [{"ip": "10.0.0.7"}],
            "conditions": [
                {"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-11-22T00:00:00Z"},
                {"type": "ContainersReady", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-11-22T00:00:00Z"},
            ],
        }});
        Ok(Self {
            method: Method::PATCH,
            path: Template::new(format!("{collection}/{name}/status").as_bytes()),
            accept: "application/json",
            body: Some((
                "application/strategic-merge-patch+json",
                Template::new(&load::json(&patch)),
            )),
            below: u64::MAX,
        })
    }

    /// Reads of the pods that [`Requests::creates`] made, in turn.
    pub(super) fn gets(namespace: &str, prefix: &str, encoding: Encoding, objects: u64) -> Self {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{prefix}-{NUMBER}");
        Self {
            method: Method::GET,
            path: Template::new(path.as_bytes()),
            accept: encoding.content_type(),
            body: None,
            below: objects.max(1),
        }
    }

    /// Lists of all pods of a namespace.
    pub(super) fn lists(namespace: &str, accept: &'static str) -> Self {
        Self {
            method: Method::GET,
            path: Template::new(format!("/api/v1/namespaces/{namespace}/pods").as_bytes()),
            accept,
            body: None,
            below: u64::MAX,
        }
    }

    /// The request of a number.
    pub(super) fn call(&self, number: u64) -> Call {
        let number = number % self.below;
        Call {
            method: self.method.clone(),
            // A path of ASCII with digits in it stays one.
            path: String::from_utf8(self.path.with(number)).unwrap_or_default(),
            accept: self.accept,
            body: self
                .body
                .as_ref()
                .map(|(media, body)| (*media, body.with(number).into())),
        }
    }
}

/// Makes a namespace in which pods can be created, also where no controller makes accounts.
pub(super) async fn prepare_namespace(target: &Target, name: &str) -> Result<(), BenchError> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let json = "application/json";
    target
        .call(
            Method::POST,
            "/api/v1/namespaces",
            Some((json, load::json(&namespace))),
        )
        .await?;
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    let path = format!("/api/v1/namespaces/{name}/serviceaccounts");
    // A controller may have been faster.
    if let Err(error) = target
        .call(Method::POST, &path, Some((json, load::json(&account))))
        .await
    {
        target
            .get(&format!("{path}/default"))
            .await
            .map_err(|_| error)?;
    }
    Ok(())
}

/// The names in a JSON list.
pub(super) fn names_in(list: &[u8]) -> Vec<String> {
    let list: Value = serde_json::from_slice(list).unwrap_or_default();
    let items = list["items"].as_array().into_iter().flatten();
    items
        .filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_has_its_number() {
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            let form = Form::new(Kind::Pod, encoding);
            let requests = Requests::creates(form, "ns", "a").expect("encodes");
            let (_, body) = requests.call(42).body.expect("a body");
            let object = Object {
                encoding,
                bytes: body,
            };
            let meta = object.meta().expect("metadata");
            assert_eq!(meta.name, "a-00000042");
            assert_eq!(requests.call(42).path, "/api/v1/namespaces/ns/pods");
        }
        let gets = Requests::gets("ns", "a", Encoding::Json, 10);
        assert_eq!(gets.call(12).path, "/api/v1/namespaces/ns/pods/a-00000002");
    }

    #[test]
    fn names_are_found_in_a_list() {
        let list = br#"{"items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]}"#;
        assert_eq!(names_in(list), ["a", "b"]);
        assert!(names_in(b"x").is_empty());
    }
}
