//! The admin endpoints of the node's hub.

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use serde::de::DeserializeOwned;
use std::time::Duration;
use yurt_transport::{Client, ClientError, ClientOptions, CollectError};

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
        })
    }

    async fn ask(&self, method: Method, path: &str, body: String) -> Result<Bytes, HubError> {
        let mut request = Request::new(yurt_transport::full(body));
        *request.method_mut() = method;
        *request.uri_mut() = path
            .parse()
            .map_err(|_| HubError::Address(path.to_owned()))?;
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

    /// An answer, and its text.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<(T, String), HubError> {
        let body = self.ask(Method::GET, path, String::new()).await?;
        let value = serde_json::from_slice(&body)?;
        Ok((value, String::from_utf8_lossy(&body).into_owned()))
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
