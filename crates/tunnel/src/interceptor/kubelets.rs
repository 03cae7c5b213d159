//! Clients of kubelets and of what else is behind nodes, kept as long as they are used.

use super::{callers::Standing, target::Target};
use crate::link::Tunnels;
use arc_swap::ArcSwap;
use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use yurt_pki::{KeyPairPem, PkiError};
use yurt_transport::{Channel, Client, ClientOptions, Destination, Dialer, Dialing};

/// Clients kept; the one that was used longest ago makes room.
const MOST: usize = 16 << 10;
/// A client that nobody used for so long is dropped, with its connections; streams that are open go on.
const IDLE: Duration = Duration::from_secs(300);
/// From the dial to the end of the handshakes. Longer than the tunnel takes, so that its reasons are heard.
const CONNECT: Duration = Duration::from_secs(15);

const OPTIONS: ClientOptions = ClientOptions {
    connect_timeout: CONNECT,
    keepalive_interval: Duration::from_secs(15),
    keepalive_timeout: Duration::from_secs(10),
    max_idle: 32,
};

/// How kubelets are spoken to by TLS; replaced as a whole when a certificate is renewed.
#[derive(Clone, Debug)]
pub struct KubeletTls {
    tunnel: Arc<rustls::ClientConfig>,
    bearer: Arc<rustls::ClientConfig>,
}

impl KubeletTls {
    /// TLS to kubelets whose certificates are of `ca` (PEM); `None`: whatever they show is believed, for callers who said so. `own` is
    /// what the tunnel proves itself with: the proxy client's certificate.
    pub fn new(ca: Option<&str>, own: Option<&KeyPairPem>) -> Result<Self, PkiError> {
        let protocols = ["h2", "http/1.1"];
        let config = |own: Option<&KeyPairPem>| match ca {
            Some(ca) => yurt_pki::client_config(ca, own, &protocols),
            None => {
                let mut config =
                    rustls::ClientConfig::clone(&*yurt_pki::unverified_client_config(own)?);
                config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
                Ok(Arc::new(config))
            }
        };
        Ok(Self {
            tunnel: config(own)?,
            bearer: config(None)?,
        })
    }

    fn of(&self, standing: Standing) -> &Arc<rustls::ClientConfig> {
        match standing {
            Standing::Tunnel => &self.tunnel,
            Standing::Bearer => &self.bearer,
        }
    }
}

/// How a request goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Manner {
    Plain,
    /// gRPC in plain text is HTTP/2 by prior knowledge.
    PlainHttp2,
    Tls(Standing),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    to: Destination,
    authority: String,
    manner: Manner,
}

#[derive(Debug)]
struct Entry {
    client: Client,
    tls: Option<Arc<rustls::ClientConfig>>,
    used: Instant,
}

/// Opens streams by the tunnel.
#[derive(Debug)]
struct ByTunnel(Arc<dyn Tunnels>);

impl Dialer for ByTunnel {
    fn dial<'a>(&'a self, to: &'a Destination) -> Dialing<'a> {
        Box::pin(async move { self.0.open(to).await.map_err(io::Error::from) })
    }
}

/// The clients.
#[derive(Debug)]
pub(super) struct Kubelets {
    dialer: Arc<dyn Dialer>,
    tls: Arc<ArcSwap<KubeletTls>>,
    known: Mutex<HashMap<Key, Entry>>,
}

impl Kubelets {
    pub(super) fn new(tunnels: Arc<dyn Tunnels>, tls: Arc<ArcSwap<KubeletTls>>) -> Self {
        Self {
            dialer: Arc::new(ByTunnel(tunnels)),
            tls,
            known: Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        // Valid after every statement.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client for a target.
    pub(super) fn client(&self, target: &Target, manner: Manner) -> Client {
        let key = Key {
            to: target.to.clone(),
            authority: target.authority.clone(),
            manner,
        };
        let tls = match manner {
            Manner::Tls(standing) => Some(self.tls.load().of(standing).clone()),
            Manner::Plain | Manner::PlainHttp2 => None,
        };
        let mut known = self.known();
        if !known.contains_key(&key) && known.len() >= MOST {
            let oldest = known.iter().min_by_key(|(_, entry)| entry.used);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                known.remove(&oldest);
            }
        }
        let entry = known.entry(key).or_insert_with_key(|key| {
            let channel = match (&tls, manner) {
                (Some(tls), _) => Channel::Tls(tls.clone()),
                (None, Manner::PlainHttp2) => Channel::PlainHttp2,
                (None, _) => Channel::Plain,
            };
            let (to, dialer) = (key.to.clone(), self.dialer.clone());
            Entry {
                client: Client::through(&key.authority, dialer, to, channel, OPTIONS),
                tls: tls.clone(),
                used: Instant::now(),
            }
        });
        entry.used = Instant::now();
        if let Some(tls) = tls
            && !entry.tls.as_ref().is_some_and(|old| Arc::ptr_eq(old, &tls))
        {
            entry.client.set_tls(tls.clone());
            entry.tls = Some(tls);
        }
        entry.client.clone()
    }

    /// Drops what nobody used for long.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        self.known()
            .retain(|_, entry| now.duration_since(entry.used) < IDLE);
    }

    /// How many connections wait for the next request or carry some.
    pub(super) fn connections(&self) -> usize {
        self.known().values().map(|e| e.client.connections()).sum()
    }
}
