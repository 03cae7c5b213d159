//! Flags of the interceptor.

use super::{Callers, KubeletTls, Listeners};
use clap::Args;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};
use tokio::net::TcpListener;
use yurt_pki::{KeyPairPem, PkiError};

/// Flags about ports 10263 and 10264, and about kubelets.
#[derive(Args, Clone, Debug)]
pub struct InterceptorArgs {
    /// Port for callers that speak TLS, on the bind address.
    #[arg(long, default_value_t = 10263)]
    pub secure_port: u16,

    /// Port for callers that speak plain text.
    #[arg(long, default_value_t = 10264)]
    pub insecure_port: u16,

    /// Address of the port for plain text, where nobody proves who they are [default: the loopback address].
    #[arg(long)]
    pub insecure_bind_address: Option<IpAddr>,

    /// CA bundle (PEM) that kubelets' serving certificates must be of [default: the CA of the kubeconfig].
    #[arg(long, value_name = "FILE")]
    pub kubelet_certificate_authority: Option<PathBuf>,

    /// Believe every kubelet whatever its certificate: who gets between the agent and a kubelet reads and changes everything.
    #[arg(long)]
    pub kubelet_insecure: bool,

    /// Common names and organizations whose client certificates may use port 10263 [default: all but nodes and agents].
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub interceptor_callers: Vec<String>,

    /// Serve callers without certificate and token on port 10263, as OpenYurt does: whoever reaches it runs commands on every node.
    #[arg(long)]
    pub interceptor_allow_anonymous: bool,
}

impl InterceptorArgs {
    /// Where plain text is served.
    pub fn insecure_address(&self, bind: IpAddr) -> SocketAddr {
        let loopback = match bind {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::from(Ipv6Addr::LOCALHOST),
        };
        let address = self.insecure_bind_address.unwrap_or(loopback);
        SocketAddr::new(address, self.insecure_port)
    }

    /// Where TLS is served.
    pub fn secure_address(&self, bind: IpAddr) -> SocketAddr {
        SocketAddr::new(bind, self.secure_port)
    }

    /// Listens; an error says on which address that is not possible.
    pub async fn listen(&self, bind: IpAddr) -> io::Result<Listeners> {
        let listen = async |address: SocketAddr| {
            let listening = TcpListener::bind(address).await;
            listening.map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))
        };
        let insecure = self.insecure_address(bind);
        if !insecure.ip().is_loopback() {
            tracing::warn!(address = %insecure, "plain text is served beyond this host: whoever reaches it, reaches what nodes serve without asking who comes");
        }
        Ok(Listeners {
            secure: listen(self.secure_address(bind)).await?,
            insecure: listen(insecure).await?,
        })
    }

    /// Who may ask.
    pub fn callers(&self) -> Callers {
        if self.interceptor_allow_anonymous {
            tracing::warn!(
                "callers without credentials are served on port {}: whoever reaches it runs commands on every node",
                self.secure_port
            );
        }
        Callers {
            only: self.interceptor_callers.iter().cloned().collect(),
            anonymous: self.interceptor_allow_anonymous,
        }
    }

    /// How kubelets are spoken to. `cluster_ca` (PEM) is the kubeconfig's; `own` the proxy client's certificate.
    pub fn kubelet_tls(
        &self,
        cluster_ca: Option<&str>,
        own: Option<&KeyPairPem>,
    ) -> Result<KubeletTls, KubeletTlsError> {
        if self.kubelet_insecure {
            tracing::warn!("kubelets are believed whatever certificate they show");
            return Ok(KubeletTls::new(None, own)?);
        }
        let ca = match &self.kubelet_certificate_authority {
            Some(file) => std::fs::read_to_string(file).map_err(|error| KubeletTlsError::File {
                file: file.clone(),
                error,
            })?,
            None => cluster_ca.ok_or(KubeletTlsError::NoCa)?.to_owned(),
        };
        Ok(KubeletTls::new(Some(&ca), own)?)
    }
}

/// Why kubelets cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum KubeletTlsError {
    /// The CA bundle cannot be read.
    #[error("{}: {error}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// No CA is named.
    #[error(
        "no CA to know kubelets by: give --kubelet-certificate-authority, or a kubeconfig with a CA"
    )]
    NoCa,
    /// A certificate or key cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
}
