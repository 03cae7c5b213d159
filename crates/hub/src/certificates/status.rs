//! How the certificates stand, for `/v1/status`, metrics and callers.

use super::{
    Certificates, Held, Source,
    plan::{self, Kind, Validity},
};

/// A certificate as `/v1/status` shows it.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    /// `client`, `server` or `ca`.
    pub certificate: &'static str,
    /// `valid`, `notYetValid`, `expired`, `missing`; `refused` when the cloud does not accept it, `foreign` when it is another
    /// node's.
    pub state: &'static str,
    /// The common name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subject: String,
    /// The organizations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub organizations: Vec<String>,
    /// When it ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    /// What is being waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    /// Why the last attempt to read or renew it failed, until one succeeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Certificates {
    pub(super) fn report(&self, now: i64) {
        let state = self.state();
        let metrics = &self.inner.metrics;
        for (name, end) in [
            ("client", end_of(&state.client)),
            ("server", end_of(&state.serving)),
            ("ca", state.bundle.summary().map(|(_, end)| end)),
        ] {
            if let Some(end) = end {
                metrics.certificate_ends(name, end, end.saturating_sub(now));
            }
        }
    }

    /// Why the node has no certificate for the cloud, in a sentence for callers.
    pub fn absence(&self) -> String {
        let state = self.state();
        let held = &state.client;
        let what = match &held.pair {
            Some(pair) if !self.is_own(pair) => "its client certificate is another node's".into(),
            Some(pair) => match state.refusal(pair) {
                Some(why) => format!("the cloud does not accept its client certificate ({why})"),
                None => format!(
                    "its client certificate has expired at {}",
                    plan::moment(pair.leaf.not_after)
                ),
            },
            None => "it has no client certificate yet".into(),
        };
        match held.trouble.as_ref().or(held.waiting.as_ref()) {
            Some(why) => format!("{what}: {why}"),
            None => what,
        }
    }

    /// The state of all certificates.
    pub fn status(&self) -> Vec<CertificateStatus> {
        let now = plan::now();
        let state = self.state();
        let mut all = Vec::new();
        for (kind, held) in [
            (Kind::Client, &state.client),
            (Kind::Serving, &state.serving),
        ] {
            if *self.source(kind) == Source::Nothing {
                continue;
            }
            let leaf = held.pair.as_ref().map(|pair| &pair.leaf);
            let foreign = *self.source(kind) == Source::Requested
                && leaf.is_some_and(|l| l.identity.user != plan::user_of(&self.inner.node));
            let pair = held.pair.as_ref().filter(|_| kind == Kind::Client);
            let refusal = pair.and_then(|pair| state.refusal(pair));
            all.push(CertificateStatus {
                certificate: kind.as_str(),
                state: match leaf.map(|leaf| plan::validity(leaf, now)) {
                    None => "missing",
                    Some(_) if foreign => "foreign",
                    Some(Validity::Valid | Validity::NotYet) if refusal.is_some() => "refused",
                    Some(Validity::Valid) => "valid",
                    Some(Validity::NotYet) => "notYetValid",
                    Some(Validity::Expired) => "expired",
                },
                subject: leaf.map_or_else(String::new, |leaf| leaf.identity.user.clone()),
                organizations: leaf.map_or_else(Vec::new, |leaf| leaf.identity.groups.clone()),
                not_after: leaf.map(|leaf| plan::moment(leaf.not_after)),
                waiting: held.waiting.clone(),
                error: held.trouble.clone().or(refusal.map(str::to_owned)),
            });
        }
        let summary = state.bundle.summary();
        all.push(CertificateStatus {
            certificate: "ca",
            state: match &summary {
                None => "missing",
                Some((_, end)) if *end <= now => "expired",
                Some(_) => "valid",
            },
            not_after: summary.as_ref().map(|(_, end)| plan::moment(*end)),
            subject: summary.map(|(names, _)| names).unwrap_or_default(),
            organizations: Vec::new(),
            waiting: None,
            error: state.bundle_trouble.clone(),
        });
        all
    }
}

fn end_of(held: &Held) -> Option<i64> {
    held.pair.as_ref().map(|pair| pair.leaf.not_after)
}
