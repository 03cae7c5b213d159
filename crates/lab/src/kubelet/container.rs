//! A simulated container: a file system, an environment, a shell of built-in commands, an HTTP server on each port.

pub(super) mod archive;
pub(super) mod content;
pub(super) mod files;
pub(super) mod http;
pub(super) mod shell;
pub(super) mod streams;
pub(super) mod syntax;

use super::{api::Api, logs::Output};
use files::Files;
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

/// A container of a pod, as what runs in it sees it.
#[derive(Clone, Debug)]
pub(super) struct Container {
    pub(super) pod: Arc<Value>,
    pub(super) name: String,
    pub(super) files: Files,
    pub(super) api: Api,
    /// What it prints.
    pub(super) output: Option<Arc<Output>>,
}

impl Container {
    /// Its part of the pod's spec.
    pub(super) fn spec(&self) -> &Value {
        spec_of(&self.pod, &self.name).unwrap_or(&Value::Null)
    }

    pub(super) fn pod_name(&self) -> &str {
        self.pod["metadata"]["name"].as_str().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.pod["metadata"]["namespace"]
            .as_str()
            .unwrap_or_default()
    }

    /// What `hostname` says.
    pub(super) fn hostname(&self) -> &str {
        let spec = &self.pod["spec"];
        let named = spec["hostname"].as_str().filter(|name| !name.is_empty());
        match (named, spec["hostNetwork"] == true) {
            (Some(name), _) => name,
            (None, true) => spec["nodeName"].as_str().unwrap_or_default(),
            (None, false) => self.pod_name(),
        }
    }

    /// Where commands begin.
    pub(super) fn working_directory(&self) -> &str {
        self.spec()["workingDir"]
            .as_str()
            .filter(|dir| dir.starts_with('/'))
            .unwrap_or("/")
    }

    /// The command line of its main process; empty when the image would decide.
    pub(super) fn command(&self) -> Vec<String> {
        let words = |field: &str| {
            let words = self.spec()[field].as_array().into_iter().flatten();
            words.filter_map(Value::as_str).map(str::to_owned)
        };
        words("command").chain(words("args")).collect()
    }

    /// The environment variables, those of config maps and secrets asked for now.
    pub(super) async fn environment(&self) -> BTreeMap<String, String> {
        let mut environment: BTreeMap<String, String> = [
            (
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            ),
            ("HOSTNAME", self.hostname()),
            ("HOME", "/root"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let list = |field: &str| self.spec()[field].as_array().cloned().unwrap_or_default();
        for from in list("envFrom") {
            let prefix = from["prefix"].as_str().unwrap_or_default();
            let data = match (&from["configMapRef"]["name"], &from["secretRef"]["name"]) {
                (Value::String(name), _) => self.data("configmaps", name).await,
                (_, Value::String(name)) => self.data("secrets", name).await,
                _ => continue,
            };
            for (name, value) in data.unwrap_or_default() {
                let value = String::from_utf8_lossy(&value).into_owned();
                environment.insert(format!("{prefix}{name}"), value);
            }
        }
        for variable in list("env") {
            let Some(name) = variable["name"].as_str() else {
                continue;
            };
            let value = match &variable["value"] {
                Value::String(text) => Some(expanded(text, &environment)),
                _ => self.value_from(&variable["valueFrom"]).await,
            };
            if let Some(value) = value {
                environment.insert(name.to_owned(), value);
            }
        }
        environment
    }

    async fn value_from(&self, source: &Value) -> Option<String> {
        if let Some(path) = source["fieldRef"]["fieldPath"].as_str() {
            return Some(self.field(path));
        }
        for (field, resource) in [
            ("configMapKeyRef", "configmaps"),
            ("secretKeyRef", "secrets"),
        ] {
            if let Some(key) = source[field]["key"].as_str() {
                let data = self.data(resource, source[field]["name"].as_str()?).await?;
                let value = data.get(key)?;
                return Some(String::from_utf8_lossy(value).into_owned());
            }
        }
        None
    }

    /// A field of the pod by its path (`metadata.labels['app']`, `status.podIP`).
    fn field(&self, path: &str) -> String {
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        if let Some((map, key)) = path.split_once('[') {
            let key = key.trim_end_matches(']').trim_matches('\'');
            let map = map.strip_prefix("metadata.").unwrap_or(map);
            return text(&self.pod["metadata"][map][key]);
        }
        text(path.split('.').fold(&*self.pod, |value, part| &value[part]))
    }

    /// The data of a config map or secret, as the API server (or the hub for it) gives it.
    pub(super) async fn data(
        &self,
        resource: &str,
        name: &str,
    ) -> Option<BTreeMap<String, Vec<u8>>> {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let namespace = self.namespace();
        let path = format!("/api/v1/namespaces/{namespace}/{resource}/{name}");
        let object = self.api.get(&path).await.ok()?;
        let secret = resource == "secrets";
        let mut data = BTreeMap::new();
        for (field, packed) in [("data", secret), ("binaryData", true)] {
            for (key, value) in object[field].as_object().into_iter().flatten() {
                let text = value.as_str().unwrap_or_default();
                let bytes = match packed {
                    true => STANDARD.decode(text).unwrap_or_default(),
                    false => text.as_bytes().to_vec(),
                };
                data.insert(key.clone(), bytes);
            }
        }
        Some(data)
    }
}

/// A container's part of a pod's spec.
pub(super) fn spec_of<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    ["containers", "initContainers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|field| pod["spec"][field].as_array().into_iter().flatten())
        .find(|container| container["name"] == name)
}

/// `$(NAME)` of variables that are known; `$$` is a dollar.
fn expanded(text: &str, environment: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let named = after
            .strip_prefix('(')
            .and_then(|after| after.split_once(')'));
        match named {
            Some((name, after)) => {
                match environment.get(name) {
                    Some(value) => out.push_str(value),
                    None => out.push_str(&format!("$({name})")),
                }
                rest = after;
            }
            None => {
                out.push('$');
                rest = after.strip_prefix('$').unwrap_or(after);
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_refer_to_variables() {
        let environment = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        let expand = |text| expanded(text, &environment);
        assert_eq!(expand("x$(A)y$(B)$$(A)$"), "x1y$(B)$(A)$");
    }
}
