//! From a request to an answer: finds out what the decision needs, and lets the module of the kind decide.

use super::{
    endpoints,
    facts::{Facts, Unanswered},
    hooks::{Hook, Subject},
    node, nodepool, pod,
    review::{Answer, Denial, Operation, Request},
    yurtappdaemon, yurtappoverrider, yurtappset, yurtstaticset,
};
use serde_json::Value;
use std::sync::Arc;
use yurt_api::conversion;
use yurt_controller::fields::text;

/// Decides about a request.
pub(super) async fn decide(
    hook: &Hook,
    request: &Request,
    facts: &Arc<Facts>,
) -> Result<Answer, Denial> {
    if request.is_going() {
        return Ok(Answer::default());
    }
    let created = request.operation == Operation::Create;
    let old = (!created).then_some(&request.old);
    let new = || request.object.clone();
    let deleted = request.operation == Operation::Delete;
    match (hook.subject, hook.mutating) {
        (_, true) if deleted => Ok(Answer::default()),
        (Subject::Endpoints | Subject::EndpointSlice, true) => {
            let silent = endpoints::silent(&request.object);
            if silent.is_empty() {
                return Ok(Answer::default());
            }
            let alive = facts.alive(silent, &endpoints::ready(&request.old)).await;
            Ok(Answer::of(endpoints::completed(new(), &alive)))
        }
        (Subject::Node, true) => Ok(completed_node(old, &request.object, facts).await),
        (Subject::Node, false) if created || deleted => Ok(Answer::default()),
        (Subject::Node, false) => {
            let (old, new) = (&request.old, &request.object);
            let pool = match node::pool_of(new) {
                // What is not known at once is no reason to hold a node up.
                Some(name) => facts.pool(name, false).await.ok().flatten(),
                None => None,
            };
            node::judged(old, new, pool.as_deref(), &request.user, &facts.converters)
        }
        (Subject::Pod, true) => Ok(Answer::of(pod::completed(new()))),
        (Subject::NodePool, true) => {
            let pool = restored(request)?;
            Ok(Answer::of(nodepool::completed(pool, created)))
        }
        (Subject::NodePool, false) if deleted => {
            let name = text(&request.old["metadata"]["name"]);
            let (nodes, more) = facts
                .members(&name)
                .await
                .map_err(|error| unknown("which nodes the pool has", &error))?;
            nodepool::deleted(&name, &nodes, more)
        }
        (Subject::NodePool, false) => nodepool::judged(old, &request.object),
        (Subject::YurtAppSet, true) => {
            let set = restored(request)?;
            let written = request.written_as.as_ref();
            let written =
                written.and_then(|version| conversion::to_version(set.clone(), version).ok());
            Ok(Answer::of(yurtappset::completed(set, written.as_ref())))
        }
        (Subject::YurtAppDaemon, true) => Ok(Answer::of(yurtappdaemon::completed(new(), created))),
        (Subject::YurtStaticSet, true) => Ok(Answer::of(yurtstaticset::completed(new()))),
        (Subject::YurtAppOverrider, false) => overrider(request, facts).await,
        (_, false) if deleted => Ok(Answer::default()),
        (Subject::YurtAppSet, false) => yurtappset::judged(old, &request.object),
        (Subject::YurtAppDaemon, false) => yurtappdaemon::judged(old, &request.object),
        (Subject::YurtStaticSet, false) => yurtstaticset::judged(old, &request.object),
        _ => Ok(Answer::default()),
    }
}

fn unknown(what: &str, error: &Unanswered) -> Denial {
    Denial::Unknown(format!(
        "{what} could not be found out ({error}); try again"
    ))
}

/// The object as its client means it: of what the version that it was written in cannot say, everything is as it was. Otherwise a
/// client that does not send annotations back which it does not know would reset it.
fn restored(request: &Request) -> Result<Value, Denial> {
    let (Operation::Update, Some(version)) = (request.operation, &request.written_as) else {
        return Ok(request.object.clone());
    };
    conversion::restored(&request.old, request.object.clone(), version)
        .map_err(|error| Denial::Unknown(error.to_string()))
}

/// Whatever cannot be found out about the pool, the node is written.
async fn completed_node(old: Option<&Value>, new: &Value, facts: &Facts) -> Answer {
    let moves = node::moves(old, new);
    let mut warnings = Vec::new();
    let pool = match node::pool_of(new) {
        None => None,
        Some(name) => match facts.pool(name, moves).await {
            Ok(None) if moves => {
                warnings.push(node::missing(name));
                None
            }
            Ok(pool) => pool,
            Err(error) => {
                warnings.push(format!(
                    "nothing could be found out about NodePool {name:?}: {error}"
                ));
                None
            }
        },
    };
    Answer {
        object: Some(node::completed(old, new.clone(), pool.as_deref())),
        warnings,
    }
}

async fn overrider(request: &Request, facts: &Facts) -> Result<Answer, Denial> {
    let subject = request.subject();
    let namespace = text(&subject["metadata"]["namespace"]);
    if request.operation == Operation::Delete {
        let (kind, name) = yurtappoverrider::subject(subject);
        let lives = facts
            .lives(&namespace, &kind, &name)
            .await
            .map_err(|error| unknown("whether the subject is still there", &error))?;
        return yurtappoverrider::deleted(subject, lives);
    }
    let others = facts
        .overriders(&namespace)
        .await
        .map_err(|error| unknown("which other overriders there are", &error))?;
    let old = (request.operation == Operation::Update).then_some(&request.old);
    yurtappoverrider::judged(old, &request.object, &others)
}
