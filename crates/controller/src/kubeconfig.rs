//! Kubeconfig files, as kubectl and client-go read them. JSON is YAML, so they are written as JSON values.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};
use yurt_pki::KeyPairPem;

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
    contexts(
        &[(cluster, server.to_owned())],
        "admin",
        ca_pem,
        credentials,
    )
}

/// A kubeconfig with a context for each server (name and URL) and one user; the first is the current one.
pub fn contexts(
    servers: &[(&str, String)],
    user_name: &str,
    ca_pem: &str,
    credentials: &Credentials<'_>,
) -> String {
    let user = match credentials {
        Credentials::Certificate { cert, key } => json!({
            "client-certificate-data": STANDARD.encode(cert),
            "client-key-data": STANDARD.encode(key),
        }),
        Credentials::Token(token) => json!({ "token": token }),
    };
    let ca = STANDARD.encode(ca_pem);
    let clusters = servers.iter().map(|(name, server)| {
        json!({"name": name, "cluster": {"server": server, "certificate-authority-data": ca}})
    });
    let contexts = servers
        .iter()
        .map(|(name, _)| json!({"name": name, "context": {"cluster": name, "user": user_name}}));
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": clusters.collect::<Value>(),
        "users": [{ "name": user_name, "user": user }],
        "contexts": contexts.collect::<Value>(),
        "current-context": servers.first().map(|(name, _)| name),
    });
    format!("{config:#}\n")
}

/// How the current context of a kubeconfig reaches its server.
#[derive(Clone, Debug)]
pub struct Access {
    /// `host:port`.
    pub authority: String,
    /// PEM of the server's CA; `None` for plain HTTP.
    pub ca: Option<String>,
    /// Client certificate.
    pub certificate: Option<KeyPairPem>,
    /// Bearer token.
    pub token: Option<String>,
}

/// Why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// It, or a file that it names, cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It does not say what is needed, or asks for what is not supported.
    #[error("{path}: {why}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl Access {
    /// Reads the current context of a kubeconfig: certificates and tokens, given in it or as files. Credential plugins and
    /// servers that are not verified are refused.
    pub fn read(path: &Path) -> Result<Self, KubeconfigError> {
        let text = read(path)?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, KubeconfigError> {
        let unusable = |why: String| KubeconfigError::Unusable {
            path: path.to_owned(),
            why,
        };
        let config: Value =
            serde_saphyr::from_str(text).map_err(|error| unusable(error.to_string()))?;
        Self::of(&config, path)
    }

    /// The current context of a configuration; `path` says where it is from, and where files are that it names.
    pub fn of(config: &Value, path: &Path) -> Result<Self, KubeconfigError> {
        let unusable = |why: String| KubeconfigError::Unusable {
            path: path.to_owned(),
            why,
        };
        let named = |list: &str, name: &Value, inner: &str| {
            let entries = config[list].as_array().into_iter().flatten();
            entries
                .filter(|entry| entry["name"] == *name)
                .map(|entry| entry[inner].clone())
                .next()
                .ok_or_else(|| unusable(format!("no entry {name} in {list}")))
        };
        let context = named("contexts", &config["current-context"], "context")?;
        let cluster = named("clusters", &context["cluster"], "cluster")?;
        let user = named("users", &context["user"], "user")?;
        if user.get("exec").is_some() || user.get("auth-provider").is_some() {
            return Err(unusable("credential plugins are not supported".into()));
        }
        let given = |of: &Value, name: &str| -> Result<Option<String>, KubeconfigError> {
            if let Some(data) = of[format!("{name}-data")].as_str() {
                let decoded = STANDARD.decode(data).ok();
                return decoded
                    .and_then(|bytes| String::from_utf8(bytes).ok())
                    .map(Some)
                    .ok_or_else(|| unusable(format!("{name}-data is not base64 of PEM")));
            }
            let file = of[name].as_str();
            file.map(|file| read(&path.with_file_name(file)))
                .transpose()
        };
        let server = cluster["server"].as_str().unwrap_or_default();
        let (scheme, authority) = server
            .split_once("://")
            .map(|(scheme, rest)| (scheme, rest.trim_end_matches('/')))
            .filter(|(_, authority)| !authority.contains('/'))
            .ok_or_else(|| unusable(format!("server {server:?} is not https://host:port")))?;
        let tls = scheme == "https";
        let ca = given(&cluster, "certificate-authority")?;
        if tls && ca.is_none() {
            return Err(unusable("no certificate-authority".into()));
        }
        let port = if tls { "443" } else { "80" };
        let certificate = match (
            given(&user, "client-certificate")?,
            given(&user, "client-key")?,
        ) {
            (Some(cert), Some(key)) => Some(KeyPairPem { cert, key }),
            _ => None,
        };
        let token = match (user["token"].as_str(), user["tokenFile"].as_str()) {
            (Some(token), _) => Some(token.to_owned()),
            (None, Some(file)) => Some(read(&path.with_file_name(file))?.trim().to_owned()),
            (None, None) => None,
        };
        Ok(Self {
            authority: match authority.rsplit_once(':') {
                Some((_, port)) if port.bytes().all(|b| b.is_ascii_digit()) => authority.into(),
                _ => format!("{authority}:{port}"),
            },
            ca: ca.filter(|_| tls),
            certificate,
            token,
        })
    }
}

fn read(path: &Path) -> Result<String, KubeconfigError> {
    fs::read_to_string(path).map_err(|source| KubeconfigError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rendered_can_be_read() {
        let text = render(
            "a",
            "https://127.0.0.1:6443",
            "CA",
            &Credentials::Certificate {
                cert: "C",
                key: "K",
            },
        );
        let access = Access::parse(&text, Path::new("config")).expect("access");
        assert_eq!(access.authority, "127.0.0.1:6443");
        assert_eq!(access.ca.as_deref(), Some("CA"));
        let pair = access.certificate.expect("a pair");
        assert_eq!((pair.cert.as_str(), pair.key.as_str()), ("C", "K"));
        let text = render("a", "https://a.example/", "CA", &Credentials::Token("t"));
        let access = Access::parse(&text, Path::new("config")).expect("access");
        assert_eq!(access.authority, "a.example:443");
        assert_eq!(access.token.as_deref(), Some("t"));
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        let with = |cluster: &str, user: &str| {
            format!(
                "current-context: a\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n\
                 clusters: [{{name: a, cluster: {{{cluster}}}}}]\nusers: [{{name: a, user: {{{user}}}}}]\n"
            )
        };
        for (text, why) in [
            (String::new(), "no entry"),
            ("current-context: b\ncontexts: []".into(), "no entry \"b\""),
            (with("server: 'https://a/b'", ""), "is not https"),
            (with("server: 'https://a'", ""), "no certificate-authority"),
            (with("server: 'http://a'", "exec: {}"), "plugins"),
            (
                with("server: 'https://a', certificate-authority-data: '!'", ""),
                "base64",
            ),
        ] {
            let error = Access::parse(&text, Path::new("config")).expect_err("refused");
            assert!(error.to_string().contains(why), "{error}");
        }
        let plain = Access::parse(&with("server: 'http://a:1'", ""), Path::new("config"));
        assert!(plain.is_ok_and(|access| access.ca.is_none() && access.authority == "a:1"));
    }
}
