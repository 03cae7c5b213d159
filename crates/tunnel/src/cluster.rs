//! The API server, for those parts of the tunnel that ask it: reached anew whenever credentials may have changed.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use yurt_controller::{
    access::{AccessError, Clients, Server},
    kube::Kube,
    kubeconfig::Access,
};
use yurt_pki::store::read_text;

/// How long a call to a hub may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The CA that every pod is given.
const POD_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

/// How an API server is reached.
#[derive(Clone, Debug)]
pub enum Way {
    /// By a kubeconfig, whose files may be rotated.
    Kubeconfig(PathBuf),
    /// As a pod, by its service account.
    Pod,
    /// The same, at this `host:port`.
    PodAt(String),
    /// Plain HTTP at a hub (`host:port`), which knows its callers.
    Hub(String),
    /// A client that is there already, and the CA (PEM) that it believes.
    Given(Kube, String),
}

impl Way {
    /// `host:port` of the API server, where that is told beforehand.
    pub(crate) fn authority(&self) -> Option<String> {
        match self {
            Self::Kubeconfig(path) => Some(Access::read(path).ok()?.authority),
            Self::Pod => {
                let variable = |name: &str| std::env::var(name).ok();
                let host = variable("KUBERNETES_SERVICE_HOST")?;
                let port = variable("KUBERNETES_SERVICE_PORT")?;
                Some(match host.contains(':') {
                    true => format!("[{host}]:{port}"),
                    false => format!("{host}:{port}"),
                })
            }
            Self::Hub(authority) | Self::PodAt(authority) => Some(authority.clone()),
            Self::Given(..) => None,
        }
    }
}

/// An API server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cluster {
    way: Way,
    /// The client of a pod, whose token is followed.
    pod: Arc<Mutex<Option<Kube>>>,
    shutdown: CancellationToken,
}

impl Cluster {
    /// Reached by `way`; tokens in files are followed until `shutdown`.
    pub fn new(way: Way, shutdown: CancellationToken) -> Self {
        Self {
            way,
            pod: Arc::default(),
            shutdown,
        }
    }

    /// A client with the credentials of now.
    pub fn client(&self) -> Result<Kube, AccessError> {
        match &self.way {
            Way::Kubeconfig(path) => {
                Ok(Clients::of(&Server::Kubeconfig(path.clone()), &self.shutdown)?.base)
            }
            Way::Pod | Way::PodAt(_) => {
                let mut pod = self.pod.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(kube) = &*pod {
                    return Ok(kube.clone());
                }
                let server = match &self.way {
                    Way::PodAt(authority) => Server::InClusterAt(authority.clone()),
                    _ => Server::InCluster,
                };
                let kube = Clients::of(&server, &self.shutdown)?.base;
                Ok(pod.insert(kube).clone())
            }
            Way::Hub(authority) => Ok(Kube::new(authority, None, None, TIMEOUT)),
            Way::Given(kube, _) => Ok(kube.clone()),
        }
    }

    /// The CAs that the API server is verified with, PEM; `None`: it is not, or they cannot be read.
    pub fn authorities(&self) -> Option<String> {
        match &self.way {
            Way::Kubeconfig(path) => Access::read(path).ok()?.ca,
            Way::Pod | Way::PodAt(_) => read_text(Path::new(POD_CA)).ok(),
            Way::Hub(_) => None,
            Way::Given(_, ca) => Some(ca.clone()).filter(|ca| !ca.is_empty()),
        }
    }

    /// Changes when a client of before may show credentials that do not count any more.
    pub(crate) fn epoch(&self) -> Option<String> {
        match &self.way {
            Way::Kubeconfig(path) => {
                let access = Access::read(path).ok()?;
                Some(format!(
                    "{:?} {:?}",
                    access.certificate.map(|pair| pair.cert),
                    access.token
                ))
            }
            _ => None,
        }
    }
}
