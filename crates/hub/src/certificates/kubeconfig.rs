//! The hub's kubeconfigs: the ones it writes, and the ones it is given.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::json;
use std::path::{Path, PathBuf};

/// The user of bootstrap kubeconfigs (OpenYurt's name).
const BOOTSTRAP_USER: &str = "token-bootstrap-client";
const CLUSTER: &str = "kubernetes";

/// The hub's kubeconfig: the server, and the files of CA and client certificate. JSON is YAML.
pub fn hub(server: &str, ca: &Path, client: &Path) -> String {
    let config = json!({
        "apiVersion": "v1", "kind": "Config",
        "clusters": [{"name": "default-cluster",
            "cluster": {"server": format!("https://{server}"), "certificate-authority": ca}}],
        "users": [{"name": "default-auth",
            "user": {"client-certificate": client, "client-key": client}}],
        "contexts": [{"name": "default-context", "context":
            {"cluster": "default-cluster", "namespace": "default", "user": "default-auth"}}],
        "current-context": "default-context",
    });
    format!("{config:#}\n")
}

/// A kubeconfig with a bootstrap token.
pub fn bootstrap(server: &str, ca: &str, token: &str) -> String {
    let context = format!("{BOOTSTRAP_USER}@{CLUSTER}");
    let config = json!({
        "apiVersion": "v1", "kind": "Config",
        "clusters": [{"name": CLUSTER, "cluster": {"server": format!("https://{server}"),
            "certificate-authority-data": STANDARD.encode(ca)}}],
        "users": [{"name": BOOTSTRAP_USER, "user": {"token": token}}],
        "contexts": [{"name": context, "context": {"cluster": CLUSTER, "user": BOOTSTRAP_USER}}],
        "current-context": context,
    });
    format!("{config:#}\n")
}

/// What the hub takes from a kubeconfig: the CA and the token of its current context. Servers come from the flags.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// PEM of the CA in it.
    pub ca: Option<String>,
    /// A file with the CA, by an absolute path or one relative to the kubeconfig.
    pub ca_file: Option<PathBuf>,
    /// The bearer token.
    pub token: Option<String>,
    /// A file with the bearer token.
    pub token_file: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Config {
    clusters: Option<Vec<NamedCluster>>,
    users: Option<Vec<NamedUser>>,
    contexts: Option<Vec<NamedContext>>,
    #[serde(rename = "current-context")]
    current_context: Option<String>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: Option<User>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct User {
    token: Option<String>,
    token_file: Option<PathBuf>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: Option<String>,
}

impl Given {
    /// Reads a kubeconfig (YAML or JSON). Without a current context, as in `cluster-info`, its only cluster counts.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Config = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let clusters = config.clusters.unwrap_or_default();
        let current = config.current_context.filter(|name| !name.is_empty());
        let (cluster, user) = match current {
            None => (clusters.into_iter().next(), None),
            Some(name) => {
                let mut contexts = config.contexts.into_iter().flatten();
                let context = contexts
                    .find(|context| context.name == name)
                    .ok_or_else(|| format!("no context {name:?}"))?
                    .context;
                let mut users = config.users.into_iter().flatten();
                let user = context
                    .user
                    .and_then(|name| users.find(|user| user.name == name)?.user);
                let mut clusters = clusters.into_iter();
                (clusters.find(|c| c.name == context.cluster), user)
            }
        };
        let cluster = cluster.ok_or("no cluster")?.cluster;
        let ca = cluster
            .certificate_authority_data
            .map(|data| {
                let bytes = STANDARD.decode(data.trim()).ok();
                bytes
                    .and_then(|bytes| String::from_utf8(bytes).ok())
                    .ok_or("certificate-authority-data is not base64 of PEM")
            })
            .transpose()?;
        let (token, token_file) = user.map_or((None, None), |user| (user.token, user.token_file));
        Ok(Self {
            ca,
            ca_file: cluster.certificate_authority,
            token: token.filter(|token| !token.is_empty()),
            token_file,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let given = Given::parse(&bootstrap("a:6443", "CA", "abcdef.0123456789abcdef")).unwrap();
        assert_eq!(given.ca.as_deref(), Some("CA"));
        assert_eq!(given.token.as_deref(), Some("abcdef.0123456789abcdef"));
        let (ca, pem) = (
            Path::new("/r/pki/ca.crt"),
            Path::new("/r/pki/yurthub-current.pem"),
        );
        let text = hub("[fd00::1]:6443", ca, pem);
        let given = Given::parse(&text).unwrap();
        assert_eq!((given.ca_file.as_deref(), given.token), (Some(ca), None));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["current-context"], "default-context");
        assert_eq!(json["clusters"][0]["name"], "default-cluster");
        assert_eq!(
            json["clusters"][0]["cluster"]["server"],
            "https://[fd00::1]:6443"
        );
        assert_eq!(json["users"][0]["name"], "default-auth");
        assert_eq!(
            json["users"][0]["user"]["client-key"],
            "/r/pki/yurthub-current.pem"
        );
    }

    /// As OpenYurt's hub and kubeadm write them, by client-go.
    #[test]
    fn kubeconfigs_of_others_can_be_read() {
        let openyurt = "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: Q0E=\n    server: https://10.0.0.1:6443\n  name: kubernetes\ncontexts:\n- context:\n    cluster: kubernetes\n    user: token-bootstrap-client\n  name: token-bootstrap-client@kubernetes\ncurrent-context: token-bootstrap-client@kubernetes\nkind: Config\npreferences: {}\nusers:\n- name: token-bootstrap-client\n  user:\n    token: abcdef.0123456789abcdef\n";
        let given = Given::parse(openyurt).unwrap();
        assert_eq!(given.ca.as_deref(), Some("CA"));
        assert_eq!(given.token.as_deref(), Some("abcdef.0123456789abcdef"));
        let info = "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: Q0E=\n    server: https://10.0.0.1:6443\n  name: \"\"\ncontexts: null\ncurrent-context: \"\"\nkind: Config\npreferences: {}\nusers: null\n";
        assert_eq!(Given::parse(info).unwrap().ca.as_deref(), Some("CA"));
    }

    #[test]
    fn what_is_no_kubeconfig_is_refused() {
        for bad in [
            "",
            "\0",
            "[]",
            "clusters: []",
            "clusters: [{name: a, cluster: {certificate-authority-data: '!'}}]",
            "current-context: a\nclusters: [{name: a, cluster: {}}]",
            "a: &a [*a]",
            "clusters: {{",
        ] {
            assert!(Given::parse(bad).is_err(), "{bad:?}");
        }
    }
}
