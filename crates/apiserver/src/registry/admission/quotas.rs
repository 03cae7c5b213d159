//! `ResourceQuota`: nothing is created that a namespace has no room for.
//!
//! What is used is counted where it is stored, under a lock that is held until the object is written, so that two requests
//! never take the same room. `status.used` is brought up to date with it, as kube-apiserver does; what goes away is for the
//! quota controller to see.

use crate::{
    lifecycle::own_target,
    meta,
    quota::{self, Usage},
    registry::{Registry, Reply, Target},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, LazyLock},
};
use tokio::sync::{Mutex, OwnedMutexGuard};
use yurt_wire::{Status, quantity::Quantity};

static QUOTAS: LazyLock<Arc<str>> = LazyLock::new(|| "/resourcequotas".into());

/// Turns are taken by namespace; a few namespaces share one.
const TURNS: usize = 64;

/// Who may count and write in a namespace that has quotas.
#[derive(Debug)]
pub(crate) struct Turns([Arc<Mutex<()>>; TURNS]);

impl Default for Turns {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Arc::default()))
    }
}

impl Turns {
    async fn of(&self, namespace: &str) -> OwnedMutexGuard<()> {
        let mut hasher = DefaultHasher::new();
        namespace.hash(&mut hasher);
        let turn = hasher.finish() as usize % TURNS;
        self.0[turn].clone().lock_owned().await
    }
}

/// Room that was found in the quotas of a namespace; kept until the object is written.
pub(crate) struct Charge(#[allow(dead_code, reason = "held for its drop")] OwnedMutexGuard<()>);

/// A quota as far as it concerns one object.
#[derive(Debug)]
struct Claim {
    quota: Value,
    hard: Usage,
    /// What the object adds.
    delta: Usage,
}

/// What `hard` of a quota limits, where this object uses more than `old` did.
fn claim(
    target: &Target,
    quota: &Value,
    old: Option<&Value>,
    object: &Value,
    now: i64,
) -> Option<Claim> {
    let resource = &target.resource;
    if !quota::in_scope(resource, quota, object) {
        return None;
    }
    let mut delta = quota::usage(resource, object, now);
    if let Some(old) = old {
        for (name, amount) in quota::usage(resource, old, now) {
            let left = delta.entry(name).or_insert(Quantity::ZERO);
            *left = *left - amount;
        }
    }
    delta.retain(|_, amount| !amount.is_zero() && !amount.is_negative());
    let hard: Usage = quota["spec"]["hard"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| delta.contains_key(*name))
        .filter_map(|(name, amount)| Some((name.clone(), Quantity::parse(amount.as_str()?)?)))
        .collect();
    delta.retain(|name, _| hard.contains_key(name));
    (!hard.is_empty()).then(|| Claim {
        quota: quota.clone(),
        hard,
        delta,
    })
}

/// What would not fit, in kube-apiserver's words.
fn exceeded(claim: &Claim, used: &Usage) -> Option<String> {
    let of = |amounts: &Usage, name: &str| amounts.get(name).copied().unwrap_or(Quantity::ZERO);
    let over: Vec<&String> = claim
        .hard
        .iter()
        .filter(|(name, hard)| of(used, name) + of(&claim.delta, name) > **hard)
        .map(|(name, _)| name)
        .collect();
    let printed = |amounts: &Usage| {
        let parts: Vec<String> = over
            .iter()
            .map(|name| format!("{name}={}", of(amounts, name)))
            .collect();
        parts.join(",")
    };
    (!over.is_empty()).then(|| {
        format!(
            "exceeded quota: {}, requested: {}, used: {}, limited: {}",
            meta::name(&claim.quota),
            printed(&claim.delta),
            printed(used),
            printed(&claim.hard)
        )
    })
}

impl Registry {
    /// Finds room for an object, or for what it uses more than before; 403 when a quota has none. The room is taken until
    /// the charge is dropped.
    pub(crate) async fn charge(
        &self,
        target: &Target,
        old: Option<&Value>,
        object: &Value,
    ) -> Reply<Option<Charge>> {
        if !target.resource.namespaced {
            return Ok(None);
        }
        let (quotas, _) = self.storage.list(&QUOTAS, &target.namespace, None);
        if quotas.is_empty() {
            return Ok(None);
        }
        let turn = self.turns.of(&target.namespace).await;
        let now = meta::now_seconds();
        let (quotas, _) = self.storage.list(&QUOTAS, &target.namespace, None);
        let refuse = |why: &str| {
            let resource = &target.resource;
            Box::new(Status::forbidden(
                &resource.group,
                &resource.plural,
                meta::name(object),
                why,
            ))
        };
        let mut claims = Vec::new();
        for stored in quotas {
            let quota = stored.value();
            if old.is_none()
                && quota::in_scope(&target.resource, &quota, object)
                && let Some(what) =
                    quota::unspecified(&target.resource, &quota["spec"]["hard"], object)
            {
                let name = meta::name(&quota);
                return Err(refuse(&format!(
                    "failed quota: {name}: must specify {what}"
                )));
            }
            claims.extend(claim(target, &quota, old, object, now));
        }
        if claims.is_empty() {
            return Ok(None);
        }
        let resource = &target.resource;
        let (objects, _) = self
            .storage
            .list(&resource.storage, &target.namespace, None);
        let objects: Vec<Value> = objects.iter().map(|object| object.value()).collect();
        let mut totals = Vec::with_capacity(claims.len());
        for claim in &claims {
            let mut used = Usage::new();
            for other in objects
                .iter()
                .filter(|other| quota::in_scope(resource, &claim.quota, other))
            {
                for (name, amount) in quota::usage(resource, other, now) {
                    if claim.hard.contains_key(&name) {
                        let sum = used.entry(name).or_insert(Quantity::ZERO);
                        *sum = *sum + amount;
                    }
                }
            }
            if let Some(why) = exceeded(claim, &used) {
                return Err(refuse(&why));
            }
            for (name, amount) in &claim.delta {
                let sum = used.entry(name.clone()).or_insert(Quantity::ZERO);
                *sum = *sum + *amount;
            }
            totals.push(used);
        }
        if !target.options.dry_run {
            for (claim, used) in claims.iter().zip(&totals) {
                Box::pin(self.note_usage(&claim.quota, used)).await;
            }
        }
        Ok(Some(Charge(turn)))
    }

    /// Brings `status.used` of a quota up to date. When it fails, the controller does.
    async fn note_usage(&self, quota: &Value, used: &Usage) {
        if !quota["status"]["used"].is_object() {
            // The controller has not seen it yet and will count everything.
            return;
        }
        let (namespace, name) = (meta::text(quota, "namespace"), meta::name(quota));
        let target = own_target(self, "", "v1", "resourcequotas", namespace, name);
        let Some(mut target) = target else {
            return;
        };
        target.subresource = "status".into();
        let used: BTreeMap<&String, String> = used
            .iter()
            .map(|(name, amount)| (name, amount.to_string()))
            .collect();
        let noted = self
            .modify(&target, &|quota: &mut Value| {
                for (name, amount) in &used {
                    quota["status"]["used"][name.as_str()] = json!(amount);
                }
                Ok(())
            })
            .await;
        if let Err(status) = noted {
            tracing::debug!(%status, namespace, name, "the usage of a quota was not noted");
        }
    }
}
