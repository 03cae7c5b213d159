//! What goes on beside the running hub: files are followed, ending certificates renewed, CAs and the names in demand learned.

use super::{
    Certificates, Pair, Source,
    api::{self, CallError, Credential},
    plan::{self, Kind, Reason},
    signing,
    trust::Trouble,
};
use crate::upstream::Upstreams;
use http::{Method, StatusCode};
use std::{
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio_util::sync::CancellationToken;
use yurt_controller::signing_request::SigningError;
use yurt_pki::{KeyPairPem, Profile, Request};
use yurt_transport::ClientError;

/// Between looks at files and at the clock, which may jump.
const LOOK: Duration = Duration::from_secs(5);
/// The longest a renewal that is due sleeps.
const DOZE: Duration = Duration::from_secs(60);
/// Connections of an old certificate are gone so many seconds before it ends.
const MARGIN: i64 = 60;
/// Between looks at the cluster's CAs and the service `kubernetes`, when the link does not change.
const LEARN: Duration = Duration::from_secs(600);
/// Links that flap must not cause questions without end.
const LEARN_PAUSE: Duration = Duration::from_secs(2);
const SERVICE: &str = "/api/v1/namespaces/default/services/kubernetes";

impl From<SigningError> for Trouble {
    fn from(error: SigningError) -> Self {
        match error {
            SigningError::Forbidden(_) => Self::lasting(format!(
                "{error}; ClusterRole system:node-bootstrapper allows it"
            )),
            error if error.is_passing() => Self::passing(error),
            error => Self::lasting(error),
        }
    }
}

impl Certificates {
    /// Keeps the certificates until `shutdown`, and `upstreams` supplied with them.
    pub async fn keep(self, upstreams: Arc<Upstreams>, shutdown: CancellationToken) {
        if self.inner.upstreams.set(upstreams.clone()).is_err() {
            return;
        }
        // Time has gone by since they were read.
        self.state().applied.cloud = None;
        self.apply(plan::now());
        let everything = async {
            tokio::join!(
                self.follow(&upstreams),
                self.doubt(&upstreams),
                self.renew(Kind::Client, &upstreams),
                self.renew(Kind::Serving, &upstreams),
                self.learn(&upstreams),
            )
        };
        tokio::select! {
            _ = everything => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Takes over changed files, and what the time changes.
    async fn follow(&self, upstreams: &Upstreams) {
        let mut known = self.stamps();
        loop {
            tokio::time::sleep(self.until_next_end().min(LOOK)).await;
            let now = self.stamps();
            if now != known {
                known = now;
                let this = self.clone();
                // Only fails when the runtime ends.
                let _ = tokio::task::spawn_blocking(move || this.reload()).await;
                self.nudge();
            }
            let now = plan::now();
            self.apply(now);
            let retire = {
                let mut state = self.state();
                state.retire_at.take_if(|at| *at <= now).is_some()
            };
            if retire {
                tracing::info!("connections of the former client certificate end");
                upstreams.end_retired();
            }
        }
    }

    fn is_refused(&self, kind: Kind) -> bool {
        let state = self.state();
        let pair = state.client.pair.as_ref();
        kind == Kind::Client && pair.is_some_and(|pair| state.refusal(pair).is_some())
    }

    /// Finds out whether the cloud accepts the node's certificate, when that is doubtful: it may go by another clock or by other
    /// CAs than this node. One that it refuses is as none; it is shown again now and then.
    async fn doubt(&self, upstreams: &Upstreams) {
        loop {
            tokio::select! {
                () = upstreams.doubted() => {}
                () = tokio::time::sleep(DOZE), if self.is_refused(Kind::Client) => {}
            }
            let pair = self.state().client.pair.clone();
            let Some(pair) = pair else { continue };
            let refusal = self.examine(&pair).await;
            let changed = {
                let mut state = self.state();
                let known = state.refusal(&pair).is_some();
                match refusal {
                    Some(Some(why)) if !known => {
                        tracing::warn!(why, "the cloud does not accept the node's certificate");
                        state.refused = Some((pair.pem.cert, why));
                        true
                    }
                    Some(None) if known => {
                        state.refused = None;
                        true
                    }
                    _ => false,
                }
            };
            if changed {
                self.apply(plan::now());
                self.nudge();
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Why the cloud refuses a certificate, if it does; `None` when nobody answers.
    async fn examine(&self, pair: &Pair) -> Option<Option<String>> {
        let ca = self.state().bundle.pem();
        let tls = |own| yurt_pki::client_config(&ca, own, &["http/1.1"]);
        let path = format!("/api/v1/nodes/{}", self.inner.node);
        for server in &self.inner.servers {
            let with = tls(Some(&pair.pem)).ok()?;
            match api::ask(server, with, &path).await {
                Ok((StatusCode::UNAUTHORIZED, _)) => {
                    return Some(Some(format!("{server} answers 401")));
                }
                Ok(_) => return Some(None),
                // The certificate of either side.
                Err(error @ ClientError::Tls { .. }) => {
                    let without = tls(None).ok()?;
                    if api::ask(server, without, "/livez").await.is_ok() {
                        return Some(Some(error.to_string()));
                    }
                }
                Err(_) => {}
            }
        }
        None
    }

    /// When each file last changed.
    fn stamps(&self) -> Vec<Option<SystemTime>> {
        let pairs = [Kind::Client, Kind::Serving].map(|kind| self.pair_files(kind));
        let mut paths: Vec<PathBuf> = pairs
            .into_iter()
            .flatten()
            .flat_map(|pair| [pair.cert, pair.key])
            .collect();
        paths.push(self.inner.ca_file.clone());
        paths.extend(self.inner.credentials.iter().map(|c| c.file.clone()));
        let stamp = |path: &PathBuf| std::fs::metadata(path).and_then(|m| m.modified()).ok();
        paths.iter().map(stamp).collect()
    }

    fn until_next_end(&self) -> Duration {
        let end = self.state().client.pair.as_ref().map(|p| p.leaf.not_after);
        let left = end.map(|end| end.saturating_sub(plan::now()));
        match left.and_then(|left| u64::try_from(left).ok()) {
            Some(left) if left > 0 => Duration::from_secs(left),
            _ => LOOK,
        }
    }

    /// Keeps one certificate good.
    async fn renew(&self, kind: Kind, upstreams: &Upstreams) {
        if *self.source(kind) != Source::Requested {
            return;
        }
        let mut luck = fastrand::f64();
        let mut failures = 0u32;
        let mut nudges = self.inner.nudged.subscribe();
        let mut links = upstreams.changes();
        loop {
            nudges.borrow_and_update();
            links.borrow_and_update();
            let wanted = self.wanted(kind);
            let leaf = self
                .state()
                .held(kind)
                .pair
                .as_ref()
                .map(|p| p.leaf.clone());
            let reason = plan::reason(leaf.as_ref(), &wanted, plan::now(), luck)
                .or_else(|| self.is_refused(kind).then_some(Reason::Refused));
            let Some(reason) = reason else {
                failures = 0;
                let left = leaf.map_or(0, |leaf| plan::renew_at(&leaf, luck) - plan::now());
                let left = Duration::from_secs(u64::try_from(left).unwrap_or(0).max(1));
                tokio::select! {
                    () = tokio::time::sleep(left.min(DOZE)) => {}
                    _ = nudges.changed() => {}
                }
                continue;
            };
            if let Some(waiting) = self.obstacle(kind, upstreams) {
                self.state().held(kind).waiting = Some(waiting.into());
                tokio::select! {
                    () = tokio::time::sleep(DOZE) => {}
                    _ = links.changed() => {}
                    _ = nudges.changed() => {}
                }
                continue;
            }
            let obtained = self.obtain(kind, &reason, upstreams).await;
            self.state().held(kind).waiting = None;
            let trouble = match obtained {
                Ok(()) => {
                    (failures, luck) = (0, fastrand::f64());
                    continue;
                }
                Err(trouble) => trouble,
            };
            failures = failures.saturating_add(1);
            self.inner.metrics.certificate_failed(kind.as_str());
            self.tell(kind, &trouble);
            let pause = plan::pause(failures, trouble.resigned, fastrand::f64());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = nudges.changed() => {}
                // A link that comes back is worth an attempt, but no better answer from somebody who said no.
                _ = links.changed(), if !trouble.resigned => {}
            }
        }
    }

    /// Remembers trouble; says it once.
    fn tell(&self, kind: Kind, trouble: &Trouble) {
        let mut state = self.state();
        let held = state.held(kind);
        if held.trouble.as_ref() != Some(&trouble.text) {
            tracing::warn!(
                certificate = kind.as_str(),
                error = trouble.text,
                "no certificate for now"
            );
            held.trouble = Some(trouble.text.clone());
        }
    }

    /// What has to come first.
    fn obstacle(&self, kind: Kind, upstreams: &Upstreams) -> Option<&'static str> {
        let trusts = !self.state().bundle.is_empty();
        match kind {
            // Discovery has connections of its own.
            Kind::Client if !trusts && self.inner.keeps_ca => None,
            _ if !trusts => Some("the cluster's CA"),
            Kind::Serving if !upstreams.identified() => Some("the client certificate"),
            _ if !upstreams.up() => Some("the cloud"),
            _ => None,
        }
    }

    /// Has a certificate signed and takes it into use.
    async fn obtain(
        &self,
        kind: Kind,
        reason: &Reason,
        upstreams: &Upstreams,
    ) -> Result<(), Trouble> {
        if kind == Kind::Client && self.state().bundle.is_empty() {
            self.establish_trust().await?;
            // The link comes up first.
            return Ok(());
        }
        if kind == Kind::Serving {
            self.learn_service(upstreams).await;
        }
        let wanted = self.wanted(kind);
        tracing::info!(certificate = kind.as_str(), %reason, "a certificate is asked for");
        let made = self.request(kind, &wanted)?;
        let signed = self.sign(kind, &made, upstreams).await;
        if let Err(error) = &signed
            && error.is_final()
        {
            self.inner.files.pairs(kind).drop_pending();
        }
        let pair = Pair::of(KeyPairPem {
            cert: signed?,
            key: made.key,
        })
        .map_err(|error| {
            self.inner.files.pairs(kind).drop_pending();
            Trouble::lasting(format!("what was signed cannot be used: {error}"))
        })?;
        if pair.leaf.identity.user != wanted.common_name {
            self.inner.files.pairs(kind).drop_pending();
            let user = &pair.leaf.identity.user;
            return Err(Trouble::lasting(format!("what was signed is for {user:?}")));
        }
        let left = plan::reason(Some(&pair.leaf), &wanted, plan::now(), 0.5);
        self.install(kind, pair).await;
        match left {
            None => Ok(()),
            Some(Reason::Expired | Reason::Due) => Err(Trouble::lasting(
                "a certificate just signed ends at once: is this node's clock right?",
            )),
            Some(reason) => Err(Trouble::lasting(format!("what was signed: {reason}"))),
        }
    }

    /// The key and request of before, when they are still what is wanted; new ones otherwise.
    fn request(&self, kind: Kind, wanted: &Profile) -> Result<Request, Trouble> {
        let files = self.inner.files.pairs(kind);
        if let Some(made) = files.read_pending()
            && made.asks_for(wanted)
        {
            return Ok(made);
        }
        let made = yurt_pki::request(wanted).map_err(Trouble::lasting)?;
        if let Err(error) = files.save_pending(&made) {
            tracing::warn!(certificate = kind.as_str(), %error, "the key cannot be kept: a restart begins anew");
        }
        Ok(made)
    }

    /// Asks with the node's certificate while it is good, and with bootstrap tokens otherwise.
    async fn sign(
        &self,
        kind: Kind,
        made: &Request,
        upstreams: &Upstreams,
    ) -> Result<String, SigningError> {
        let mut credentials = Vec::new();
        if upstreams.identified() {
            credentials.push(Credential::Node);
        }
        if kind == Kind::Client {
            let tokens = self.tokens().into_iter();
            credentials.extend(tokens.map(|token| Credential::Token(token.as_str().to_owned())));
        }
        let mut failure = SigningError::Refused(format!(
            "there is nothing to ask with: neither --join-token nor {} has a bootstrap token; POST /v1/token takes one",
            self.inner
                .credentials
                .as_ref()
                .map_or_else(String::new, |c| c.file.display().to_string())
        ));
        for credential in credentials {
            let told = |waiting: &str| {
                let mut state = self.state();
                let held = state.held(kind);
                if held.waiting.as_deref() != Some(waiting) {
                    tracing::info!(certificate = kind.as_str(), "{waiting}");
                    held.waiting = Some(waiting.to_owned());
                }
            };
            match signing::sign(upstreams, &credential, kind, &made.request, told).await {
                Err(error @ SigningError::Unauthorized { .. }) => failure = error,
                other => return other,
            }
        }
        Err(failure)
    }

    /// Keeps a certificate and uses it.
    async fn install(&self, kind: Kind, pair: Pair) {
        let now = plan::now();
        let (files, pem) = (self.inner.files.pairs(kind), pair.pem.clone());
        let saved = tokio::task::spawn_blocking(move || {
            files.save(&pem, now)?;
            files.drop_pending();
            Ok::<_, std::io::Error>(())
        });
        let trouble = match saved.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!(
                "the certificate is in use but cannot be written: {error}"
            )),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = &trouble {
            tracing::error!(certificate = kind.as_str(), error);
        }
        tracing::info!(
            certificate = kind.as_str(),
            subject = pair.leaf.identity.user,
            until = plan::moment(pair.leaf.not_after),
            "new certificate"
        );
        {
            let mut state = self.state();
            if kind == Kind::Client
                && let Some(old) = &state.client.pair
            {
                state.retire_at = Some(old.leaf.not_after.saturating_sub(MARGIN));
            }
            let held = state.held(kind);
            (held.pair, held.trouble) = (Some(pair), trouble);
        }
        self.inner.metrics.certificate_rotated(kind.as_str());
        self.apply(now);
        self.nudge();
    }

    /// Learns what changes in the cluster: its CAs, and the address of the service `kubernetes`.
    async fn learn(&self, upstreams: &Upstreams) {
        let mut links = upstreams.changes();
        loop {
            links.borrow_and_update();
            if upstreams.up() {
                if self.inner.keeps_ca {
                    self.learn_authorities(upstreams).await;
                }
                if self.inner.serving == Source::Requested {
                    self.learn_service(upstreams).await;
                }
            }
            tokio::time::sleep(LEARN_PAUSE).await;
            tokio::select! {
                () = tokio::time::sleep(LEARN.mul_f64(0.5 + fastrand::f64())) => {}
                _ = links.changed() => {}
            }
        }
    }

    /// Asks for the addresses of the service `kubernetes`, under which pods reach an API server.
    async fn learn_service(&self, upstreams: &Upstreams) {
        if !upstreams.identified() {
            return;
        }
        let asked = api::call(upstreams, &Credential::Node, Method::GET, SERVICE, None).await;
        let service = match asked {
            Ok(service) => service,
            Err(error) => {
                if !matches!(error, CallError::Send(_)) {
                    tracing::debug!(%error, "the address of the service kubernetes is not known");
                }
                return;
            }
        };
        let spec = &service["spec"];
        let several = spec["clusterIPs"].as_array().into_iter().flatten();
        let addresses: Vec<IpAddr> = several
            .chain([&spec["clusterIP"]])
            .filter_map(|ip| ip.as_str()?.parse().ok())
            .collect();
        let changed = {
            let mut state = self.state();
            let changed = !addresses.is_empty() && state.service != addresses;
            if changed {
                state.service = addresses;
            }
            changed
        };
        if changed {
            self.nudge();
        }
    }
}
