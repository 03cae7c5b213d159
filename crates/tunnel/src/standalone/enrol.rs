//! The agent's side: joins by its token, keeps what it got, renews it in time.

use super::{
    ALPN_JOIN, ca_file,
    join::{self, Answer, JoinError, PATIENCE, Question},
    token::{JoinToken, Pin},
};
use crate::{
    agent::{
        address::{ServerAddress, resolve},
        fleet::Door,
        proxy::Proxy,
    },
    allow::Mark,
    certificates::{CertificateMetrics, Credentials, Identity, Kept},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::{ClientConfig, pki_types::ServerName};
use std::{io, path::PathBuf, sync::Arc, time::Duration};
use tokio::{net::TcpStream, sync::watch, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;
use yurt_pki::{
    KeyPairPem, Profile, Request, public_key_digest, renewal,
    store::{PUBLIC, Pair, PairStore, read_text, write_whole},
};
use yurt_transport::Destination;

/// The longest that the certificate is not looked at; clocks jump.
const DOZE: Duration = Duration::from_secs(60);

/// An agent that gets its certificate from a standalone server.
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// Its name.
    pub node: String,
    /// Where servers are.
    pub servers: Vec<ServerAddress>,
    /// On the way.
    pub proxy: Option<Proxy>,
    /// Where certificate and CA are kept.
    pub directory: PathBuf,
    /// Until there is a certificate.
    pub token: Option<JoinToken>,
    /// What the certificate must say.
    pub wanted: Profile,
    /// Where it is told.
    pub metrics: CertificateMetrics,
    /// On everything that is connected.
    pub(crate) mark: Mark,
}

/// Joins beside everything else, and keeps the certificate current until `shutdown`. An error when there is no way to one.
pub fn enrol(enrolment: Enrolment, shutdown: CancellationToken) -> Result<Kept, JoinError> {
    let store = PairStore::new(&enrolment.directory, Identity::Agent.file_prefix());
    let current = store.current();
    let ca = read_text(&ca_file(&enrolment.directory)).unwrap_or_default();
    let pair = Pair::read(&current, &current)
        .ok()
        .filter(|_| !ca.is_empty());
    let held = Credentials { pair, ca };
    if enrolment.token.is_none() && may_renew(&held, &enrolment.wanted).is_none() {
        return Err(JoinError::NoToken);
    }
    enrolment.metrics.shown(Identity::Agent, &held, false);
    let (show, shown) = watch::channel(Arc::new(held));
    tokio::spawn(shutdown.run_until_cancelled_owned(keep(enrolment, store, show)));
    Ok(Kept::following(shown))
}

/// The certificate that a new one can be had with.
fn may_renew<'a>(held: &'a Credentials, wanted: &Profile) -> Option<&'a Pair> {
    held.pair.as_ref().filter(|pair| {
        let validity = renewal::validity(&pair.leaf, renewal::now());
        validity != renewal::Validity::Expired && pair.leaf.dns == wanted.dns
    })
}

async fn keep(enrolment: Enrolment, store: PairStore, show: watch::Sender<Arc<Credentials>>) {
    let mut luck = fastrand::f64();
    let mut failures = 0u32;
    let mut told = String::new();
    loop {
        let held = show.borrow().clone();
        let leaf = held.pair.as_ref().map(|pair| &pair.leaf);
        let Some(reason) = renewal::reason(leaf, &enrolment.wanted, renewal::now(), luck) else {
            failures = 0;
            tokio::time::sleep(DOZE).await;
            continue;
        };
        tracing::info!(%reason, "a certificate is asked for");
        match enrolment.obtain(&held, &store).await {
            Ok(got) => {
                luck = fastrand::f64();
                told.clear();
                enrolment.metrics.shown(Identity::Agent, &got, true);
                show.send_replace(Arc::new(got));
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                enrolment.metrics.failed(Identity::Agent);
                let text = error.to_string();
                // Said once.
                if told != text {
                    tracing::warn!(error = text, "no certificate for now");
                    told = text;
                }
                let pause = renewal::pause(failures, !error.is_passing(), fastrand::f64());
                tokio::time::sleep(pause).await;
            }
        }
    }
}

impl Enrolment {
    /// Asks once for a new certificate.
    #[cfg(test)]
    pub(super) async fn once(&self) -> Result<(), JoinError> {
        let store = PairStore::new(&self.directory, Identity::Agent.file_prefix());
        let current = store.current();
        let held = Credentials {
            pair: Pair::read(&current, &current).ok(),
            ca: read_text(&ca_file(&self.directory)).unwrap_or_default(),
        };
        self.obtain(&held, &store).await.map(drop)
    }

    /// The same key until there is a certificate for it: an answer that was lost costs no name.
    fn request(&self, store: &PairStore) -> Result<Request, JoinError> {
        if let Some(made) = store
            .read_pending()
            .filter(|made| made.asks_for(&self.wanted))
        {
            return Ok(made);
        }
        let made = yurt_pki::request(&self.wanted)?;
        store.save_pending(&made)?;
        Ok(made)
    }

    async fn obtain(
        &self,
        held: &Credentials,
        store: &PairStore,
    ) -> Result<Credentials, JoinError> {
        let made = self.request(store)?;
        let resolved = resolve(&self.servers, self.proxy.is_some()).await;
        let nobody = match resolved.failed.first_key_value() {
            Some((server, why)) => format!("{server}: {why}"),
            None => "no address of one is known".to_owned(),
        };
        let mut failure = JoinError::Io(io::Error::new(io::ErrorKind::NotFound, nobody));
        for door in resolved.doors {
            let asked = timeout(PATIENCE * 2, self.ask(&door, held, &made.request)).await;
            let (certificate, ca) =
                match asked.unwrap_or_else(|elapsed| Err(JoinError::Io(elapsed.into()))) {
                    Ok(got) => got,
                    // What one server refuses says more than that another is away.
                    Err(error) => {
                        if failure.is_passing() {
                            failure = error;
                        }
                        continue;
                    }
                };
            let pair = Pair::of(KeyPairPem {
                cert: certificate,
                key: made.key.clone(),
            })?;
            let left = renewal::reason(Some(&pair.leaf), &self.wanted, renewal::now(), 1.0);
            if let Some(reason) = left {
                return Err(JoinError::Refused(format!("what was signed: {reason}")));
            }
            write_whole(&ca_file(&self.directory), ca.as_bytes(), PUBLIC)?;
            store.save(&pair.pem, renewal::now())?;
            store.drop_pending();
            return Ok(Credentials {
                pair: Some(pair),
                ca,
            });
        }
        Err(failure)
    }

    async fn connect(
        &self,
        door: &Door,
        config: Arc<ClientConfig>,
    ) -> io::Result<TlsStream<TcpStream>> {
        let stream = match &self.proxy {
            Some(proxy) => {
                let to = Destination {
                    node: None,
                    host: door.host.clone(),
                    port: door.port,
                };
                proxy.connect(&to, self.mark).await?
            }
            None => self.mark.connect_to(&door.host, door.port).await?,
        };
        let name = ServerName::try_from(door.name.clone()).map_err(io::Error::other)?;
        TlsConnector::from(config).connect(name, stream).await
    }

    /// Certificate and CA, from one server.
    async fn ask(
        &self,
        door: &Door,
        held: &Credentials,
        request: &str,
    ) -> Result<(String, String), JoinError> {
        let (mut stream, token, ca) = match (may_renew(held, &self.wanted), &self.token) {
            (Some(_), _) => {
                let config = held.client_config(&[ALPN_JOIN])?;
                (self.connect(door, config).await?, None, held.ca.clone())
            }
            (None, Some(token)) => {
                let mut config = ClientConfig::clone(&*yurt_pki::unverified_client_config(None)?);
                config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
                let stream = self.connect(door, Arc::new(config)).await?;
                // Nothing is said before it is clear to whom.
                let ca = pinned(&stream, token.pin(), &door.name)?;
                let token = (token.id().to_owned(), token.secret().to_owned());
                (stream, Some(token), ca)
            }
            (None, None) => return Err(JoinError::NoToken),
        };
        let question = Question {
            node: self.node.clone(),
            token,
            request: request.to_owned(),
        };
        join::write(&mut stream, &question).await?;
        match join::read(&mut stream).await? {
            Answer::Issued(certificate) => Ok((certificate, ca)),
            Answer::Refused(why) => Err(JoinError::Refused(why)),
            Answer::Trouble(why) => Err(JoinError::Trouble(why)),
        }
    }
}

/// The CA that the token names, when it is the server's; PEM.
fn pinned(stream: &TlsStream<TcpStream>, pin: Pin, name: &str) -> Result<String, JoinError> {
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let mut shown = chain.iter();
    let ca = shown
        .find(|der| public_key_digest(der).is_ok_and(|digest| digest == pin))
        .ok_or(JoinError::Unpinned)?;
    let ca = pem(ca);
    let shown: String = chain.iter().map(|der| pem(der)).collect();
    yurt_pki::verify_server(&ca, &shown, name, renewal::now())?;
    Ok(ca)
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy);
    let lines: Vec<_> = lines.collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}
