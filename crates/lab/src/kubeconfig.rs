//! Kubeconfig files, as kubectl and client-go read them. JSON is YAML, so they are written as JSON values.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

/// How the bearer of a kubeconfig proves who it is.
#[derive(Clone, Debug)]
pub enum Credentials<'a> {
    /// A client certificate and its key, PEM.
    Certificate {
        /// Certificate chain.
        cert: &'a str,
        /// Private key.
        key: &'a str,
    },
    /// A bearer token.
    Token(&'a str),
}

/// A kubeconfig for one server. `cluster` names the cluster and its context.
pub fn render(cluster: &str, server: &str, ca_pem: &str, credentials: &Credentials<'_>) -> String {
    let user = match credentials {
        Credentials::Certificate { cert, key } => json!({
            "client-certificate-data": STANDARD.encode(cert),
            "client-key-data": STANDARD.encode(key),
        }),
        Credentials::Token(token) => json!({ "token": token }),
    };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": cluster,
            "cluster": { "server": server, "certificate-authority-data": STANDARD.encode(ca_pem) },
        }],
        "users": [{ "name": "admin", "user": user }],
        "contexts": [{ "name": cluster, "context": { "cluster": cluster, "user": "admin" } }],
        "current-context": cluster,
    });
    format!("{config:#}\n")
}
