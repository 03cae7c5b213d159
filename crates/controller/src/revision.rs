//! ControllerRevisions: what an owner's spec was, by number ([`keep`]); the templates that a daemon set or a stateful set had
//! ([`history`]), for `kubectl rollout history` and `undo`.

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

/// The revisions of one owner.
#[derive(Clone, Debug)]
pub struct History {
    /// That of what is present.
    pub current: Arc<Value>,
    /// All, by number; the present one is the last.
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

/// What is to be done so that what is present has the highest number.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// It is the one at this index already.
    Keep(usize),
    /// The one at this index is rolled back to and gets this number.
    Renumber(usize, i64),
    /// There is none; a new one gets this number.
    Create(i64),
}

/// Decides it for revisions in the order of their numbers. Pure.
pub fn step(kept: &impl Kept, revisions: &[Arc<Value>]) -> Step {
    let next = revisions.last().map_or(0, |last| number(last)) + 1;
    let present = |revision: &Arc<Value>| kept.is_present(revision);
    match revisions.iter().rposition(present) {
        Some(at) if at + 1 == revisions.len() => Step::Keep(at),
        Some(at) => Step::Renumber(at, next),
        None => Step::Create(next),
    }
}

/// How the revisions of one owner are made and told apart.
pub trait Kept: Sync {
    /// The owner's UID.
    fn uid(&self) -> &str;
    /// Whether a revision keeps what is present.
    fn is_present(&self, revision: &Value) -> bool;
    /// The revision that keeps what is present.
    fn make(&self, number: i64, collisions: Option<i64>) -> Value;
    /// A revision is rolled back to.
    fn renew(&self, _revision: &mut Value) {}
}

/// The revisions in the order of their numbers.
pub fn sort(revisions: &mut [Arc<Value>]) {
    revisions.sort_by_cached_key(|revision| (number(revision), name(revision).to_owned()));
}

/// All revisions of an owner, the present one last, after writing what was missing. `all` are those that there are, sorted.
pub async fn keep(
    context: &Context,
    kept: &impl Kept,
    mut all: Vec<Arc<Value>>,
    mut collisions: Option<i64>,
) -> Result<History, Failure> {
    let of = &CONTROLLER_REVISIONS;
    let current = match step(kept, &all) {
        Step::Keep(at) => all[at].clone(),
        Step::Renumber(at, number) => {
            let mut revision = Value::clone(&all.remove(at));
            revision["revision"] = number.into();
            kept.renew(&mut revision);
            let revision = context.update(of, &revision).await?;
            all.push(revision.clone());
            revision
        }
        Step::Create(number) => {
            let made = loop {
                let revision = kept.make(number, collisions);
                match context.create(of, revision.clone()).await {
                    Ok(made) => break made,
                    Err(error) if error.is_conflict() => {}
                    Err(error) => return Err(error.into()),
                }
                let path = of.object_path(&Key::of(&revision));
                let there = context.kube().get(&path).await?;
                let ours = controller_of(&there).is_some_and(|owner| owner["uid"] == *kept.uid());
                if ours && kept.is_present(&there) {
                    break Arc::new(there);
                }
                let count = collisions.unwrap_or(0) + 1;
                if count > MOST_COLLISIONS {
                    let name = name(&revision);
                    return Err(Failure::Object(format!("the name {name} is another's")));
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

/// The template of a workload.
struct Template<'a> {
    collection: &'a Collection,
    owner: &'a Value,
    hash_label: &'a str,
}

impl Kept for Template<'_> {
    fn uid(&self) -> &str {
        self.owner["metadata"]["uid"].as_str().unwrap_or_default()
    }

    fn is_present(&self, revision: &Value) -> bool {
        revision["data"] == data(self.owner)
    }

    fn make(&self, number: i64, collisions: Option<i64>) -> Value {
        new(
            self.collection,
            self.owner,
            self.hash_label,
            number,
            collisions,
        )
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
    sort(&mut all);
    let template = Template {
        collection,
        owner,
        hash_label,
    };
    let collisions = owner["status"]["collisionCount"].as_i64();
    keep(context, &template, all, collisions).await
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
        let at = |image: &str, revisions: &[Arc<Value>]| {
            let template = Template {
                collection: &crate::collections::DAEMON_SETS,
                owner: &owner(image),
                hash_label: HASH,
            };
            step(&template, revisions)
        };
        assert_eq!(at("a", &[]), Step::Create(1));
        let revisions = [of("a", 1), of("b", 2)];
        assert_eq!(at("b", &revisions), Step::Keep(1));
        assert_eq!(at("a", &revisions), Step::Renumber(0, 3));
        assert_eq!(at("c", &revisions), Step::Create(3));
        assert_ne!(name(&revisions[0]), name(&revisions[1]));
        assert_eq!(restored(&owner("b"), &revisions[0]), owner("a"));
        assert_eq!(
            revisions[0]["data"]["spec"]["template"]["$patch"],
            "replace"
        );
    }
}
