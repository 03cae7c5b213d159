//! YurtAppOverriders: one per subject, for as long as the subject is there.

use super::{
    fault::Findings,
    review::{Answer, Denial},
};
use serde_json::Value;
use yurt_api::apps::yurtappoverrider::YurtAppOverrider;
use yurt_controller::fields::{items, text};

/// Kinds of subjects.
pub(super) const KINDS: [&str; 2] = ["YurtAppSet", "YurtAppDaemon"];

/// Kind and name of the subject.
pub(super) fn subject(overrider: &Value) -> (String, String) {
    let subject = &overrider["subject"];
    (text(&subject["kind"]), text(&subject["name"]))
}

/// Judges an overrider that is created, or takes the place of `old`. `others` are those of its namespace.
pub(super) fn judged(old: Option<&Value>, new: &Value, others: &[Value]) -> Result<Answer, Denial> {
    let mut found = findings(new);
    let own = subject(new);
    if old.is_some_and(|old| subject(old) != own) {
        found.fault(
            "subject",
            "cannot be changed: create another overrider for the other subject",
        );
    }
    let name = text(&new["metadata"]["name"]);
    let twin = others.iter().find(|other| {
        subject(other) == own
            && other["metadata"]["name"] != name.as_str()
            && other["metadata"]["deletionTimestamp"].is_null()
    });
    if let Some(twin) = twin {
        found.fault(
            "subject",
            format!(
                "{} {} has the overrider {} already: add the entries to that one",
                own.0,
                own.1,
                text(&twin["metadata"]["name"])
            ),
        );
        // Where there are two already, each can still be changed.
        if old.is_some() {
            found.faults.pop();
        }
    }
    found.verdict(old.map(findings))
}

/// Judges the end of an overrider; `subject_lives`: what it is about is still there and stays.
pub(super) fn deleted(overrider: &Value, subject_lives: bool) -> Result<Answer, Denial> {
    if !subject_lives {
        return Ok(Answer::default());
    }
    let (kind, name) = subject(overrider);
    Err(Denial::Forbidden(format!(
        "{kind} {name} is still there and would become the same in all pools at once: delete it first, or take back what is \
         different with `entries: []`"
    )))
}

fn findings(overrider: &Value) -> Findings {
    let mut found = Findings::default();
    let (kind, name) = subject(overrider);
    if !KINDS.contains(&kind.as_str()) {
        found.fault(
            "subject.kind",
            format!("{kind:?} is none of {}", KINDS.join(", ")),
        );
    }
    if name.is_empty() {
        found.fault("subject.name", "is needed");
    }
    let body =
        serde_json::json!({"subject": overrider["subject"], "entries": overrider["entries"]});
    let body: YurtAppOverrider = match serde_json::from_value(body) {
        Ok(body) => body,
        Err(error) => {
            found.fault("entries", error.to_string());
            return found;
        }
    };
    let raw: Vec<&Value> = items(&overrider["entries"]).collect();
    for (i, entry) in body.entries.iter().enumerate() {
        let at = format!("entries[{i}]");
        if entry.pools.is_empty() {
            found.warning(format!("{at}.pools is empty: the entry has no effect"));
        }
        for (j, item) in entry.items.iter().enumerate() {
            let at = format!("{at}.items[{j}]");
            let said = raw.get(i).map(|entry| &entry["items"][j]);
            let given = |field: &str| said.is_some_and(|item| !item[field].is_null());
            if given("image") == given("replicas") {
                found.fault(&at, "exactly one of image and replicas is needed");
            }
            if item.replicas.is_some_and(|replicas| replicas < 0) {
                found.fault(format!("{at}.replicas"), "must not be negative");
            }
            if let Some(image) = &item.image
                && (image.container_name.is_empty() || image.image_claim.is_empty())
            {
                found.fault(
                    format!("{at}.image"),
                    "containerName and imageClaim are needed",
                );
            }
        }
        for (j, patch) in entry.patches.iter().enumerate() {
            let at = format!("{at}.patches[{j}]");
            if !["add", "remove", "replace"].contains(&patch.operation.as_str()) {
                found.fault(
                    format!("{at}.operation"),
                    format!("{:?} is none of add, remove, replace", patch.operation),
                );
            }
            if !patch.path.starts_with('/') {
                found.fault(
                    format!("{at}.path"),
                    format!("{:?} is no JSON pointer, as /spec/replicas", patch.path),
                );
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn overrider(name: &str, subject: &str) -> Value {
        json!({"kind": "YurtAppOverrider", "metadata": {"name": name},
            "subject": {"apiVersion": "apps.openyurt.io/v1alpha1", "kind": "YurtAppSet", "name": subject},
            "entries": [{"pools": ["*", "-a"], "items": [{"image": {"containerName": "web", "imageClaim": "web:2"}}, {"replicas": 3}],
                "patches": [{"operation": "replace", "path": "/spec/x", "value": 1}]}]})
    }

    #[test]
    fn a_subject_has_one_overrider() {
        let (a, b) = (overrider("a", "web"), overrider("b", "web"));
        assert_eq!(judged(None, &a, &[]), Ok(Answer::default()));
        assert_eq!(
            judged(Some(&a), &a, std::slice::from_ref(&a)),
            Ok(Answer::default())
        );
        assert!(judged(None, &a, &[overrider("c", "other")]).is_ok());
        let denied = judged(None, &a, std::slice::from_ref(&b)).expect_err("two");
        assert!(
            format!("{denied:?}").contains("overrider b already"),
            "{denied:?}"
        );
        let mut going = b.clone();
        going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert!(judged(None, &a, &[going]).is_ok());
        assert!(judged(Some(&a), &a, &[b]).is_ok(), "both are there already");
        assert!(judged(Some(&a), &overrider("a", "other"), &[]).is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (pointer, value, why) in [
            ("/subject/kind", json!("Deployment"), "subject.kind"),
            ("/subject/name", json!(""), "subject.name"),
            ("/entries", json!("x"), "entries"),
            (
                "/entries/0/items/0",
                json!({}),
                "entries[0].items[0]: exactly one",
            ),
            (
                "/entries/0/items/0",
                json!({"replicas": 1, "image": {"containerName": "a", "imageClaim": "b"}}),
                "exactly one",
            ),
            (
                "/entries/0/items/1/replicas",
                json!(-1),
                "entries[0].items[1].replicas",
            ),
            (
                "/entries/0/items/0/image/imageClaim",
                json!(""),
                "entries[0].items[0].image",
            ),
            (
                "/entries/0/patches/0/operation",
                json!("move"),
                "patches[0].operation",
            ),
            (
                "/entries/0/patches/0/path",
                json!("spec"),
                "patches[0].path",
            ),
        ] {
            let mut wrong = overrider("a", "web");
            *wrong.pointer_mut(pointer).expect(pointer) = value;
            let Err(Denial::Invalid(faults)) = judged(None, &wrong, &[]) else {
                panic!("{pointer} is allowed");
            };
            assert!(
                faults.iter().any(|fault| fault.to_string().contains(why)),
                "{pointer}: {faults:?}"
            );
            assert_eq!(judged(Some(&wrong), &wrong, &[]).map(drop), Ok(()));
        }
    }

    #[test]
    fn an_overrider_stays_with_its_subject() {
        let one = overrider("a", "web");
        assert!(deleted(&one, false).is_ok());
        let denied = deleted(&one, true).expect_err("still there");
        assert!(
            format!("{denied:?}").contains("YurtAppSet web"),
            "{denied:?}"
        );
    }
}
