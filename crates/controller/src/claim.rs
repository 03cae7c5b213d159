//! Which objects are a controller's: by the owner reference `controller: true`, adopted where there is none and the selector
//! fits, released where the selector no longer fits.

use crate::{
    Change, Collection, Context, Failure, Key, Objects, Watch, fields, objects::controller_of, pod,
};
use serde_json::{Value, json};
use std::sync::Arc;
use yurt_wire::selector::LabelSelector;

/// What becomes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Own,
    Adopt,
    Release,
    NotMine,
}

/// The labels of an object.
pub fn labels(object: &Value) -> Vec<(String, String)> {
    fields::labels(&object["metadata"]["labels"])
}

/// `spec.selector` of a workload; a plain map is meant as `matchLabels`. One that selects everything, or nothing, or that
/// cannot be read, selects no pods.
pub fn selector_of(owner: &Value) -> Option<LabelSelector> {
    let selector = &owner["spec"]["selector"];
    let plain = selector
        .as_object()
        .is_some_and(|map| !map.is_empty() && map.values().all(Value::is_string));
    let selector = if plain {
        LabelSelector::from_json(&json!({"matchLabels": selector}))
    } else {
        LabelSelector::from_json(selector)
    };
    selector.ok().filter(|selector| !selector.is_empty())
}

/// Whether a selector fits an object.
pub fn selects(selector: &LabelSelector, object: &Value) -> bool {
    selector.matches(&labels(object))
}

/// The reference by which `owner` controls an object.
pub fn reference(collection: &Collection, owner: &Value) -> Value {
    json!({"apiVersion": collection.api_version, "kind": collection.kind,
        "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"],
        "controller": true, "blockOwnerDeletion": true})
}

fn judge(owner: &Value, selector: &LabelSelector, object: &Value) -> Verdict {
    match controller_of(object) {
        Some(controller) if controller["uid"] != owner["metadata"]["uid"] => Verdict::NotMine,
        Some(_) if selects(selector, object) => Verdict::Own,
        Some(_) if pod::is_deleting(owner) => Verdict::NotMine,
        Some(_) => Verdict::Release,
        None if pod::is_deleting(owner) || pod::is_deleting(object) => Verdict::NotMine,
        None if selects(selector, object) => Verdict::Adopt,
        None => Verdict::NotMine,
    }
}

/// The objects of `candidates` that are `owner`'s (an object of `collection`), after adopting and releasing.
pub async fn claim(
    context: &Context,
    collection: &Collection,
    owner: &Value,
    selector: &LabelSelector,
    of: &Collection,
    candidates: Vec<Arc<Value>>,
) -> Result<Vec<Arc<Value>>, Failure> {
    let mut own = Vec::new();
    let mut may_adopt = false;
    for object in candidates {
        match judge(owner, selector, &object) {
            Verdict::Own => own.push(object),
            Verdict::NotMine => {}
            Verdict::Adopt => {
                if !may_adopt {
                    check_alive(context, collection, owner).await?;
                    may_adopt = true;
                }
                let patch = json!({"metadata": {"uid": object["metadata"]["uid"],
                    "ownerReferences": [reference(collection, owner)]}});
                match context.patch(of, &Key::of(&object), "", &patch).await {
                    Ok(adopted) => own.push(adopted),
                    Err(error) if error.code() == Some(404) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Verdict::Release => {
                let patch = json!({"metadata": {"uid": object["metadata"]["uid"],
                    "ownerReferences": [{"$patch": "delete", "uid": owner["metadata"]["uid"]}]}});
                match context.patch(of, &Key::of(&object), "", &patch).await {
                    Ok(_) => {}
                    // Gone, or another of that name.
                    Err(error) if matches!(error.code(), Some(404 | 409 | 422)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    Ok(own)
}

/// Who is being deleted adopts nobody; the server knows better than the cache.
async fn check_alive(
    context: &Context,
    collection: &Collection,
    owner: &Value,
) -> Result<(), Failure> {
    let key = Key::of(owner);
    let live = context.kube().get(&collection.object_path(&key)).await?;
    if live["metadata"]["uid"] != owner["metadata"]["uid"] || pod::is_deleting(&live) {
        return Err(Failure::Object(format!(
            "{} {key} is being deleted and adopts nothing",
            collection.kind
        )));
    }
    Ok(())
}

impl Watch {
    /// Each change concerns the controller of kind `owner_kind`; an object without a controller concerns those of `owners` that
    /// could adopt it.
    pub fn claimed(collection: Collection, owner_kind: &'static str, owners: Arc<Objects>) -> Self {
        let owned = Self::owned(collection.clone(), owner_kind);
        Self::of(collection, move |change: &Change| {
            let mut keys = (owned.concerns)(change);
            if let Some(object) = &change.new
                && controller_of(object).is_none()
                && !pod::is_deleting(object)
            {
                keys.extend(adopters(&owners, object));
            }
            keys
        })
    }
}

fn adopters(owners: &Objects, object: &Value) -> Vec<Key> {
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let labels = labels(object);
    if labels.is_empty() {
        return Vec::new();
    }
    let owners = owners.list(namespace);
    owners
        .iter()
        .filter(|owner| selector_of(owner).is_some_and(|selector| selector.matches(&labels)))
        .map(|owner| Key::of(owner))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gets_an_object() {
        let owner =
            json!({"metadata": {"uid": "me"}, "spec": {"selector": {"matchLabels": {"app": "a"}}}});
        let mut dying = owner.clone();
        dying["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        let selector = selector_of(&owner).unwrap();
        let object = |app: &str, controller: Option<&str>| {
            let owners: Vec<Value> = controller
                .map(|uid| json!({"uid": uid, "controller": true}))
                .into_iter()
                .collect();
            json!({"metadata": {"labels": {"app": app}, "ownerReferences": owners}})
        };
        for (owner, object, expected) in [
            (&owner, object("a", Some("me")), Verdict::Own),
            (&owner, object("b", Some("me")), Verdict::Release),
            (&owner, object("a", Some("other")), Verdict::NotMine),
            (&owner, object("a", None), Verdict::Adopt),
            (&owner, object("b", None), Verdict::NotMine),
            (&dying, object("a", Some("me")), Verdict::Own),
            (&dying, object("b", Some("me")), Verdict::NotMine),
            (&dying, object("a", None), Verdict::NotMine),
        ] {
            assert_eq!(judge(owner, &selector, &object), expected, "{object}");
        }
        let mut going = object("a", None);
        going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(judge(&owner, &selector, &going), Verdict::NotMine);
    }

    #[test]
    fn a_selector_that_says_nothing_selects_nothing() {
        assert!(selector_of(&json!({"spec": {}})).is_none());
        assert!(selector_of(&json!({"spec": {"selector": {}}})).is_none());
        let plain = selector_of(&json!({"spec": {"selector": {"app": "a"}}})).unwrap();
        assert!(plain.matches(&[("app".into(), "a".into())]));
    }
}
