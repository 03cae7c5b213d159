//! ControllerRevisions of a set: what its workloads were, in OpenYurt's shape, so that the names that its pods carry stay true.

use super::render::{LONGEST_LABEL, Owner};
use serde_json::{Map, Value, json};
use std::{collections::BTreeSet, sync::Arc};
use yurt_api::names::{annotations::ROLLOUT, labels};
use yurt_controller::{
    Collection, Context, Failure, Key, Scope,
    collections::CONTROLLER_REVISIONS,
    controller_of, pod,
    revision::{self, History, Kept},
    template_hash,
};
use yurt_wire::quantity::Quantity;

pub(crate) use yurt_controller::revision::name;

/// The revisions that are read: those with OpenYurt's label, which those of DaemonSets do not have.
pub(crate) fn scope() -> Scope {
    Scope::default().labelled(labels::REVISION_HASH)
}

/// How the rollout of a revision ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Every pool was ready.
    Complete,
    /// A pool did not become ready in time, and all went back.
    Failed,
}

impl Mark {
    fn text(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Failed => "failed",
        }
    }

    /// Of a revision.
    pub(crate) fn of(revision: &Value) -> Option<Self> {
        let mark = revision["metadata"]["annotations"][ROLLOUT].as_str()?;
        [Self::Complete, Self::Failed]
            .into_iter()
            .find(|known| known.text() == mark)
    }
}

/// The part of a spec that revisions keep: `workload` of a set, `workloadTemplate` of a daemon.
fn field(owner: &Owner) -> &'static str {
    if owner.daemon.is_some() {
        "workloadTemplate"
    } else {
        "workload"
    }
}

fn data(owner: &Owner, spec: &Value) -> Value {
    let field = field(owner);
    let mut kept = spec[field].clone();
    if let Some(kept) = kept.as_object_mut() {
        kept.insert("$patch".into(), "replace".into());
    }
    json!({"spec": {field: kept}})
}

/// What a revision kept of the spec.
pub(crate) fn kept<'r>(owner: &Owner, revision: &'r Value) -> &'r Value {
    &revision["data"]["spec"][field(owner)]
}

/// Without what Go's structs print for nothing, so that OpenYurt's revisions are known again. An empty selector is not nothing.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(field, _)| *field != "$patch");
            let fields = fields.map(|(field, value)| match (&**field, value) {
                ("limits" | "requests", Value::Object(quantities)) => {
                    let quantities = quantities.iter().map(|(name, q)| (name.clone(), amount(q)));
                    (field, Value::Object(quantities.collect()))
                }
                _ => (field, plain(value)),
            });
            let said = |(field, value): &(&String, Value)| {
                let is_empty = value.as_object().is_some_and(Map::is_empty);
                !value.is_null() && (!is_empty || field.to_lowercase().ends_with("selector"))
            };
            let fields = fields
                .filter(said)
                .map(|(field, value)| (field.clone(), value));
            Value::Object(fields.collect())
        }
        Value::Array(values) => values.iter().map(plain).collect(),
        other => other.clone(),
    }
}

/// A quantity, the same however it is written.
fn amount(value: &Value) -> Value {
    let quantity = value.as_str().and_then(Quantity::parse);
    quantity.map_or_else(|| value.clone(), |quantity| quantity.milli().into())
}

/// The spec of a set.
struct Present<'a> {
    owner: &'a Owner,
    object: &'a Value,
    /// What of it a revision keeps, in one form.
    plain: Value,
}

impl<'a> Present<'a> {
    fn of(owner: &'a Owner, object: &'a Value) -> Self {
        let plain = plain(&data(owner, &object["spec"]));
        Self {
            owner,
            object,
            plain,
        }
    }
}

impl Kept for Present<'_> {
    fn uid(&self) -> &str {
        &self.owner.uid
    }

    fn is_present(&self, revision: &Value) -> bool {
        plain(&revision["data"]) == self.plain
    }

    fn make(&self, number: i64, collisions: Option<i64>) -> Value {
        new(self.owner, self.object, number, collisions)
    }

    fn renew(&self, revision: &mut Value) {
        // It is tried anew.
        if let Some(marks) = revision["metadata"]["annotations"].as_object_mut() {
            marks.remove(ROLLOUT);
        }
    }
}

fn new(owner: &Owner, object: &Value, number: i64, collisions: Option<i64>) -> Value {
    let data = data(owner, &object["spec"]);
    let hash = template_hash::of(&plain(&data), collisions);
    // The name becomes the value of a label.
    let room = LONGEST_LABEL - 1 - hash.len();
    let prefix: String = owner.name.chars().take(room).collect();
    let mut labels = object["metadata"]["labels"]
        .as_object()
        .cloned()
        .unwrap_or_default();
    if let Some((key, value)) = &owner.label {
        labels.insert((*key).into(), value.clone().into());
    }
    labels.insert(labels::REVISION_HASH.into(), hash.clone().into());
    json!({
        "metadata": {"name": format!("{}-{hash}", prefix.trim_end_matches(['-', '.'])), "namespace": owner.namespace,
            "labels": labels, "ownerReferences": [owner.reference]},
        "data": data, "revision": number,
    })
}

/// The revisions of `owner`, the present one last, after writing what was missing.
pub(crate) async fn history(
    context: &Context,
    owner: &Owner,
    object: &Value,
) -> Result<History, Failure> {
    let of: &Collection = &CONTROLLER_REVISIONS;
    let mut all = context.scoped(of, &scope()).owned_by(&owner.uid);
    all.retain(|revision| {
        controller_of(revision).is_some_and(|reference| reference["uid"] == *owner.uid)
    });
    revision::sort(&mut all);
    let collisions = object["status"]["collisionCount"].as_i64();
    revision::keep(context, &Present::of(owner, object), all, collisions).await
}

/// The newest revision before the present one that is to be gone back to: one that was rolled out, or else any that did not fail.
pub(crate) fn last_good(history: &History) -> Option<&Arc<Value>> {
    let older = || history.all.iter().rev().skip(1);
    older()
        .find(|revision| Mark::of(revision) == Some(Mark::Complete))
        .or_else(|| older().find(|revision| Mark::of(revision).is_none()))
}

/// Notes how the rollout of the present revision ended.
pub(crate) async fn mark(
    context: &Context,
    history: &mut History,
    mark: Mark,
) -> Result<(), Failure> {
    let current = &mut history.current;
    if Mark::of(current) == Some(mark) {
        return Ok(());
    }
    let patch = json!({"metadata": {"uid": current["metadata"]["uid"], "annotations": {ROLLOUT: mark.text()}}});
    let of = &CONTROLLER_REVISIONS;
    *current = context.merge(of, &Key::of(current), "", &patch).await?;
    Ok(())
}

/// Deletes the oldest beyond `limit`; the present one and those that workloads are of do not count.
pub(crate) async fn truncate(
    context: &Context,
    history: &History,
    limit: Option<i32>,
    used: &BTreeSet<&str>,
) -> Result<(), Failure> {
    for revision in excess(&history.all, limit, used) {
        context.delete(&CONTROLLER_REVISIONS, revision).await?;
    }
    Ok(())
}

fn excess<'r>(
    all: &'r [Arc<Value>],
    limit: Option<i32>,
    used: &BTreeSet<&str>,
) -> Vec<&'r Arc<Value>> {
    let older = all.split_last().map_or(&[][..], |(_, older)| older);
    let mut old: Vec<_> = older
        .iter()
        .filter(|revision| !used.contains(name(revision)) && !pod::is_deleting(revision))
        .collect();
    let keep = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
    old.truncate(old.len().saturating_sub(keep));
    old
}

#[cfg(test)]
mod tests {
    use super::*;
    use yurt_controller::{
        collections::YURT_APP_SETS,
        revision::{Step, number},
    };

    fn set(name: &str, image: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "default", "uid": "u", "labels": {"team": "a"}}, "spec": {"workload":
            {"workloadTemplate": {"deploymentTemplate": {"spec": {"template": {"spec": {"containers": [{"image": image}]}}}}}}}})
    }

    fn owner(set: &Value) -> Owner {
        Owner::of(&YURT_APP_SETS, set, None)
    }

    fn made(name: &str, image: &str, number: i64) -> Arc<Value> {
        let set = set(name, image);
        Arc::new(new(&owner(&set), &set, number, None))
    }

    #[test]
    fn the_present_spec_has_the_highest_number() {
        let at = |image: &str, revisions: &[Arc<Value>]| {
            let set = set("web", image);
            revision::step(&Present::of(&owner(&set), &set), revisions)
        };
        assert_eq!(at("a", &[]), Step::Create(1));
        let revisions = [made("web", "a", 1), made("web", "b", 2)];
        assert_eq!(at("b", &revisions), Step::Keep(1));
        assert_eq!(at("a", &revisions), Step::Renumber(0, 3));
        assert_eq!(at("c", &revisions), Step::Create(3));
        assert_eq!(
            revisions[0]["metadata"]["labels"][labels::REF_YURT_APP_SET],
            "web"
        );
        assert_eq!(
            revisions[0]["data"]["spec"]["workload"]["$patch"],
            "replace"
        );
    }

    #[test]
    fn what_go_prints_for_nothing_is_no_difference_but_an_empty_selector_is() {
        let go = json!({"a": 1, "metadata": {"creationTimestamp": null}, "strategy": {}, "$patch": "replace"});
        assert_eq!(plain(&go), json!({"a": 1}));
        let selector = json!({"nodepoolSelector": {}});
        assert_eq!(plain(&selector), selector);
    }

    #[test]
    fn names_fit_into_labels() {
        let long = "n".repeat(200);
        let revision = made(&long, "a", 1);
        assert!(name(&revision).len() <= LONGEST_LABEL);
        assert!(
            revision["metadata"]["labels"][labels::REF_YURT_APP_SET]
                .as_str()
                .is_some_and(|value| value.len() <= LONGEST_LABEL)
        );
    }

    #[test]
    fn old_revisions_go_beyond_the_limit_unless_used() {
        let all: Vec<_> = ["a", "b", "c", "d"]
            .iter()
            .zip(1..)
            .map(|(image, number)| made("web", image, number))
            .collect();
        let used = BTreeSet::from([name(&all[0])]);
        let gone = excess(&all, Some(1), &used);
        assert_eq!(gone.len(), 1);
        assert_eq!(name(gone[0]), name(&all[1]));
        assert!(excess(&all[..0], Some(0), &used).is_empty());
    }

    #[test]
    fn what_was_rolled_out_is_gone_back_to() {
        let marked = |image: &str, number, mark: Option<Mark>| {
            let mut revision = Value::clone(&made("web", image, number));
            if let Some(mark) = mark {
                revision["metadata"]["annotations"] = json!({ROLLOUT: mark.text()});
            }
            Arc::new(revision)
        };
        let history = |marks: &[Option<Mark>]| {
            let all: Vec<_> = (1..)
                .zip(marks)
                .map(|(number, mark)| marked(&number.to_string(), number, *mark))
                .collect();
            History {
                current: all.last().expect("one").clone(),
                all,
                collisions: None,
            }
        };
        let good = |marks: &[Option<Mark>]| last_good(&history(marks)).map(|r| number(r));
        assert_eq!(good(&[None]), None);
        assert_eq!(good(&[Some(Mark::Complete), None, None]), Some(1));
        assert_eq!(good(&[None, Some(Mark::Failed), None]), Some(1));
    }
}
