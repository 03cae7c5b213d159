//! A small JSON client of the Kubernetes API.

use crate::{limit::RateLimit, metrics::Metrics};
use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;
use std::{fmt, sync::Arc, time::Duration};
use tokio::{sync::Notify, time::Instant};
use yurt_transport::{Body, BoxError, Client, ClientOptions, full};

/// The largest answer that is read.
const MOST: usize = 64 << 20;

/// How often a request is sent that the server puts off (429 with Retry-After), as in client-go.
const PUT_OFF: usize = 10;

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

    /// Whether the server, and not what was asked, is at fault: it is away, fails, or has too much to do.
    pub fn is_outage(&self) -> bool {
        self.code().is_none_or(|code| code == 429 || code >= 500)
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

/// A bearer token that may be renewed while it is used. Clones are the same token.
#[derive(Clone)]
pub struct Token(Arc<Bearer>);

struct Bearer {
    text: ArcSwap<String>,
    refused: Notify,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// A token.
    pub fn new(token: &str) -> Self {
        Self(Arc::new(Bearer {
            text: ArcSwap::from_pointee(token.to_owned()),
            refused: Notify::new(),
        }))
    }

    /// The token.
    pub fn current(&self) -> String {
        self.0.text.load().as_str().to_owned()
    }

    /// Requests carry `token` from now on.
    pub fn renew(&self, token: &str) {
        self.0.text.store(Arc::new(token.to_owned()));
    }

    /// Waits until a server does not know it (401): its account was deleted, or the server's keys changed.
    pub async fn refused(&self) {
        self.0.refused.notified().await;
    }
}

/// A client of one server.
#[derive(Clone, Debug)]
pub struct Kube {
    way: Way,
    token: Option<Token>,
    timeout: Duration,
    user_agent: HeaderValue,
    limit: Option<Arc<RateLimit>>,
    metrics: Option<Arc<Metrics>>,
}

/// How long a server asks to wait, when it does: with 429, or with 503 and the like.
fn put_off(response: &http::Response<Body>) -> Option<Duration> {
    let status = response.status();
    if status != StatusCode::TOO_MANY_REQUESTS && !status.is_server_error() {
        return None;
    }
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    Some(Duration::from_secs(seconds.trim().parse().ok()?))
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
            limit: None,
            metrics: None,
        }
    }

    /// The same client, sending no more than a limit allows to it and all clients that share it.
    pub fn with_limit(&self, limit: Arc<RateLimit>) -> Self {
        Self {
            limit: Some(limit),
            ..self.clone()
        }
    }

    /// The same client, whose answers are counted.
    pub fn with_metrics(&self, metrics: Metrics) -> Self {
        Self {
            metrics: Some(Arc::new(metrics)),
            ..self.clone()
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

    /// What [`Kube::apply`] with force would make of the object; nothing is written.
    pub async fn try_apply(
        &self,
        path: &str,
        object: &Value,
        manager: &str,
    ) -> Result<Value, KubeError> {
        let path = format!("{path}?fieldManager={manager}&force=true&dryRun=All");
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

    /// Sends a request; one that the server puts off is sent again when it says, as long as the client's time allows.
    async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &'static str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> Result<http::Response<Body>, KubeError> {
        let began = Instant::now();
        let mut attempt = 0;
        loop {
            attempt += 1;
            if let Some(limit) = &self.limit {
                limit.turn().await;
            }
            let request = self.request(&method, path, accept, content_type, body.clone())?;
            let answer = self.send_once(path, request).await;
            let code = answer.as_ref().ok().map(|answer| answer.status().as_u16());
            if let Some(metrics) = &self.metrics {
                metrics.answered(&method, code);
            }
            if code == Some(401)
                && let Some(token) = &self.token
            {
                token.0.refused.notify_one();
            }
            let pause = answer.as_ref().ok().and_then(put_off);
            // Who is put off together does not come back together.
            match pause.map(|pause| pause.mul_f64(1.0 + fastrand::f64() / 10.0)) {
                Some(pause) if attempt < PUT_OFF && began.elapsed() + pause < self.timeout => {
                    tracing::debug!(path, ?pause, "put off by the server");
                    tokio::time::sleep(pause).await;
                }
                _ => return answer,
            }
        }
    }

    fn request(
        &self,
        method: &Method,
        path: &str,
        accept: &'static str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> Result<Request<Body>, KubeError> {
        let mut request = Request::new(full(body));
        *request.method_mut() = method.clone();
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
        let bearer = self.token.as_ref();
        let bearer =
            bearer.map(|token| HeaderValue::try_from(format!("Bearer {}", token.0.text.load())));
        if let Some(Ok(mut value)) = bearer {
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        Ok(request)
    }

    async fn send_once(
        &self,
        path: &str,
        request: Request<Body>,
    ) -> Result<http::Response<Body>, KubeError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    #[tokio::test]
    async fn a_token_shows_itself_to_no_log() {
        let shown = Arc::new(Mutex::new(String::new()));
        let log = shown.clone();
        let call: Call = Arc::new(move |request| {
            let sent = &request.headers()[header::AUTHORIZATION];
            assert_eq!(sent, "Bearer of-the-owner");
            *log.lock().unwrap() = format!("{:?}", request.headers());
            Box::pin(async { http::Response::new(full("{}")) })
        });
        let kube = Kube::in_process(call, "of-the-owner", Duration::from_secs(5));
        kube.get("/version").await.expect("an answer");
        let headers = shown.lock().unwrap().clone();
        assert!(headers.contains("authorization"), "{headers}");
        for text in [
            headers,
            format!("{kube:?}"),
            format!("{:?}", Token::new("of-the-owner")),
        ] {
            assert!(!text.contains("of-the-owner"), "{text}");
        }
    }

    /// A client of a server that answers with `code` and Retry-After for the first `times`; what it was asked how often.
    fn reluctant(code: u16, times: usize, after: &'static str) -> (Kube, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let call: Call = Arc::new(move |_| {
            let code = if count.fetch_add(1, Ordering::Relaxed) < times {
                code
            } else {
                200
            };
            let response = http::Response::builder()
                .status(code)
                .header(header::RETRY_AFTER, after)
                .body(full("{}"))
                .expect("a response");
            Box::pin(async move { response })
        });
        let kube = Kube::in_process(call, "secret", Duration::from_secs(30));
        (kube, asked)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_put_off_is_asked_again_when_the_server_says() {
        let (kube, asked) = reluctant(429, 2, "3");
        let began = Instant::now();
        kube.get("/api/v1/nodes").await.expect("an answer");
        assert_eq!(asked.load(Ordering::Relaxed), 3);
        assert!(began.elapsed() >= Duration::from_secs(6));
        // Not longer than the client's time.
        for after in ["60", "7"] {
            let (kube, _) = reluctant(429, 100, after);
            let began = Instant::now();
            let error = kube.get("/api/v1/nodes").await.expect_err("refused");
            assert_eq!(error.code(), Some(429));
            assert!(error.is_outage());
            assert!(began.elapsed() <= Duration::from_secs(30), "{after}");
        }
        let (kube, asked) = reluctant(404, 1, "3");
        assert!(
            kube.get("/api/v1/nodes")
                .await
                .is_err_and(|error| !error.is_outage())
        );
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn tokens_are_not_shown() {
        let (kube, _) = reluctant(200, 0, "0");
        let shown = format!("{:?} {kube:?}", Token::new("secret"));
        assert!(!shown.contains("secret"), "{shown}");
        let request = kube.request(&Method::GET, "/", JSON, None, Bytes::new());
        let shown = format!("{:?}", request.expect("a request").headers());
        assert!(!shown.contains("secret"), "{shown}");
    }
}
