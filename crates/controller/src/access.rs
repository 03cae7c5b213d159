//! The way of a component to the API server: by a kubeconfig, or by the service account of its pod.

use crate::{
    kube::{Kube, Token},
    kubeconfig::{Access, KubeconfigError},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
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
    /// The same, at this `host:port`.
    InClusterAt(String),
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
            Server::InCluster => {
                let variable = |name: &str| std::env::var(name).ok();
                Self::in_cluster(variable, Path::new(SERVICE_ACCOUNT), shutdown)
            }
            Server::InClusterAt(authority) => {
                let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "443"));
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let variable = |name: &str| match name {
                    "KUBERNETES_SERVICE_HOST" => Some(host.to_owned()),
                    _ => Some(port.to_owned()),
                };
                Self::in_cluster(variable, Path::new(SERVICE_ACCOUNT), shutdown)
            }
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

    /// As the account of a pod: its variables, and what is mounted into it.
    fn in_cluster(
        variable: impl Fn(&str) -> Option<String>,
        mounted: &Path,
        shutdown: &CancellationToken,
    ) -> Result<Self, AccessError> {
        let variable = |what| {
            let value = variable(what).filter(|value| !value.is_empty());
            value.ok_or(AccessError::NoPod { what })
        };
        let read = |file: &str| {
            let path = mounted.join(file);
            fs::read_to_string(&path).map_err(|source| AccessError::ServiceAccount { path, source })
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
            ca: Some(read("ca.crt")?),
            certificate: None,
            token: None,
        };
        let token = Token::new(read("token")?.trim());
        let followed = follow(token.clone(), mounted.join("token"));
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(followed));
        let mut clients = Self::reaching(&access)?;
        clients.base = clients.bare.with_token(token);
        Ok(clients)
    }
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
    use crate::kubeconfig::{Credentials, render};
    use arc_swap::ArcSwap;
    use serde_json::{Value, json};
    use std::{net::SocketAddr, sync::Arc};
    use yurt_pki::{Ca, KeyPairPem, Profile};
    use yurt_transport::{Peer, ServeOptions, full};

    /// A server that is like an API server in who it asks for: it tells each caller what it showed.
    async fn server(ca: &Ca, address: &str, end: &CancellationToken) -> SocketAddr {
        let own = ca.issue(&Profile {
            ips: vec![address.parse().expect("an address")],
            server: true,
            days: 1,
            ..Profile::default()
        });
        let tls = yurt_pki::server_config(&own.expect("a pair"), Some(&ca.cert_pem()), true);
        let listener = tokio::net::TcpListener::bind((address, 0))
            .await
            .expect("a port");
        let bound = listener.local_addr().expect("an address");
        let handler = |request: http::Request<_>| {
            let peer = request.extensions().get::<Peer>().expect("somebody");
            let certificate = peer.certificate.as_deref();
            let name = certificate.and_then(|der| yurt_pki::identity_of(der).ok());
            let token = request.headers().get("authorization");
            let told = json!({"certificate": name.map(|identity| identity.user),
                "token": token.and_then(|token| token.to_str().ok())});
            async move {
                drop(request);
                let mut answer = http::Response::new(full(told.to_string()));
                let json = http::HeaderValue::from_static("application/json");
                answer.headers_mut().insert("content-type", json);
                answer
            }
        };
        let tls = Some(Arc::new(ArcSwap::new(tls.expect("a configuration"))));
        let options = ServeOptions::default();
        tokio::spawn(yurt_transport::serve(
            listener,
            tls,
            options,
            end.clone(),
            handler,
        ));
        bound
    }

    async fn shown(kube: &Kube) -> Value {
        kube.get("/whoami").await.expect("an answer")
    }

    #[tokio::test]
    async fn who_has_a_certificate_shows_it_and_its_controllers_do_not() {
        let ca = Ca::new("kubernetes", 1).expect("a CA");
        let end = CancellationToken::new();
        let address = server(&ca, "127.0.0.1", &end).await;
        let pair: KeyPairPem = ca
            .issue(&Profile {
                common_name: "manager".into(),
                client: true,
                days: 1,
                ..Profile::default()
            })
            .expect("a pair");
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("kubeconfig");
        let credentials = Credentials::Certificate {
            cert: &pair.cert,
            key: &pair.key,
        };
        let config = render(
            "c",
            &format!("https://{address}"),
            &ca.cert_pem(),
            &credentials,
        );
        fs::write(&path, config).expect("written");
        let clients = Clients::of(&Server::Kubeconfig(path.clone()), &end).expect("clients");
        assert_eq!(
            shown(&clients.base).await,
            json!({"certificate": "manager", "token": null})
        );
        let controller = clients.bare.with_token(Token::new("of-a-controller"));
        assert_eq!(
            shown(&controller).await,
            json!({"certificate": null, "token": "Bearer of-a-controller"})
        );

        let credentials = Credentials::Token("of-the-manager");
        let config = render(
            "c",
            &format!("https://{address}"),
            &ca.cert_pem(),
            &credentials,
        );
        fs::write(&path, config).expect("written");
        let clients = Clients::of(&Server::Kubeconfig(path.clone()), &end).expect("clients");
        assert_eq!(
            shown(&clients.base).await,
            json!({"certificate": null, "token": "Bearer of-the-manager"})
        );
        // Whoever is no server of that CA is told nothing.
        let other = Ca::new("kubernetes", 1).expect("a CA");
        let config = render(
            "c",
            &format!("https://{address}"),
            &other.cert_pem(),
            &credentials,
        );
        fs::write(&path, config).expect("written");
        let clients = Clients::of(&Server::Kubeconfig(path), &end).expect("clients");
        assert!(clients.base.get("/whoami").await.is_err());
        end.cancel();
    }

    #[tokio::test]
    async fn a_pod_is_its_service_account() {
        let ca = Ca::new("kubernetes", 1).expect("a CA");
        let end = CancellationToken::new();
        let address = server(&ca, "127.0.0.1", &end).await;
        let dir = tempfile::tempdir().expect("a directory");
        let variable = |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some(address.ip().to_string()),
            "KUBERNETES_SERVICE_PORT" => Some(address.port().to_string()),
            _ => None,
        };
        let clients = || Clients::in_cluster(variable, dir.path(), &end);
        let missing = clients().expect_err("nothing is mounted").to_string();
        assert!(missing.contains("ca.crt"), "{missing}");
        fs::write(dir.path().join("ca.crt"), ca.cert_pem()).expect("written");
        fs::write(dir.path().join("token"), "of-the-pod\n").expect("written");
        let pod = clients().expect("clients");
        assert_eq!(
            shown(&pod.base).await,
            json!({"certificate": null, "token": "Bearer of-the-pod"})
        );
        assert_eq!(
            shown(&pod.bare).await,
            json!({"certificate": null, "token": null})
        );
        for empty in [None, Some(String::new())] {
            let none = Clients::in_cluster(|_| empty.clone(), dir.path(), &end);
            let why = none.expect_err("no pod").to_string();
            assert!(
                why.contains("KUBERNETES_SERVICE_HOST") && why.contains("--kubeconfig"),
                "{why}"
            );
        }
        end.cancel();
    }

    #[tokio::test]
    async fn an_address_of_ipv6_is_put_in_brackets() {
        let (ca, end) = (
            Ca::new("kubernetes", 1).expect("a CA"),
            CancellationToken::new(),
        );
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("ca.crt"), ca.cert_pem()).expect("written");
        fs::write(dir.path().join("token"), "t").expect("written");
        let variable = |name: &str| {
            Some(
                if name.ends_with("HOST") {
                    "fd00::1"
                } else {
                    "443"
                }
                .to_owned(),
            )
        };
        let clients = Clients::in_cluster(variable, dir.path(), &end).expect("clients");
        assert!(
            format!("{:?}", clients.base).contains("[fd00::1]:443"),
            "{:?}",
            clients.base
        );
    }

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
