//! The volume claims of stateful sets: made before the pod, and owned so that they go when the retention policy says so.

use super::{
    super::{
        Context, Key,
        collections::{PERSISTENT_VOLUME_CLAIMS, PODS, STATEFUL_SETS},
        pod,
    },
    identity::{claims_of, name, ordinal},
    tell,
};
use serde_json::{Value, json};
use std::sync::Arc;
use yurt_controller::{claim, kube::KubeError};

/// Who is to own a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owners {
    set: bool,
    pod: bool,
}

/// `condemned`: the set was scaled below the pod.
fn owners(set: &Value, condemned: bool) -> Owners {
    let policy = &set["spec"]["persistentVolumeClaimRetentionPolicy"];
    let goes = |when: &str| policy[when] == "Delete";
    let pod = condemned && goes("whenScaled");
    Owners {
        set: goes("whenDeleted") && !pod,
        pod,
    }
}

/// The claim's owner references as they should be, when they are not. References to others stay.
fn settled(set: &Value, p: &Value, claim: &Value, condemned: bool) -> Option<Vec<Value>> {
    let owners = owners(set, condemned);
    let known = claim["metadata"]["ownerReferences"].as_array();
    let known = known.map_or(&[][..], Vec::as_slice);
    let mine = |owner: &Value| {
        [set, p]
            .iter()
            .any(|o| owner["uid"] == o["metadata"]["uid"])
    };
    let mut wanted: Vec<Value> = known.iter().filter(|owner| !mine(owner)).cloned().collect();
    if owners.set {
        wanted.push(claim::reference(&STATEFUL_SETS, set));
    }
    if owners.pod {
        wanted.push(claim::reference(&PODS, p));
    }
    let uids = |list: &[Value]| {
        let mut uids: Vec<_> = list.iter().map(|owner| owner["uid"].to_string()).collect();
        uids.sort_unstable();
        uids
    };
    (uids(&wanted) != uids(known)).then_some(wanted)
}

/// Whether a claim belongs to a pod of this name that is gone: then it goes, too.
fn is_stale(claim: &Value, pod_name: &str, uid: &Value) -> bool {
    let owners = claim["metadata"]["ownerReferences"].as_array();
    let mut owners = owners.into_iter().flatten();
    pod::is_deleting(claim)
        || owners.any(|o| o["kind"] == "Pod" && o["name"] == pod_name && o["uid"] != *uid)
}

/// Keeps the claims of one set.
pub(super) struct Keeper<'k> {
    pub(super) context: &'k Context,
    pub(super) set: &'k Value,
}

impl Keeper<'_> {
    /// The claims there are for a pod.
    fn known(&self, p: &Value) -> Vec<Arc<Value>> {
        let namespace = self.set["metadata"]["namespace"]
            .as_str()
            .unwrap_or_default();
        let claims = self.context.objects(&PERSISTENT_VOLUME_CLAIMS);
        let names = claims_of(self.set, ordinal(p).unwrap_or(0));
        let known = names
            .iter()
            .filter_map(|(_, name)| claims.get(&Key::new(namespace, name)));
        known.collect()
    }

    /// Whether claims of this new pod are still on their way out with the one before it.
    pub(super) fn are_going(&self, new: &Value) -> bool {
        let known = self.known(new);
        known.iter().any(|c| is_stale(c, name(new), &Value::Null))
    }

    /// Makes the claims that are missing.
    pub(super) async fn make_missing(&self, set: &Value, p: &Value) -> Result<(), KubeError> {
        let namespace = &set["metadata"]["namespace"];
        let there = self.known(p);
        for (template, claim) in claims_of(set, ordinal(p).unwrap_or(0)) {
            if there.iter().any(|known| name(known) == claim) {
                continue;
            }
            let mut new = template.clone();
            if let Some(new) = new.as_object_mut() {
                new.remove("status");
            }
            let selected = set["spec"]["selector"]["matchLabels"].as_object();
            for (key, value) in selected.into_iter().flatten() {
                new["metadata"]["labels"][key] = value.clone();
            }
            new["metadata"]["name"] = claim.clone().into();
            new["metadata"]["namespace"] = namespace.clone();
            let written = self
                .context
                .create(&PERSISTENT_VOLUME_CLAIMS, new)
                .await
                .map(drop);
            // Somebody else made it.
            let written = match written {
                Err(error) if error.code() == Some(409) => continue,
                written => written,
            };
            let what = format!(
                "create Claim {claim} Pod {} in StatefulSet {}",
                name(p),
                name(set)
            );
            tell(self.context, set, "Create", &what, "success", &written);
            written?;
        }
        Ok(())
    }

    /// Gives the claims of a pod the owners that the retention policy asks for.
    pub(super) async fn settle_owners(&self, p: &Value, condemned: bool) -> Result<(), KubeError> {
        for known in self.known(p) {
            if let Some(owners) = settled(self.set, p, &known, condemned) {
                let patch = json!({"metadata": {"ownerReferences": owners,
                    "resourceVersion": known["metadata"]["resourceVersion"]}});
                let key = Key::of(&known);
                let of = &PERSISTENT_VOLUME_CLAIMS;
                self.context.merge(of, &key, "", &patch).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_owned_by_what_takes_them_along() {
        let p = json!({"metadata": {"name": "db-1", "uid": "pod"}});
        for (deleted, scaled, condemned, expected) in [
            ("Retain", "Retain", false, vec![]),
            ("Retain", "Retain", true, vec![]),
            ("Delete", "Retain", false, vec!["set"]),
            ("Delete", "Retain", true, vec!["set"]),
            ("Retain", "Delete", false, vec![]),
            ("Retain", "Delete", true, vec!["pod"]),
            ("Delete", "Delete", false, vec!["set"]),
            ("Delete", "Delete", true, vec!["pod"]),
        ] {
            let set = json!({"metadata": {"name": "db", "uid": "set"}, "spec": {"persistentVolumeClaimRetentionPolicy":
                {"whenDeleted": deleted, "whenScaled": scaled}}});
            for before in [json!([]), json!([{"uid": "set"}]), json!([{"uid": "pod"}])] {
                let mut claim = json!({"metadata": {"ownerReferences": before}});
                if let Some(owners) = settled(&set, &p, &claim, condemned) {
                    claim["metadata"]["ownerReferences"] = owners.into();
                }
                let uids: Vec<_> = claim["metadata"]["ownerReferences"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|owner| owner["uid"].as_str().unwrap())
                    .collect();
                assert_eq!(uids, expected, "{deleted} {scaled} {condemned} {before}");
                assert!(settled(&set, &p, &claim, condemned).is_none(), "settled");
            }
        }
    }

    #[test]
    fn a_claim_of_a_former_pod_is_stale() {
        let owned = json!({"metadata": {"ownerReferences": [{"kind": "Pod", "name": "db-1", "uid": "old"}]}});
        assert!(is_stale(&owned, "db-1", &Value::Null));
        assert!(is_stale(&owned, "db-1", &"new".into()));
        assert!(!is_stale(&owned, "db-1", &"old".into()));
        assert!(!is_stale(&json!({"metadata": {}}), "db-1", &Value::Null));
    }
}
