//! `serviceaccounts/token`: tokens for service accounts, bound to pods and nodes.

use crate::{
    authn::tokens::{Bound, Claims, Issuer, Reference},
    authz::account_name,
    meta,
    registry::{Registry, Reply, Target},
    storage::Key,
};
use serde_json::{Value, json};
use std::sync::Arc;
use yurt_wire::{Gvk, Reason, Status, status::Cause};

/// Life of a token, in seconds: the least that may be asked for, what is given unasked, and the most.
const MIN_SECONDS: i64 = 600;
const DEFAULT_SECONDS: i64 = 3600;
const MAX_SECONDS: i64 = 1 << 32;

/// Answers a `TokenRequest` for the service account `target`.
pub(crate) fn request(
    registry: &Registry,
    issuer: &Issuer,
    target: &Target,
    mut body: Value,
) -> Reply<Value> {
    let gvk = Gvk::from_api_version("authentication.k8s.io/v1", "TokenRequest");
    crate::types::check_kind(&gvk, &body)?;
    registry.restrict_token(target, &body)?;
    let account = registry.get(target)?.value();
    let seconds = body["spec"]["expirationSeconds"]
        .as_i64()
        .unwrap_or(DEFAULT_SECONDS);
    if !(MIN_SECONDS..=MAX_SECONDS).contains(&seconds) {
        return Err(Box::new(Status::invalid(
            "authentication.k8s.io",
            "TokenRequest",
            &target.name,
            vec![Cause {
                reason: "FieldValueInvalid".into(),
                message: format!(
                    "Invalid value: {seconds}: may not specify a duration less than 10 minutes or over 2^32 seconds"
                ),
                field: "spec.expirationSeconds".into(),
            }],
        )));
    }
    let audiences: Vec<String> = body["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    let audiences = if audiences.is_empty() {
        vec![issuer.audience().to_owned()]
    } else {
        audiences
    };
    let now = meta::now_seconds();
    let mut bound = Bound {
        namespace: target.namespace.clone(),
        serviceaccount: Reference {
            name: target.name.clone(),
            uid: meta::uid(&account).to_owned(),
        },
        ..Bound::default()
    };
    bind(
        registry,
        target,
        &body["spec"]["boundObjectRef"],
        &mut bound,
    )?;
    let claims = Claims {
        audiences: audiences.clone(),
        exp: now + seconds,
        iat: now,
        iss: String::new(),
        jti: meta::new_uid(),
        kubernetes: bound,
        nbf: now,
        sub: account_name(&target.namespace, &target.name),
    };
    let token = issuer
        .sign(claims)
        .map_err(|e| Box::new(Status::new(Reason::InternalError, e.to_string())))?;
    body["apiVersion"] = "authentication.k8s.io/v1".into();
    body["kind"] = "TokenRequest".into();
    body["metadata"] = json!({"name": target.name, "namespace": target.namespace,
        "creationTimestamp": meta::rfc3339(now)});
    body["spec"]["audiences"] = json!(audiences);
    body["spec"]["expirationSeconds"] = seconds.into();
    body["status"] = json!({"token": token, "expirationTimestamp": meta::rfc3339(now + seconds)});
    Ok(body)
}

fn bind(registry: &Registry, target: &Target, wanted: &Value, bound: &mut Bound) -> Reply<()> {
    let (Some(kind), Some(name)) = (wanted["kind"].as_str(), wanted["name"].as_str()) else {
        return Ok(());
    };
    let (partition, namespace, plural): (Arc<str>, &str, &str) = match kind {
        "Pod" => ("/pods".into(), &target.namespace, "pods"),
        "Secret" => ("/secrets".into(), &target.namespace, "secrets"),
        "Node" => ("/nodes".into(), "", "nodes"),
        other => {
            return Err(Box::new(Status::new(
                Reason::BadRequest,
                format!(
                    "cannot bind token for serviceaccount \"{}\" to type {other}",
                    target.name
                ),
            )));
        }
    };
    let object = registry
        .storage
        .get(&partition, &Key::new(namespace, name))
        .ok_or_else(|| Box::new(Status::not_found("", plural, name)))?
        .value();
    let uid = wanted["uid"].as_str().unwrap_or_default();
    if !uid.is_empty() && uid != meta::uid(&object) {
        return Err(Box::new(Status::conflict(
            "",
            plural,
            name,
            &format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            ),
        )));
    }
    if kind == "Pod" && object["spec"]["serviceAccountName"].as_str() != Some(&target.name) {
        let using = object["spec"]["serviceAccountName"]
            .as_str()
            .unwrap_or_default();
        return Err(Box::new(Status::new(
            Reason::BadRequest,
            format!(
                "cannot bind token for serviceaccount \"{}\" to pod running with different serviceaccount name \"{using}\"",
                target.name
            ),
        )));
    }
    let reference = Some(Reference {
        name: name.to_owned(),
        uid: meta::uid(&object).to_owned(),
    });
    match kind {
        "Pod" => {
            bound.pod = reference;
            if let Some(node) = object["spec"]["nodeName"]
                .as_str()
                .filter(|n| !n.is_empty())
            {
                let found = registry.storage.get(&"/nodes".into(), &Key::new("", node));
                bound.node = Some(Reference {
                    name: node.to_owned(),
                    uid: found.map_or_else(String::new, |n| meta::uid(&n.value()).to_owned()),
                });
            }
        }
        "Secret" => bound.secret = reference,
        _ => bound.node = reference,
    }
    Ok(())
}
