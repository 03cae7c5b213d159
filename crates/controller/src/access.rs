//! The way of a component to the API server: by a kubeconfig, or by the service account of its pod.

use crate::{
    kube::{Kube, Token},
    kubeconfig::{Access, KubeconfigError},
};
use std::{fs, io, path::PathBuf, time::Duration};
use tokio_util::sync::CancellationToken;
use yurt_pki::PkiError;

/// How long a call may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Where a pod finds its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How often the pod's token is read again; the kubelet renews it long before it expires.
const REREAD: Duration = Duration::from_secs(60);

/// How the API server is reached.
#[derive(Clone, Debug)]
pub enum Server {
    /// By this client; it must carry its identity in a token, and nothing else.
    Given(Kube),
    /// By a kubeconfig.
    Kubeconfig(PathBuf),
    /// By the service account of the pod.
    InCluster,
}

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig: {0}")]
    Kubeconfig(#[from] KubeconfigError),
    /// A certificate cannot be used.
    #[error("certificates of the API server: {0}")]
    Pki(#[from] PkiError),
    /// This is no pod.
    #[error("{what} is not set: this is no pod of a cluster; say --kubeconfig")]
    NoPod {
        /// The environment variable.
        what: &'static str,
    },
    /// The service account is not there.
    #[error("{}: {source}", path.display())]
    ServiceAccount {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Clients of the API server.
#[derive(Clone, Debug)]
pub struct Clients {
    /// The component's.
    pub base: Kube,
    /// Nobody's: to be given a token.
    pub bare: Kube,
}

impl Clients {
    /// The clients of a server; tokens in files are followed until `shutdown`.
    pub fn of(server: &Server, shutdown: &CancellationToken) -> Result<Self, AccessError> {
        match server {
            Server::Given(kube) => Ok(Self {
                base: kube.clone(),
                bare: kube.clone(),
            }),
            Server::Kubeconfig(path) => Self::reaching(&Access::read(path)?),
            Server::InCluster => Self::in_cluster(shutdown),
        }
    }

    fn reaching(access: &Access) -> Result<Self, AccessError> {
        let tls = |own| match &access.ca {
            Some(ca) => yurt_pki::client_config(ca, own, &["h2", "http/1.1"]).map(Some),
            None => Ok(None),
        };
        // A client certificate would be taken before a token: who writes with a token must not show it.
        let bare = Kube::new(&access.authority, tls(None)?, None, TIMEOUT);
        let base = match &access.certificate {
            Some(own) => Kube::new(&access.authority, tls(Some(own))?, None, TIMEOUT),
            None => bare.clone(),
        };
        let base = match &access.token {
            Some(token) => base.with_token(Token::new(token)),
            None => base,
        };
        Ok(Self { base, bare })
    }

    fn in_cluster(shutdown: &CancellationToken) -> Result<Self, AccessError> {
        let variable = |what| {
            let value = std::env::var(what).ok().filter(|value| !value.is_empty());
            value.ok_or(AccessError::NoPod { what })
        };
        let host = variable("KUBERNETES_SERVICE_HOST")?;
        let port = variable("KUBERNETES_SERVICE_PORT")?;
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };
        let access = Access {
            authority: format!("{host}:{port}"),
            ca: Some(mounted("ca.crt")?),
            certificate: None,
            token: None,
        };
        let token = Token::new(mounted("token")?.trim());
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(follow(
            token.clone(),
            PathBuf::from(SERVICE_ACCOUNT).join("token"),
        )));
        let mut clients = Self::reaching(&access)?;
        clients.base = clients.bare.with_token(token);
        Ok(clients)
    }
}

fn mounted(file: &str) -> Result<String, AccessError> {
    let path = PathBuf::from(SERVICE_ACCOUNT).join(file);
    fs::read_to_string(&path).map_err(|source| AccessError::ServiceAccount { path, source })
}

/// Keeps a token as its file says.
async fn follow(token: Token, path: PathBuf) {
    loop {
        tokio::time::sleep(REREAD).await;
        match fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => token.renew(text.trim()),
            Ok(_) => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "the old token is kept"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_token_is_as_its_file_says() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        fs::write(&path, "first\n").expect("written");
        let token = Token::new("first");
        tokio::spawn(follow(token.clone(), path.clone()));
        for text in ["second\n", "", "third"] {
            fs::write(&path, text).expect("written");
            tokio::time::sleep(REREAD + Duration::from_secs(1)).await;
            let expected = if text.is_empty() {
                "second"
            } else {
                text.trim()
            };
            assert_eq!(token.current(), expected);
        }
    }
}
