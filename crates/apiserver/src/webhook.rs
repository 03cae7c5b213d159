//! Calling webhooks (admission, conversion): where they are, whom to trust, how long to wait, how much to read.
//!
//! Messages are those of kube-apiserver's Go client, because people search for them.

mod endpoint;

pub use endpoint::ServiceResolver;

use crate::storage::Storage;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, Request, header};
use serde_json::Value;
use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, timeout_at};
use yurt_transport::{Client, ClientError, ClientOptions, CollectError, collect, full};
use yurt_wire::{Encoding, Status};

/// Larger answers are refused.
const MAX_ANSWER_BYTES: usize = 8 << 20;
/// Clients kept; when there are more, all are made anew.
const MAX_CLIENTS: usize = 128;
/// Where systems keep the certificates they trust.
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Why a webhook did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The configuration does not lead anywhere.
    #[error("{0}")]
    Nowhere(String),
    /// The request went out, or should have.
    #[error("Post {url:?}: {why}")]
    Failed {
        /// Where to.
        url: String,
        /// Why it failed.
        why: String,
    },
    /// It answered with an error.
    #[error("{0}")]
    Refused(String),
}

/// Calls webhooks; connections are kept.
#[derive(Debug, Default)]
pub(crate) struct Caller {
    clients: Mutex<HashMap<Destination, Client>>,
    resolver: Option<ServiceResolver>,
}

/// What tells one client from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Destination {
    authority: String,
    address: Option<SocketAddr>,
    ca_bundle: String,
}

/// A `clientConfig` that has been understood.
struct Way {
    to: Destination,
    /// Path and query.
    path: String,
}

impl Caller {
    pub(crate) fn new(resolver: Option<ServiceResolver>) -> Self {
        Self {
            clients: Mutex::default(),
            resolver,
        }
    }

    /// Posts a review to the webhook of a `clientConfig` and reads its JSON answer, all within `patience`.
    pub(crate) async fn call(
        &self,
        storage: &Storage,
        config: &Value,
        review: &Value,
        patience: Duration,
    ) -> Result<Value, CallError> {
        let deadline = Instant::now() + patience;
        let way = self.way(storage, config)?;
        let separator = if way.path.contains('?') { '&' } else { '?' };
        let path = format!("{}{separator}timeout={}s", way.path, patience.as_secs());
        let url = format!("https://{}{path}", way.to.authority);
        let failed = |why: String| CallError::Failed {
            url: url.clone(),
            why,
        };
        let client = self
            .client(&way.to)
            .map_err(|error| failed(error.to_string()))?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(&path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, "kube-apiserver-admission")
            .body(full(review.to_string()))
            .map_err(|error| failed(error.to_string()))?;
        let response = client
            .send(request, patience)
            .await
            .map_err(|error| failed(said(&error)))?;
        let code = response.status().as_u16();
        let body = timeout_at(deadline, collect(response.into_body(), MAX_ANSWER_BYTES))
            .await
            .map_err(|_| failed("context deadline exceeded".into()))?
            .map_err(|error| {
                failed(match error {
                    CollectError::TooLarge(limit) => {
                        format!("the answer is larger than {limit} bytes")
                    }
                    CollectError::Broken(error) => format!("unexpected EOF: {error}"),
                })
            })?;
        if !(200..300).contains(&code) {
            return Err(CallError::Refused(refusal(code, &body)));
        }
        serde_json::from_slice(&body).map_err(|error| {
            CallError::Refused(format!(
                "couldn't get version/kind; json parse error: {error}"
            ))
        })
    }

    fn way(&self, storage: &Storage, config: &Value) -> Result<Way, CallError> {
        let ca_bundle = config["caBundle"].as_str().unwrap_or_default().to_owned();
        let service = &config["service"];
        if service.is_object() {
            let text = |name: &str| service[name].as_str().unwrap_or_default();
            let (namespace, name) = (text("namespace"), text("name"));
            let port = service["port"].as_u64().unwrap_or(443);
            let port = u16::try_from(port)
                .map_err(|_| CallError::Nowhere(format!("{port} is not a port")))?;
            let authority = format!("{name}.{namespace}.svc:{port}");
            let known = self.resolver.as_ref();
            let address = match known.and_then(|known| known.resolve(namespace, name, port)) {
                Some(address) => address,
                None => endpoint::of_service(storage, namespace, name, port).map_err(|why| {
                    CallError::Failed {
                        url: format!("https://{authority}{}", text("path")),
                        why,
                    }
                })?,
            };
            let path = match text("path") {
                "" => "/".to_owned(),
                path if path.starts_with('/') => path.to_owned(),
                path => format!("/{path}"),
            };
            let to = Destination {
                authority,
                address: Some(address),
                ca_bundle,
            };
            return Ok(Way { to, path });
        }
        let neither =
            || CallError::Nowhere("webhook configuration must have either service or URL".into());
        let url = config["url"].as_str().filter(|url| !url.is_empty());
        let parsed: http::Uri = url
            .ok_or_else(neither)?
            .parse()
            .map_err(|error| CallError::Nowhere(format!("Unparsable URL: {error}")))?;
        let host = parsed
            .host()
            .filter(|_| parsed.scheme_str() == Some("https"))
            .ok_or_else(neither)?;
        let authority = format!("{host}:{}", parsed.port_u16().unwrap_or(443));
        let path = parsed
            .path_and_query()
            .map_or("/", |path| path.as_str())
            .to_owned();
        let to = Destination {
            authority,
            address: None,
            ca_bundle,
        };
        Ok(Way { to, path })
    }

    fn client(&self, to: &Destination) -> Result<Client, yurt_pki::PkiError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(to) {
            return Ok(client.clone());
        }
        let roots = match trusted(&to.ca_bundle) {
            Some(roots) => roots,
            None => system_roots(),
        };
        // HTTP/1.1, so that concurrent calls spread over the backends of a service.
        let tls = yurt_pki::client_config(&roots, None, &["http/1.1"])?;
        let options = ClientOptions {
            connect_timeout: Duration::from_secs(30),
            max_idle: 8,
            ..ClientOptions::default()
        };
        let client = match to.address {
            Some(address) => Client::at(&to.authority, address, Some(tls), options),
            None => Client::new(&to.authority, Some(tls), options),
        };
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        clients.insert(to.clone(), client.clone());
        Ok(client)
    }
}

/// The PEM text of a `caBundle`.
fn trusted(bundle: &str) -> Option<String> {
    if bundle.is_empty() {
        return None;
    }
    let bytes = STANDARD.decode(bundle).ok()?;
    String::from_utf8(bytes).ok()
}

/// What the system trusts; nothing when it does not say.
fn system_roots() -> String {
    let chosen = std::env::var("SSL_CERT_FILE").ok();
    chosen
        .iter()
        .map(String::as_str)
        .chain(SYSTEM_ROOTS.iter().copied())
        .find_map(|path| std::fs::read_to_string(Path::new(path)).ok())
        .unwrap_or_default()
}

fn said(error: &ClientError) -> String {
    match error {
        ClientError::Timeout { .. } => "context deadline exceeded".into(),
        ClientError::Tls { source, .. } => {
            format!("tls: failed to verify certificate: {source}")
        }
        ClientError::Connect { authority, source } => {
            let text = source.to_string();
            if text.contains("no connection") {
                "context deadline exceeded".into()
            } else {
                format!("dial tcp {authority}: connect: {}", text.to_lowercase())
            }
        }
        ClientError::Broken { source, .. } => format!("EOF: {source}"),
    }
}

/// What Go's REST client makes of an error without a Status.
fn refusal(code: u16, body: &Bytes) -> String {
    if let Some(status) = Status::from_bytes(body, Encoding::Json) {
        return status.message;
    }
    match code {
        404 => "the server could not find the requested resource".into(),
        503 => "the server is currently unable to handle the request".into(),
        code if code >= 500 => {
            let text: String = String::from_utf8_lossy(body).chars().take(256).collect();
            format!(
                "an error on the server ({:?}) has prevented the request from succeeding",
                text.trim()
            )
        }
        code => format!(
            "the server responded with the status code {code} but did not return more information"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::WindowLimits;
    use serde_json::json;

    #[tokio::test]
    async fn a_configuration_says_where_to() {
        let storage = Storage::memory(WindowLimits::default());
        let resolver = ServiceResolver::new(|namespace, name, port| {
            (namespace == "n" && name == "s").then(|| ([127, 0, 0, 1], port).into())
        });
        let caller = Caller::new(Some(resolver));
        let way = |config: Value| caller.way(&storage, &config);
        let url = way(json!({"url": "https://example.com/a?b=c", "caBundle": "x"})).expect("a way");
        assert_eq!(url.to.authority, "example.com:443");
        assert_eq!(url.path, "/a?b=c");
        let service =
            json!({"service": {"namespace": "n", "name": "s", "path": "p", "port": 8443}});
        let service = way(service).expect("a way");
        assert_eq!(service.to.authority, "s.n.svc:8443");
        assert_eq!(service.to.address, Some(([127, 0, 0, 1], 8443).into()));
        assert_eq!(service.path, "/p");
        for (config, why) in [
            (json!({}), "must have either service or URL"),
            (
                json!({"url": "http://x"}),
                "must have either service or URL",
            ),
            (
                json!({"service": {"namespace": "n", "name": "other"}}),
                "service \"other\" not found",
            ),
        ] {
            let error = way(config).err().expect("no way").to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn refusals_read_like_the_go_client() {
        let of = |code, body: &'static str| refusal(code, &Bytes::from(body));
        assert!(of(404, "x").contains("could not find the requested resource"));
        assert_eq!(
            of(500, "boom\n"),
            "an error on the server (\"boom\") has prevented the request from succeeding"
        );
        let status = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"own words","code":400}"#;
        assert_eq!(of(400, status), "own words");
    }
}
