//! The server's certificate authority: its key, the certificates that it issues, and whom they were issued to.

use super::{
    ALPN_JOIN,
    join::{self, Answer, PATIENCE, Question},
    token::{Pin, TokenBook, TokenError, hex},
};
use crate::certificates::{
    CertificateMetrics, Credentials, Identity, Kept,
    shape::{self, AGENT, TUNNEL},
};
use rustls::server::Acceptor;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::{Semaphore, watch},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use yurt_pki::{
    BACKDATE, Ca, Callers, KeyPairPem, Leaf, PkiError, Profile, SigningRequest, Usages,
    certs_from_pem, public_key_digest, renewal,
    store::{Pair, PairStore, SECRET, read_text, write_whole},
};

const CA_DAYS: u32 = 3650;
const SERVER_DAYS: u32 = 90;
/// How long agents' certificates are good.
const AGENT_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Agents that join at a time.
const JOINING: usize = 16;
/// Most agents that are known.
const MOST_AGENTS: usize = 10_000;
/// Most addresses of one agent.
const MOST_ADDRESSES: usize = 16;
/// The longest that the server's certificate is not looked at; clocks jump.
const DOZE: Duration = Duration::from_secs(60);

/// Why a standalone server cannot run, or a command not be done.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Its files cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its CA cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// Tokens.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// Whom a certificate was issued to.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
struct Agent {
    /// SHA-256 of the public key.
    key: String,
    /// Addresses that it is asked for by.
    addresses: Vec<IpAddr>,
}

/// The authority of a standalone server. Clones are the same.
#[derive(Clone, Debug)]
pub struct Authority {
    ca: Arc<Ca>,
    pin: Pin,
    directory: PathBuf,
    tokens: TokenBook,
    joining: Arc<Semaphore>,
    /// One agent at a time is written down.
    agents: Arc<Mutex<()>>,
}

/// Why an agent gets nothing.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    No(String),
    #[error("{0}")]
    Trouble(String),
}

impl Refusal {
    fn trouble(error: impl std::fmt::Display) -> Self {
        Self::Trouble(error.to_string())
    }
}

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Io(error) => Self::trouble(error),
            error => Self::No(error.to_string()),
        }
    }
}

impl Authority {
    /// Reads the CA of a directory, or makes it.
    pub fn open(directory: &Path) -> Result<Self, AuthorityError> {
        let path = directory.join("ca.pem");
        let failed = |source| AuthorityError::Io {
            path: path.clone(),
            source,
        };
        let ca = match read_text(&path) {
            Ok(text) => Ca::from_pem(&KeyPairPem {
                cert: text.clone(),
                key: text,
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let ca = Ca::new("yurt-tunnel", CA_DAYS)?;
                let pem = ca.to_pem();
                let text = format!("{}\n{}", pem.cert.trim_end(), pem.key);
                write_whole(&path, text.as_bytes(), SECRET).map_err(failed)?;
                tracing::info!(path = %path.display(), "a certificate authority was made");
                ca
            }
            Err(error) => return Err(failed(error)),
        };
        let der = certs_from_pem(&ca.cert_pem())?;
        Ok(Self {
            pin: public_key_digest(der.first().map_or(&[][..], |der| der))?,
            ca: Arc::new(ca),
            directory: directory.to_owned(),
            tokens: TokenBook::at(directory),
            joining: Arc::new(Semaphore::new(JOINING)),
            agents: Arc::default(),
        })
    }

    /// By what tokens name it: SHA-256 of its public key.
    pub fn pin(&self) -> [u8; 32] {
        self.pin
    }

    /// The CA's certificate, PEM.
    pub fn ca(&self) -> String {
        self.ca.cert_pem()
    }

    /// Keeps the server's own certificate, for names that may change, until `shutdown`.
    pub fn serving(
        &self,
        mut wanted: watch::Receiver<Option<Profile>>,
        metrics: CertificateMetrics,
        shutdown: CancellationToken,
    ) -> Kept {
        let store = PairStore::new(&self.directory, Identity::Server.file_prefix());
        let current = store.current();
        let mut held = Credentials {
            pair: Pair::read(&current, &current).ok(),
            ca: self.ca(),
        };
        let luck = fastrand::f64();
        // The names of the start are served from the start.
        let first = wanted.borrow_and_update().clone();
        if let Some(profile) = first {
            self.renew(&mut held, &profile, &store, luck, &metrics);
        }
        metrics.shown(Identity::Server, &held, false);
        let (show, shown) = watch::channel(Arc::new(held));
        let this = self.clone();
        tokio::spawn(shutdown.run_until_cancelled_owned(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(DOZE) => {}
                    Ok(()) = wanted.changed() => {}
                }
                let profile = wanted.borrow_and_update().clone();
                let mut held = Credentials::clone(&show.borrow());
                if let Some(profile) = profile
                    && this.renew(&mut held, &profile, &store, luck, &metrics)
                {
                    show.send_replace(Arc::new(held));
                }
            }
        }));
        Kept::following(shown)
    }

    fn renew(
        &self,
        held: &mut Credentials,
        wanted: &Profile,
        store: &PairStore,
        luck: f64,
        metrics: &CertificateMetrics,
    ) -> bool {
        let now = renewal::now();
        let leaf = held.pair.as_ref().map(|pair| &pair.leaf);
        let surplus = leaf.is_some_and(|leaf| renewal::surplus(leaf, wanted).is_some());
        // One of a CA before this one.
        let name = leaf.and_then(|leaf| Some(leaf.ips.first()?.to_string()));
        let foreign = held.pair.as_ref().zip(name).is_some_and(|(pair, name)| {
            yurt_pki::verify_server(&held.ca, &pair.pem.cert, &name, now).is_err()
        });
        if renewal::reason(leaf, wanted, now, luck).is_none() && !surplus && !foreign {
            return false;
        }
        let profile = Profile {
            days: SERVER_DAYS,
            ..wanted.clone()
        };
        match self.ca.issue(&profile).and_then(Pair::of) {
            Ok(pair) => {
                if let Err(error) = store.save(&pair.pem, now) {
                    tracing::error!(%error, "the server's certificate is in use but cannot be written");
                }
                held.pair = Some(pair);
                metrics.shown(Identity::Server, held, true);
                true
            }
            Err(error) => {
                metrics.failed(Identity::Server);
                tracing::error!(%error, "the server's certificate cannot be made");
                false
            }
        }
    }

    /// The TLS configuration for connections that offer [`ALPN_JOIN`]: the server's certificate with the CA behind it, to be pinned.
    pub fn join_config(&self, kept: &Kept) -> Result<Arc<rustls::ServerConfig>, PkiError> {
        let held = kept.current();
        let own = held.pair.as_ref().ok_or_else(|| PkiError::Invalid {
            what: "server certificate".to_owned(),
            why: "there is none yet".to_owned(),
        })?;
        let chain = KeyPairPem {
            cert: format!("{}\n{}", own.pem.cert.trim_end(), self.ca()),
            key: own.pem.key.clone(),
        };
        let ca = self.ca();
        let callers = Callers::Invited(&ca);
        let config = yurt_pki::server_config_under(kept.policy(), &chain, callers, false)?;
        let mut config = rustls::ServerConfig::clone(&config);
        config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
        Ok(Arc::new(config))
    }

    /// Answers an agent that joins or renews, on a connection with [`Authority::join_config`]. Bounded in time.
    pub async fn answer<S>(&self, mut stream: TlsStream<S>) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let chain = stream.get_ref().1.peer_certificates();
        let shown = chain.and_then(|chain| Leaf::of(chain.first()?).ok());
        let exchange = tokio::time::timeout(PATIENCE, async {
            let _turn = self.joining.acquire().await;
            let question: Question = join::read(&mut stream).await?;
            let (this, node) = (self.clone(), question.node.clone());
            let judged = tokio::task::spawn_blocking(move || this.judge(&question, shown.as_ref()));
            let answer = match judged.await.map_err(io::Error::other)? {
                Ok(certificate) => {
                    tracing::info!(node, "an agent got a certificate");
                    Answer::Issued(certificate)
                }
                Err(Refusal::No(why)) => {
                    tracing::warn!(node, why, "an agent was refused a certificate");
                    Answer::Refused(why)
                }
                Err(Refusal::Trouble(why)) => {
                    tracing::error!(node, why, "an agent gets no certificate");
                    Answer::Trouble(why)
                }
            };
            join::write(&mut stream, &answer).await?;
            // It was said; whether the other end still hears the goodbye does not matter.
            let _ = stream.shutdown().await;
            Ok(())
        });
        exchange.await.unwrap_or_else(|elapsed| Err(elapsed.into()))
    }

    /// Accepts TLS: with `join` ([`Authority::join_config`]) for whoever offers [`ALPN_JOIN`], with `usual` for all others, who have
    /// certificates already. Whoever calls bounds the wait.
    pub async fn accept<S>(
        stream: S,
        usual: Arc<rustls::ServerConfig>,
        join: Arc<rustls::ServerConfig>,
    ) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let greeted = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let offered = greeted.client_hello().alpn();
        let joins = offered.is_some_and(|mut offered| offered.any(|name| name == ALPN_JOIN));
        greeted.into_stream(if joins { join } else { usual }).await
    }

    fn judge(&self, question: &Question, shown: Option<&Leaf>) -> Result<String, Refusal> {
        let no = |why: &str| Err(Refusal::No(why.to_owned()));
        let request = SigningRequest::from_pem(&question.request)
            .map_err(|error| Refusal::No(error.to_string()))?;
        // The shape is compared as approvers in a cluster do.
        let expected = shape::agent(&question.node, request.ips.iter().copied());
        let [name] = expected.dns.as_slice() else {
            return no("the agent's name is none that a certificate can be for");
        };
        let is_agents = request.subject.user == AGENT
            && request.subject.groups == [TUNNEL]
            && request.dns == expected.dns
            && request.ips.len() <= MOST_ADDRESSES
            && request.emails.is_empty()
            && request.uris.is_empty();
        if !is_agents {
            return no("the request is not for an agent of this name");
        }
        let renews = shown.is_some_and(|leaf| {
            leaf.identity.user == AGENT
                && leaf.identity.groups == [TUNNEL]
                && leaf.dns == expected.dns
        });
        let certificate = self.sign(&request)?;
        let der = certs_from_pem(&certificate).map_err(Refusal::trouble)?;
        let key = public_key_digest(der.first().map_or(&[][..], |der| der));
        let key = hex(&key.map_err(Refusal::trouble)?);
        let may_replace = match &question.token {
            Some((id, secret)) => {
                let now = renewal::now();
                self.tokens.redeem(id, secret, &question.node, now)?
            }
            None if renews => true,
            None => return no("a token is needed, or the certificate before"),
        };
        let agent = Agent {
            key,
            addresses: request.ips.clone(),
        };
        self.write_down(name, agent, may_replace)?;
        Ok(certificate)
    }

    fn sign(&self, request: &SigningRequest) -> Result<String, Refusal> {
        let usages = Usages::from_names(Identity::Agent.usages()).map_err(Refusal::trouble)?;
        let now = SystemTime::now();
        self.ca
            .sign_request(request, &usages, now - BACKDATE, now + AGENT_LIFE)
            .map_err(Refusal::trouble)
    }

    /// A name, once given, is its bearer's: another key gets it only by a token for this node alone. Nor may an agent be asked for by
    /// another's addresses.
    fn write_down(&self, name: &str, agent: Agent, may_replace: bool) -> Result<(), Refusal> {
        let _turn = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.directory.join("agents.json");
        let mut agents: BTreeMap<String, Agent> = match read_text(&path) {
            Ok(text) => serde_json::from_str(&text).map_err(Refusal::trouble)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(Refusal::trouble(error)),
        };
        match agents.get(name) {
            Some(known) if known.key != agent.key && !may_replace => {
                return Err(Refusal::No(format!(
                    "{name} has joined already, with another key; a token made with --node {name} lets it join anew"
                )));
            }
            None if agents.len() >= MOST_AGENTS => {
                let why = format!("{MOST_AGENTS} agents have joined already");
                return Err(Refusal::No(why));
            }
            _ => {}
        }
        for (other, known) in agents.iter().filter(|(other, _)| *other != name) {
            let mut own = agent.addresses.iter();
            if let Some(address) = own.find(|address| known.addresses.contains(address)) {
                return Err(Refusal::No(format!("{address} is an address of {other}")));
            }
        }
        if agents.get(name) != Some(&agent) {
            agents.insert(name.to_owned(), agent);
            let text = serde_json::to_string(&agents).map_err(Refusal::trouble)?;
            write_whole(&path, text.as_bytes(), SECRET).map_err(Refusal::trouble)?;
        }
        Ok(())
    }
}
