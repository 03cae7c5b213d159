//! The node's hub: its admin endpoints, and its Unix socket.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode};
use serde::de::DeserializeOwned;
use std::{path::Path, time::Duration};
use tokio::net::UnixStream;
use yurt_transport::{Client, ClientError, ClientOptions, CollectError, ExchangeError};

/// Longest wait for an answer: the hub reads its cache for a report.
const WAIT: Duration = Duration::from_secs(30);
/// Largest answer.
const MOST: usize = 4 << 20;

/// Why the hub did not tell.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The address is none.
    #[error("--hub {0:?} is no address of a hub: http://HOST:PORT is expected")]
    Address(String),
    /// Nobody answers there.
    #[error(
        "{0}; does the hub run on this node (systemctl status yurthub), and is {1} its --bind-address and --serve-port?"
    )]
    Silent(ClientError, String),
    /// Nobody answers on the socket.
    #[error("{0}: {1}; does the hub run on this node, is this its --root-dir, and are you root?")]
    Socket(String, std::io::Error),
    /// Who listens on the socket is no hub, or went away.
    #[error("{0}: {1}")]
    Exchange(String, ExchangeError),
    /// A name that can be part of no request.
    #[error("{0:?} is no name of a pod or an upgrade")]
    Name(String),
    /// The answer broke off.
    #[error("the answer broke off: {0}")]
    Broken(#[from] CollectError),
    /// The hub says no.
    #[error("the hub answers {0}: {1}")]
    Refused(StatusCode, String),
    /// The hub is another program, or of another version.
    #[error("the answer cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// A drill goes on long after its end.
    #[error(
        "the drill does not end; DELETE /v1/drill at the hub ends it, and so does a restart of the hub"
    )]
    Endless,
    /// Nobody agreed.
    #[error("a drill cuts the node off for a while: say --yes if that is meant")]
    NotAgreed,
}

/// A hub.
#[derive(Debug)]
pub(crate) struct Hub {
    client: Client,
    authority: String,
    token: Option<HeaderValue>,
}

impl Hub {
    pub(crate) fn at(url: &str) -> Result<Self, HubError> {
        let wrong = || HubError::Address(url.to_owned());
        let uri: http::Uri = url.parse().map_err(|_| wrong())?;
        let authority = match (uri.scheme_str(), uri.authority()) {
            (Some("http"), Some(authority)) if authority.port().is_some() => authority.to_string(),
            _ => return Err(wrong()),
        };
        let options = ClientOptions {
            max_idle: 1,
            ..ClientOptions::default()
        };
        Ok(Self {
            client: Client::new(&authority, None, options),
            authority,
            token: None,
        })
    }

    /// The same, asked with a token; one that no header can hold is none.
    pub(crate) fn bearing(self, token: Option<&str>) -> Self {
        let token = token.and_then(|token| format!("Bearer {token}").parse().ok());
        Self { token, ..self }
    }

    async fn ask(&self, method: Method, path: &str, body: String) -> Result<Bytes, HubError> {
        let mut request = Request::new(yurt_transport::full(body));
        *request.method_mut() = method;
        *request.uri_mut() = path
            .parse()
            .map_err(|_| HubError::Address(path.to_owned()))?;
        if let Some(token) = &self.token {
            let headers = request.headers_mut();
            headers.insert(http::header::AUTHORIZATION, token.clone());
        }
        let response = self
            .client
            .send(request, WAIT)
            .await
            .map_err(|error| HubError::Silent(error, self.authority.clone()))?;
        let status = response.status();
        let body = yurt_transport::collect(response.into_body(), MOST).await?;
        if status.is_success() {
            return Ok(body);
        }
        let said = String::from_utf8_lossy(&body).trim().to_owned();
        Err(HubError::Refused(status, said))
    }

    /// An answer that is text.
    pub(crate) async fn text(&self, path: &str) -> Result<String, HubError> {
        let body = self.ask(Method::GET, path, String::new()).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// An answer, and its text.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<(T, String), HubError> {
        let body = self.ask(Method::GET, path, String::new()).await?;
        let value = serde_json::from_slice(&body)?;
        Ok((value, String::from_utf8_lossy(&body).into_owned()))
    }

    /// The answer to what is posted.
    pub(crate) async fn post_for<T: DeserializeOwned>(
        &self,
        path: &str,
        body: String,
    ) -> Result<T, HubError> {
        let body = self.ask(Method::POST, path, body).await?;
        Ok(serde_json::from_slice(&body)?)
    }

    pub(crate) async fn post(&self, path: &str, body: String) -> Result<(), HubError> {
        self.ask(Method::POST, path, body).await.map(|_| ())
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<(), HubError> {
        self.ask(Method::DELETE, path, String::new())
            .await
            .map(|_| ())
    }
}

/// Longest wait for an answer on the socket: an upgrade is answered when it began.
const PATIENCE: Duration = Duration::from_secs(60);

/// The hub's Unix socket: whoever may open it is the owner of the node.
#[derive(Debug)]
pub(crate) struct Socket<'a>(pub(crate) &'a Path);

impl Socket<'_> {
    /// Asks; gives the text of a success.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
    ) -> Result<(StatusCode, String), HubError> {
        let at = || self.0.display().to_string();
        let stream = UnixStream::connect(self.0)
            .await
            .map_err(|error| HubError::Socket(at(), error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "hub")
            .body(yurt_transport::empty())
            .map_err(|_| HubError::Name(path.to_owned()))?;
        let response = yurt_transport::exchange(Box::new(stream), None, request, PATIENCE)
            .await
            .map_err(|error| HubError::Exchange(at(), error))?;
        let status = response.status();
        let body = yurt_transport::collect(response.into_body(), MOST).await?;
        let text = String::from_utf8_lossy(&body).into_owned();
        if status.is_success() {
            Ok((status, text))
        } else {
            Err(HubError::Refused(status, text.trim().to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert!(Hub::at("http://127.0.0.1:10267").is_ok());
        assert!(Hub::at("http://[::1]:10267/").is_ok());
        for bad in ["", "127.0.0.1:10267", "https://a:1", "http://a", "http://"] {
            assert!(matches!(Hub::at(bad), Err(HubError::Address(_))), "{bad}");
        }
    }
}
