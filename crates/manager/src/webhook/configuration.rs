//! What API servers are told: which webhooks there are, where, and whom to trust.
//!
//! The manager owns both configurations wholly: what is not in its table is taken out, what others changed is put right, what was
//! deleted comes back. Of the definitions it owns how OpenYurt's are converted, and nothing else. Replicas of the same release
//! want the same; while two releases run side by side, pauses keep them from writing by turns all the time.

use super::{
    Options, WebhookError,
    certificates::Bundle,
    hooks::{HOOKS, Hook},
    metrics::Counts,
};
use crate::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use yurt_api::{
    conversion,
    crd::DEFINITIONS,
    names::objects::{MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS},
};
use yurt_controller::{
    Collection, Key, Scope,
    collections::CRDS,
    fields::items,
    kube::{Kube, KubeError},
};
use yurt_pki::{Leaf, certs_from_pem};

/// The owner of the fields that are applied.
pub(super) const MANAGER: &str = "yurt-manager-webhook";
/// Where OpenYurt's manager keeps the list of webhooks that it saw first.
const TEMPLATE: &str = "yurt-manager-template";
/// How often everything is looked at without a reason.
const LOOK: Duration = Duration::from_secs(60);
/// Pauses between one repair and the next: from, to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), LOOK);
/// After so long without a repair, nobody contends.
const CALM: Duration = Duration::from_secs(300);

const MUTATING: Collection = Collection::cluster(
    "admissionregistration.k8s.io/v1",
    "mutatingwebhookconfigurations",
    "MutatingWebhookConfiguration",
);
const VALIDATING: Collection = Collection::cluster(
    "admissionregistration.k8s.io/v1",
    "validatingwebhookconfigurations",
    "ValidatingWebhookConfiguration",
);
static CONFIGURATIONS: [(Collection, &str, bool); 2] = [
    (MUTATING, MUTATING_WEBHOOKS, true),
    (VALIDATING, VALIDATING_WEBHOOKS, false),
];

/// How API servers reach the webhooks.
#[derive(Clone, Debug)]
enum Way {
    Service { namespace: String, name: String },
    Host(String),
}

impl Way {
    /// A `clientConfig`.
    fn client(&self, path: &str, authorities: &str) -> Value {
        let bundle = STANDARD.encode(authorities);
        match self {
            Self::Service { namespace, name } => json!({"caBundle": bundle,
                "service": {"namespace": namespace, "name": name, "path": path, "port": 443}}),
            Self::Host(authority) => {
                json!({"caBundle": bundle, "url": format!("https://{authority}{path}")})
            }
        }
    }
}

/// Keeps what API servers are told.
pub(super) struct Configurations {
    kube: Kube,
    way: Way,
    hooks: Vec<&'static Hook>,
    /// Something that is kept here was changed.
    changed: Arc<Notify>,
}

impl Configurations {
    /// `port` is where the webhooks listen. The watches that tell of changes begin now.
    pub(super) fn new(options: &Options, port: u16, context: &Context) -> Self {
        let way = match &options.host {
            Some(host) if host.contains(':') => Way::Host(format!("[{host}]:{port}")),
            Some(host) => Way::Host(format!("{host}:{port}")),
            None => Way::Service {
                namespace: options.namespace.clone(),
                name: options.service.clone(),
            },
        };
        let hooks = HOOKS
            .iter()
            .filter(|hook| hook.subject.is_enabled(options))
            .collect();
        let changed = Arc::new(Notify::new());
        let configurations = CONFIGURATIONS
            .iter()
            .map(|(collection, name, _)| (collection.clone(), (*name).to_owned()));
        let definitions = definitions().map(|name| (CRDS, name));
        for (collection, name) in configurations.chain(definitions) {
            let scope = Scope {
                fields: format!("metadata.name={name}"),
                ..Scope::metadata()
            };
            let changed = changed.clone();
            let objects = context.scoped(&collection, &scope);
            objects.subscribe(move |_| changed.notify_one());
        }
        Self {
            kube: context.kube().clone(),
            way,
            hooks,
            changed,
        }
    }

    /// Keeps them right until `shutdown`, from when there is something to trust.
    pub(super) async fn keep(
        self,
        mut bundle: watch::Receiver<Option<Arc<Bundle>>>,
        counts: Counts,
        shutdown: CancellationToken,
    ) {
        let (mut pause, mut repaired) = (PAUSE.0, Instant::now());
        loop {
            let known = bundle.borrow_and_update().clone();
            if let Some(bundle) = known {
                if let Ok(until) = expiry(&bundle) {
                    counts.expiry.set(until);
                }
                let repairs = self.settle(&bundle).await;
                if repairs > 0 {
                    pause = if repaired.elapsed() > CALM {
                        PAUSE.0
                    } else {
                        PAUSE.1.min(pause * 2)
                    };
                    repaired = Instant::now();
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = bundle.changed() => if changed.is_err() { return },
                () = self.changed.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Puts everything right; how much had to be, or could not be.
    async fn settle(&self, bundle: &Bundle) -> usize {
        let mut repairs = 0;
        let mut note = |what: &str, outcome: Result<bool, KubeError>| match outcome {
            Ok(false) => {}
            Ok(true) => {
                repairs += 1;
                tracing::info!(what, "API servers are told of the webhooks");
            }
            Err(error) if error.is_conflict() => {
                repairs += 1;
                self.changed.notify_one();
            }
            Err(error) => {
                repairs += 1;
                self.changed.notify_one();
                tracing::warn!(what, %error, "API servers could not be told of the webhooks, again");
            }
        };
        for (collection, name, mutating) in &CONFIGURATIONS {
            let wanted = self.wanted(*mutating, &bundle.authorities);
            let outcome = self.configure(collection, name, &wanted).await;
            note(name, outcome);
        }
        for name in definitions() {
            let outcome = self.convert(&name, &bundle.authorities).await;
            note(&name, outcome);
        }
        repairs
    }

    /// The webhooks of a configuration.
    fn wanted(&self, mutating: bool, authorities: &str) -> Value {
        let hooks = self.hooks.iter().filter(|hook| hook.mutating == mutating);
        hooks
            .map(|hook| hook.render(&self.way.client(&hook.path(), authorities)))
            .collect()
    }

    async fn configure(
        &self,
        collection: &Collection,
        name: &str,
        wanted: &Value,
    ) -> Result<bool, KubeError> {
        let path = collection.object_path(&Key::new("", name));
        match self.kube.get(&path).await {
            Ok(known) if is_right(&known, wanted) => return Ok(false),
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        let object = json!({"apiVersion": collection.api_version, "kind": collection.kind,
            "metadata": {"name": name}, "webhooks": wanted});
        let mut applied = self.kube.apply(&path, &object, MANAGER, true).await?;
        // What others own goes by a write of the whole.
        if !is_right(&applied, wanted) {
            applied["webhooks"] = wanted.clone();
            if let Some(Value::Object(annotations)) = applied.pointer_mut("/metadata/annotations") {
                annotations.remove(TEMPLATE);
            }
            let path = format!("{path}?fieldManager={MANAGER}");
            self.kube.replace(&path, &applied).await?;
        }
        Ok(true)
    }

    /// Of a definition, how it is converted. One that is not there needs nothing.
    async fn convert(&self, name: &str, authorities: &str) -> Result<bool, KubeError> {
        let path = CRDS.object_path(&Key::new("", name));
        let known = match self.kube.get(&path).await {
            Ok(known) => known,
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) => return Err(error),
        };
        let client = self.way.client(conversion::PATH, authorities);
        let mut wanted = json!({"strategy": "Webhook", "webhook": {
            "clientConfig": client, "conversionReviewVersions": conversion::REVIEW_VERSIONS}});
        if covers(&known["spec"]["conversion"], &wanted) {
            return Ok(false);
        }
        // The other way to say it goes.
        let client = &mut wanted["webhook"]["clientConfig"];
        for field in ["service", "url"] {
            if client[field].is_null() {
                client[field] = Value::Null;
            }
        }
        let patch = json!({"spec": {"conversion": wanted}});
        let path = format!("{path}?fieldManager={MANAGER}");
        self.kube.merge(&path, &patch).await?;
        Ok(true)
    }
}

/// The definitions of OpenYurt that have several versions.
fn definitions() -> impl Iterator<Item = String> {
    DEFINITIONS
        .iter()
        .filter(|definition| definition.versions.len() > 1)
        .map(|definition| definition.name())
}

/// Whether a configuration says just this.
fn is_right(known: &Value, wanted: &Value) -> bool {
    let narrowed =
        items(&known["webhooks"]).any(|entry| items(&entry["matchConditions"]).next().is_some());
    // Absent where it is empty.
    let said = known["webhooks"].as_array().cloned().unwrap_or_default();
    known["metadata"]["annotations"][TEMPLATE].is_null()
        && !narrowed
        && covers(&Value::from(said), wanted)
}

/// Whether all that is wanted is there. Fields beside it are defaults of the API server; where nothing is wanted is nothing, and
/// lists are as they are wanted.
fn covers(known: &Value, wanted: &Value) -> bool {
    match (known, wanted) {
        (Value::Null, Value::Object(wanted)) => wanted.is_empty(),
        (Value::Object(known), Value::Object(wanted)) if wanted.is_empty() => known.is_empty(),
        (Value::Object(known), Value::Object(wanted)) => {
            // A client has one of the two.
            let both = known.contains_key("service") && known.contains_key("url");
            !both
                && wanted
                    .iter()
                    .all(|(field, wanted)| covers(known.get(field).unwrap_or(&Value::Null), wanted))
        }
        (Value::Array(known), Value::Array(wanted)) => {
            known.len() == wanted.len() && known.iter().zip(wanted).all(|(k, w)| covers(k, w))
        }
        _ => known == wanted,
    }
}

/// Until when what is served is valid.
fn expiry(bundle: &Bundle) -> Result<i64, WebhookError> {
    let chain = certs_from_pem(&bundle.own.cert)?;
    let leaf = Leaf::of(chain.first().map_or(&[], |der| der.as_ref()))?;
    Ok(leaf.not_after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Value {
        let client = Way::Service {
            namespace: "kube-system".into(),
            name: "hooks".into(),
        };
        let hooks = HOOKS.iter().take(2);
        hooks
            .map(|hook| hook.render(&client.client(&hook.path(), "CA")))
            .collect()
    }

    /// A configuration as an API server stores it.
    fn stored() -> Value {
        json!({"metadata": {"name": MUTATING_WEBHOOKS, "annotations": {"other": "x"}}, "webhooks": entries()})
    }

    #[test]
    fn what_is_as_wanted_stays() {
        assert!(is_right(&stored(), &entries()));
        let mut defaulted = stored();
        defaulted["webhooks"][0]["ofTomorrow"] = "default".into();
        assert!(is_right(&defaulted, &entries()));
        assert!(is_right(&json!({"metadata": {}}), &json!([])), "none");
    }

    #[test]
    fn every_drift_is_seen() {
        let drifts: [fn(&mut Value); 10] = [
            |c| c["metadata"]["annotations"][TEMPLATE] = "[]".into(),
            |c| c["webhooks"][0]["failurePolicy"] = "Fail".into(),
            |c| c["webhooks"][0]["timeoutSeconds"] = 30.into(),
            |c| c["webhooks"][0]["clientConfig"]["caBundle"] = "b3RoZXI=".into(),
            |c| c["webhooks"][0]["clientConfig"]["service"]["name"] = "other".into(),
            |c| c["webhooks"][0]["namespaceSelector"]["matchLabels"] = json!({"a": "b"}),
            |c| c["webhooks"][0]["matchConditions"] = json!([{"name": "a", "expression": "false"}]),
            |c| c["webhooks"][0]["rules"][0]["operations"] = json!(["CREATE"]),
            |c| c["webhooks"] = json!([c["webhooks"][0]]),
            |c| {
                let more = c["webhooks"][0].clone();
                c["webhooks"].as_array_mut().expect("a list").push(more);
            },
        ];
        for (i, drift) in drifts.iter().enumerate() {
            let mut known = stored();
            drift(&mut known);
            assert!(!is_right(&known, &entries()), "drift {i}");
        }
        assert!(!is_right(&Value::Null, &entries()));
    }

    #[test]
    fn an_address_stands_for_the_service() {
        let way = Way::Host("[fd00::7]:10273".into());
        let client = way.client("/convert", "CA");
        assert_eq!(
            client,
            json!({"caBundle": "Q0E=", "url": "https://[fd00::7]:10273/convert"})
        );
        let service = json!({"caBundle": "Q0E=", "service": {}, "url": client["url"]});
        assert!(!covers(&service, &client), "one of the two");
    }

    #[test]
    fn only_openyurts_definitions_are_converted() {
        let names: Vec<String> = definitions().collect();
        assert_eq!(names, super::super::CONVERTED);
    }
}
