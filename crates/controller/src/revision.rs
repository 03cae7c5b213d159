//! ControllerRevisions: the templates that a daemon set or a stateful set had, for `kubectl rollout history` and `undo`.

use crate::{
    Collection, Context, Failure, Key, claim, collections::CONTROLLER_REVISIONS,
    objects::controller_of, pod, template_hash,
};
use serde_json::{Value, json};
use std::sync::Arc;
use yurt_wire::selector::LabelSelector;

/// The label of pods and revisions that names the template.
pub const HASH: &str = "controller-revision-hash";
/// How often another name is tried in one look.
const MOST_COLLISIONS: i64 = 20;
/// The longest part of a revision's name that its owner gives.
const LONGEST_PREFIX: usize = 223;

/// The templates of one workload.
#[derive(Clone, Debug)]
pub struct History {
    /// That of the present template.
    pub current: Arc<Value>,
    /// All, by revision; the present one is the last.
    pub all: Vec<Arc<Value>>,
    /// How often a name was taken.
    pub collisions: Option<i64>,
}

/// What a revision keeps: a strategic merge patch that brings the template back.
pub fn data(owner: &Value) -> Value {
    let mut template = owner["spec"]["template"].clone();
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// The object with the template of a revision.
pub fn restored(owner: &Value, revision: &Value) -> Value {
    let mut restored = owner.clone();
    let mut template = revision["data"]["spec"]["template"].clone();
    if let Some(template) = template.as_object_mut() {
        template.remove("$patch");
    }
    restored["spec"]["template"] = template;
    restored
}

/// The number of a revision.
pub fn number(revision: &Value) -> i64 {
    revision["revision"].as_i64().unwrap_or(0)
}

/// The name of a revision.
pub fn name(revision: &Value) -> &str {
    revision["metadata"]["name"].as_str().unwrap_or_default()
}

/// What is to be done so that the present template has the highest number.
#[derive(Debug, PartialEq)]
enum Step {
    /// It is the one at this index already.
    Keep(usize),
    /// The one at this index is rolled back to and gets this number.
    Renumber(usize, i64),
    /// There is none; a new one gets this number.
    Create(i64),
}

fn step(owner: &Value, revisions: &[Arc<Value>]) -> Step {
    let data = data(owner);
    let next = revisions.last().map_or(0, |last| number(last)) + 1;
    match revisions
        .iter()
        .rposition(|revision| revision["data"] == data)
    {
        Some(at) if at + 1 == revisions.len() => Step::Keep(at),
        Some(at) => Step::Renumber(at, next),
        None => Step::Create(next),
    }
}

fn new(
    collection: &Collection,
    owner: &Value,
    hash_label: &str,
    number: i64,
    collisions: Option<i64>,
) -> Value {
    let hash = template_hash::of(&owner["spec"]["template"], collisions);
    let mut labels = owner["spec"]["template"]["metadata"]["labels"].clone();
    labels[hash_label] = hash.clone().into();
    let prefix = owner["metadata"]["name"].as_str().unwrap_or_default();
    let prefix: String = prefix.chars().take(LONGEST_PREFIX).collect();
    let mut revision = json!({
        "metadata": {"name": format!("{prefix}-{hash}"), "namespace": owner["metadata"]["namespace"],
            "labels": labels, "ownerReferences": [claim::reference(collection, owner)]},
        "data": data(owner), "revision": number,
    });
    if let Some(annotations) = owner["metadata"].get("annotations") {
        revision["metadata"]["annotations"] = annotations.clone();
    }
    revision
}

/// The templates of `owner` (an object of `collection`), the present one last, after writing what was missing.
pub async fn history(
    context: &Context,
    collection: &Collection,
    owner: &Value,
    selector: &LabelSelector,
    hash_label: &str,
) -> Result<History, Failure> {
    let namespace = owner["metadata"]["namespace"].as_str().unwrap_or_default();
    let candidates = context.objects(&CONTROLLER_REVISIONS).list(namespace);
    let of = &CONTROLLER_REVISIONS;
    let mut all = claim::claim(context, collection, owner, selector, of, candidates).await?;
    all.sort_by_cached_key(|revision| (number(revision), name(revision).to_owned()));
    let mut collisions = owner["status"]["collisionCount"].as_i64();
    let current = match step(owner, &all) {
        Step::Keep(at) => all[at].clone(),
        Step::Renumber(at, number) => {
            let mut revision = Value::clone(&all.remove(at));
            revision["revision"] = number.into();
            let revision = context.update(of, &revision).await?;
            all.push(revision.clone());
            revision
        }
        Step::Create(number) => {
            let made = loop {
                let revision = new(collection, owner, hash_label, number, collisions);
                match context.create(of, revision.clone()).await {
                    Ok(made) => break made,
                    Err(error) if error.code() == Some(409) => {}
                    Err(error) => return Err(error.into()),
                }
                let path = of.object_path(&Key::of(&revision));
                let there = context.kube().get(&path).await?;
                let ours = controller_of(&there)
                    .is_some_and(|owned| owned["uid"] == owner["metadata"]["uid"]);
                if ours && there["data"] == revision["data"] {
                    break Arc::new(there);
                }
                let count = collisions.unwrap_or(0) + 1;
                if count > MOST_COLLISIONS {
                    return Err(Failure::Object(format!(
                        "the name {} is another's",
                        name(&revision)
                    )));
                }
                collisions = Some(count);
            };
            all.push(made.clone());
            made
        }
    };
    Ok(History {
        current,
        all,
        collisions,
    })
}

/// Deletes the oldest templates beyond `spec.revisionHistoryLimit`; those in use and the present one do not count.
pub async fn truncate(
    context: &Context,
    owner: &Value,
    history: &History,
    is_used: impl Fn(&Value) -> bool,
) -> Result<(), Failure> {
    let limit = owner["spec"]["revisionHistoryLimit"].as_u64().unwrap_or(10);
    let current = name(&history.current);
    let mut old: Vec<_> = history
        .all
        .iter()
        .filter(|revision| name(revision) != current && !is_used(revision))
        .filter(|revision| !pod::is_deleting(revision))
        .collect();
    let keep = usize::try_from(limit).unwrap_or(usize::MAX);
    old.truncate(old.len().saturating_sub(keep));
    for revision in old {
        context.delete(&CONTROLLER_REVISIONS, revision).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(image: &str) -> Value {
        json!({"metadata": {"name": "web", "namespace": "default", "uid": "u"}, "spec": {"template":
            {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"image": image}]}}}})
    }

    #[test]
    fn the_present_template_has_the_highest_number() {
        let of = |image: &str, number: i64| {
            Arc::new(new(
                &crate::collections::DAEMON_SETS,
                &owner(image),
                HASH,
                number,
                None,
            ))
        };
        assert_eq!(step(&owner("a"), &[]), Step::Create(1));
        let revisions = [of("a", 1), of("b", 2)];
        assert_eq!(step(&owner("b"), &revisions), Step::Keep(1));
        assert_eq!(step(&owner("a"), &revisions), Step::Renumber(0, 3));
        assert_eq!(step(&owner("c"), &revisions), Step::Create(3));
        assert_ne!(name(&revisions[0]), name(&revisions[1]));
        assert_eq!(restored(&owner("b"), &revisions[0]), owner("a"));
        assert_eq!(
            revisions[0]["data"]["spec"]["template"]["$patch"],
            "replace"
        );
    }
}
