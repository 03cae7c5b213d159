//! Whom the hub believes, and with what it introduces itself: bootstrap tokens, discovery, CAs that the cluster tells of.

use super::{
    ALPN, Certificates, Credentials,
    api::{self, Credential},
    bundle::Bundle,
    discovery::{self, DiscoveryError, Trust},
    files,
    kubeconfig::{self, Given},
    plan,
    token::Token,
};
use crate::upstream::Upstreams;
use http::Method;

const ROOT_CA: &str = "kube-root-ca.crt";

/// Why a new bootstrap token was not taken.
#[derive(Debug, thiserror::Error)]
pub enum RejoinError {
    /// The caller's fault.
    #[error("the join token is not of the form abcdef.0123456789abcdef")]
    Token,
    /// The cluster is not believed with it, or not there.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    /// It cannot be kept.
    #[error("the bootstrap kubeconfig cannot be written: {0}")]
    Io(#[from] std::io::Error),
}

/// Why there is no certificate, and whether trying again soon can help.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) text: String,
    /// Somebody has to do something first.
    pub(super) resigned: bool,
}

impl Trouble {
    pub(super) fn passing(text: impl ToString) -> Self {
        let text = text.to_string();
        Self {
            text,
            resigned: false,
        }
    }

    pub(super) fn lasting(text: impl ToString) -> Self {
        let text = text.to_string();
        Self {
            text,
            resigned: true,
        }
    }
}

impl From<DiscoveryError> for Trouble {
    fn from(error: DiscoveryError) -> Self {
        match error {
            DiscoveryError::Unreachable(_) => Self::passing(error),
            _ => Self::lasting(error),
        }
    }
}

impl Certificates {
    /// What makes a CA believable that is not known yet.
    fn trust(credentials: &Credentials) -> Trust {
        if credentials.skip_verification && credentials.pins.is_empty() {
            Trust::SignatureOnly
        } else {
            Trust::Pinned(credentials.pins.clone())
        }
    }

    /// Believes further CAs, beside those that are believed until they end.
    fn believe(&self, learned: &Bundle) {
        let now = plan::now();
        let merged = {
            let mut state = self.state();
            let merged = match state.bundle.is_empty() {
                true => learned.clone(),
                false => match state.bundle.with(learned, now) {
                    Some(merged) => merged,
                    None => return,
                },
            };
            // One that TLS cannot work with must not spoil those it can.
            if let Err(error) = yurt_pki::client_config(&merged.pem(), None, &ALPN) {
                tracing::warn!(%error, "a CA of the cluster cannot be used");
                state.bundle_trouble = Some(error.to_string());
                return;
            }
            (state.bundle, state.bundle_trouble) = (merged.clone(), None);
            merged
        };
        let names = merged.summary().map(|(names, _)| names);
        tracing::info!(authorities = names, "the cluster's CAs");
        if self.inner.keeps_ca {
            let inner = &self.inner;
            if let Err(error) = inner.files.save_public(&inner.ca_file, &merged.pem()) {
                tracing::error!(path = %inner.ca_file.display(), %error, "the cluster's CA cannot be written");
                self.state().bundle_trouble = Some(error.to_string());
            }
        }
        self.apply(now);
        self.nudge();
    }

    /// Takes a new bootstrap token: the cluster that knows it is found, and the bootstrap kubeconfig written anew. Does nothing where
    /// somebody else keeps the client certificate.
    pub async fn rejoin(&self, text: &str) -> Result<(), RejoinError> {
        let token = Token::parse(text).ok_or(RejoinError::Token)?;
        let Some(credentials) = &self.inner.credentials else {
            return Ok(());
        };
        let known = self.state().bundle.clone();
        let servers = &self.inner.servers;
        let verified = match known.is_empty() {
            true => Err(DiscoveryError::NoPins),
            false => discovery::discover(servers, &token, &Trust::Known(known)).await,
        };
        let bundle = match verified {
            Ok(bundle) => bundle,
            Err(error @ (DiscoveryError::Unsigned(_) | DiscoveryError::Forged(_))) => {
                return Err(error.into());
            }
            // The known CA is none of this cluster's any more, or none is known.
            Err(error) => discovery::discover(servers, &token, &Self::trust(credentials))
                .await
                .map_err(|second| match second {
                    DiscoveryError::NoPins => error,
                    second => second,
                })?,
        };
        self.keep_token(credentials, &token, &bundle)?;
        self.believe(&bundle);
        self.nudge();
        tracing::info!(token = token.id(), "a new bootstrap token is in use");
        Ok(())
    }

    /// Keeps a token in the bootstrap kubeconfig, for the next start too.
    fn keep_token(
        &self,
        credentials: &Credentials,
        token: &Token,
        bundle: &Bundle,
    ) -> std::io::Result<()> {
        let server = self.inner.servers.first().map_or("", String::as_str);
        let text = kubeconfig::bootstrap(server, &bundle.pem(), token.as_str());
        self.state().token = Some(token.clone());
        self.inner.files.save_secret(&credentials.file, &text)
    }

    /// Bootstrap tokens, the newest first.
    pub(super) fn tokens(&self) -> Vec<Token> {
        let Some(credentials) = &self.inner.credentials else {
            return Vec::new();
        };
        let posted = self.state().token.clone();
        let of_file = given(credentials).and_then(|given| token_of(&given));
        let mut tokens = Vec::new();
        for token in [posted, of_file, credentials.token.clone()]
            .into_iter()
            .flatten()
        {
            if !tokens.contains(&token) {
                tokens.push(token);
            }
        }
        tokens
    }

    /// Finds out which CA to believe, the first time.
    pub(super) async fn establish_trust(&self) -> Result<(), Trouble> {
        let Some(credentials) = &self.inner.credentials else {
            return Err(Trouble::lasting("there are no bootstrap credentials"));
        };
        if let Some(given) = given(credentials)
            && let Some(pem) = authority_of(credentials, &given)
        {
            let bundle = Bundle::parse(&pem).map_err(|error| {
                Trouble::lasting(format!("{}: {error}", credentials.file.display()))
            })?;
            self.trusts(&bundle);
            return Ok(());
        }
        let mut trouble = Trouble::lasting(format!(
            "no CA is known and no way to one: neither --join-token nor {} is there; POST /v1/token takes a token",
            credentials.file.display()
        ));
        for token in self.tokens() {
            let trust = Self::trust(credentials);
            match discovery::discover(&self.inner.servers, &token, &trust).await {
                Ok(bundle) => {
                    tracing::info!(
                        token = token.id(),
                        "the cluster is the one that knows the token"
                    );
                    if let Err(error) = self.keep_token(credentials, &token, &bundle) {
                        let path = credentials.file.display();
                        tracing::warn!(%path, %error, "the bootstrap kubeconfig cannot be written");
                    }
                    self.trusts(&bundle);
                    return Ok(());
                }
                Err(error) => trouble = error.into(),
            }
        }
        Err(trouble)
    }

    /// There is a CA now: what kept it from being known is over.
    fn trusts(&self, bundle: &Bundle) {
        self.state().client.trouble = None;
        self.believe(bundle);
    }

    /// Takes over CAs that the cluster tells of. It does so over a connection that is verified with those that are believed already.
    pub(super) async fn learn_authorities(&self, upstreams: &Upstreams) {
        let path = format!(
            "/api/v1/namespaces/{}/configmaps/{ROOT_CA}",
            self.inner.namespace
        );
        let get = async |credential: &Credential, path: &str| {
            api::call(upstreams, credential, Method::GET, path, None).await
        };
        let mut learned = None;
        if upstreams.identified()
            && let Ok(map) = get(&Credential::Node, &path).await
        {
            let pem = map["data"]["ca.crt"].as_str().unwrap_or_default();
            learned = Bundle::parse(pem).ok();
        }
        if learned.is_none() {
            let info = get(&Credential::Anonymous, discovery::PATH).await;
            learned = info
                .ok()
                .and_then(|map| discovery::authorities(map.to_string().as_bytes()).ok());
        }
        if let Some(learned) = learned {
            self.believe(&learned);
        }
    }
}

/// The bootstrap kubeconfig; `None` when there is none, or none that can be read.
fn given(credentials: &Credentials) -> Option<Given> {
    let text = files::read(&credentials.file).ok()?;
    Given::parse(&text)
        .inspect_err(|error| {
            tracing::warn!(path = %credentials.file.display(), error, "the bootstrap kubeconfig cannot be read");
        })
        .ok()
}

fn token_of(given: &Given) -> Option<Token> {
    match (&given.token, &given.token_file) {
        (Some(token), _) => Token::parse(token),
        (None, Some(file)) => Token::parse(&files::read(file).ok()?),
        (None, None) => None,
    }
}

fn authority_of(credentials: &Credentials, given: &Given) -> Option<String> {
    match (&given.ca, &given.ca_file) {
        (Some(pem), _) => Some(pem.clone()),
        (None, Some(file)) => files::read(&credentials.file.with_file_name(file)).ok(),
        (None, None) => None,
    }
}
