//! A small JSON client of the Kubernetes API.

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;
use std::{fmt, sync::Arc, time::Duration};
use yurt_transport::{Body, BoxError, Client, ClientOptions, full};

/// The largest answer that is read.
const MOST: usize = 64 << 20;

/// Objects as they are.
const JSON: &str = "application/json";

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// No answer.
    #[error(transparent)]
    Client(#[from] yurt_transport::ClientError),
    /// The answer broke off.
    #[error("{path}: {source}")]
    Body {
        /// What was asked.
        path: String,
        /// Why.
        source: BoxError,
    },
    /// The server refused.
    #[error("{path}: {code} {message}")]
    Refused {
        /// What was asked.
        path: String,
        /// HTTP code.
        code: u16,
        /// The Status' reason (`AlreadyExists`), or empty.
        reason: String,
        /// The Status' message.
        message: String,
    },
}

impl KubeError {
    /// The HTTP code, when the server answered.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether there is no such object, or no such resource.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// Whether another writer was there first.
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// What went wrong, in the server's own words when it answered.
    pub fn message(&self) -> String {
        match self {
            Self::Refused { message, .. } => message.clone(),
            other => other.to_string(),
        }
    }
}

/// Answers requests without connections, as a server in this process does.
pub type Call =
    Arc<dyn Fn(Request<Body>) -> BoxFuture<'static, http::Response<Body>> + Send + Sync>;

/// The way to a server.
#[derive(Clone)]
enum Way {
    Connections(Client),
    InProcess(Call),
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connections(client) => client.fmt(f),
            Self::InProcess(_) => f.write_str("InProcess"),
        }
    }
}

/// A bearer token that may be renewed while it is used.
#[derive(Clone)]
pub struct Token(Arc<ArcSwap<String>>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// A token.
    pub fn new(token: &str) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(token.to_owned())))
    }

    /// The token.
    pub fn current(&self) -> String {
        self.0.load().as_str().to_owned()
    }

    /// Requests carry `token` from now on.
    pub fn renew(&self, token: &str) {
        self.0.store(Arc::new(token.to_owned()));
    }
}

/// A client of one server.
#[derive(Clone, Debug)]
pub struct Kube {
    way: Way,
    token: Option<Token>,
    timeout: Duration,
    user_agent: HeaderValue,
}

impl Kube {
    /// A client for `authority` (`host:port`), with a bearer token unless the TLS configuration carries the identity.
    pub fn new(
        authority: &str,
        tls: Option<Arc<rustls::ClientConfig>>,
        token: Option<&str>,
        timeout: Duration,
    ) -> Self {
        let options = ClientOptions {
            connect_timeout: Duration::from_secs(3),
            keepalive_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(5),
            max_idle: 4,
        };
        let way = Way::Connections(Client::new(authority, tls, options));
        Self::of(way, token.map(Token::new), timeout)
    }

    /// A client of a server in this process: the same requests without connections.
    pub fn in_process(call: Call, token: &str, timeout: Duration) -> Self {
        Self::of(Way::InProcess(call), Some(Token::new(token)), timeout)
    }

    fn of(way: Way, token: Option<Token>, timeout: Duration) -> Self {
        Self {
            way,
            token,
            timeout,
            user_agent: HeaderValue::from_static("yurt"),
        }
    }

    /// The same server under another identity.
    pub fn with_token(&self, token: Token) -> Self {
        Self {
            token: Some(token),
            ..self.clone()
        }
    }

    /// The same client under another name; one that no header can hold changes nothing.
    pub fn with_user_agent(&self, name: &str) -> Self {
        let user_agent = name.parse().unwrap_or_else(|_| self.user_agent.clone());
        Self {
            user_agent,
            ..self.clone()
        }
    }

    /// GET as JSON.
    pub async fn get(&self, path: &str) -> Result<Value, KubeError> {
        self.call(Method::GET, path, None, Bytes::new()).await
    }

    /// GET of another JSON representation than the plain one (`accept`: an `Accept` header).
    pub async fn get_as(&self, path: &str, accept: &'static str) -> Result<Value, KubeError> {
        let response = self
            .send(Method::GET, path, accept, None, Bytes::new())
            .await?;
        self.answer(path, response).await
    }

    /// POST of a JSON object.
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value, KubeError> {
        self.call(
            Method::POST,
            path,
            Some("application/json"),
            object.to_string().into(),
        )
        .await
    }

    /// POST, content with an object that is there already.
    pub async fn ensure(&self, path: &str, object: &Value) -> Result<(), KubeError> {
        match self.create(path, object).await {
            Err(e) if e.code() == Some(409) => Ok(()),
            other => other.map(drop),
        }
    }

    /// JSON merge patch.
    pub async fn merge(&self, path: &str, patch: &Value) -> Result<Value, KubeError> {
        let kind = Some("application/merge-patch+json");
        self.call(Method::PATCH, path, kind, patch.to_string().into())
            .await
    }

    /// PUT of a JSON object.
    pub async fn replace(&self, path: &str, object: &Value) -> Result<Value, KubeError> {
        let kind = Some("application/json");
        self.call(Method::PUT, path, kind, object.to_string().into())
            .await
    }

    /// Strategic merge patch.
    pub async fn strategic(&self, path: &str, patch: &Value) -> Result<Value, KubeError> {
        let kind = Some("application/strategic-merge-patch+json");
        self.call(Method::PATCH, path, kind, patch.to_string().into())
            .await
    }

    /// JSON patch (RFC 6902).
    pub async fn json_patch(&self, path: &str, patch: &Value) -> Result<Value, KubeError> {
        let kind = Some("application/json-patch+json");
        self.call(Method::PATCH, path, kind, patch.to_string().into())
            .await
    }

    /// Server-side apply under a field manager; `force` takes fields over from others.
    pub async fn apply(
        &self,
        path: &str,
        object: &Value,
        manager: &str,
        force: bool,
    ) -> Result<Value, KubeError> {
        let path = format!("{path}?fieldManager={manager}&force={force}");
        let kind = Some("application/apply-patch+yaml");
        self.call(Method::PATCH, &path, kind, object.to_string().into())
            .await
    }

    /// DELETE with DeleteOptions.
    pub async fn delete_with(&self, path: &str, options: &Value) -> Result<Value, KubeError> {
        let kind = Some("application/json");
        self.call(Method::DELETE, path, kind, options.to_string().into())
            .await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Result<Value, KubeError> {
        self.call(Method::DELETE, path, None, Bytes::new()).await
    }

    /// Opens a JSON watch; the caller reads its lines.
    pub async fn watch(&self, path: &str) -> Result<Lines, KubeError> {
        self.watch_as(path, JSON).await
    }

    /// Opens a watch of another JSON representation than the plain one (`accept`: an `Accept` header).
    pub async fn watch_as(&self, path: &str, accept: &'static str) -> Result<Lines, KubeError> {
        let response = self
            .send(Method::GET, path, accept, None, Bytes::new())
            .await?;
        if response.status() != StatusCode::OK {
            return Err(refused(path, response).await);
        }
        Ok(Lines {
            body: response.into_body(),
            buffer: Vec::new(),
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &'static str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> Result<http::Response<Body>, KubeError> {
        let mut request = Request::new(full(body));
        *request.method_mut() = method;
        *request.uri_mut() = path
            .parse()
            .map_err(|e: http::uri::InvalidUri| KubeError::Body {
                path: path.to_owned(),
                source: e.into(),
            })?;
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        headers.insert(header::USER_AGENT, self.user_agent.clone());
        if let Some(kind) = content_type.and_then(|kind| kind.parse().ok()) {
            headers.insert(header::CONTENT_TYPE, kind);
        }
        if let Some(value) = self
            .token
            .as_ref()
            .and_then(|token| format!("Bearer {}", token.0.load()).parse().ok())
        {
            headers.insert(header::AUTHORIZATION, value);
        }
        match &self.way {
            Way::Connections(client) => {
                let response = client.send(request, self.timeout).await?;
                Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
            }
            Way::InProcess(call) => {
                let answer = tokio::time::timeout(self.timeout, call(request));
                answer.await.map_err(|elapsed| KubeError::Body {
                    path: path.to_owned(),
                    source: elapsed.into(),
                })
            }
        }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> Result<Value, KubeError> {
        let response = self.send(method, path, JSON, content_type, body).await?;
        self.answer(path, response).await
    }

    async fn answer(&self, path: &str, response: http::Response<Body>) -> Result<Value, KubeError> {
        if !response.status().is_success() {
            return Err(refused(path, response).await);
        }
        let body = read(path, self.timeout, response).await?;
        // `/v1/healthz` and the like answer text.
        Ok(serde_json::from_slice(&body)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned())))
    }
}

async fn read(
    path: &str,
    timeout: Duration,
    response: http::Response<Body>,
) -> Result<Bytes, KubeError> {
    let broken = |source: BoxError| KubeError::Body {
        path: path.to_owned(),
        source,
    };
    match tokio::time::timeout(timeout, yurt_transport::collect(response.into_body(), MOST)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(e)) => Err(broken(e.into())),
        Err(e) => Err(broken(e.into())),
    }
}

async fn refused(path: &str, response: http::Response<Body>) -> KubeError {
    let code = response.status().as_u16();
    let body = read(path, Duration::from_secs(5), response)
        .await
        .unwrap_or_default();
    let status: Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = status["message"].as_str().map_or_else(
        || String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned(),
        str::to_owned,
    );
    KubeError::Refused {
        path: path.to_owned(),
        code,
        reason: status["reason"].as_str().unwrap_or_default().to_owned(),
        message,
    }
}

/// The events of a JSON watch.
#[derive(Debug)]
pub struct Lines {
    body: Body,
    buffer: Vec<u8>,
}

impl Lines {
    /// The next event; `None` when the stream ended.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).ok();
            }
            let frame = self.body.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                if self.buffer.len() + data.len() > MOST {
                    return None;
                }
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}
