//! Which volume fits a claim. Pure.

use serde_json::Value;
use std::sync::Arc;
use yurt_wire::quantity::Quantity;
use yurt_wire::selector::LabelSelector;

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// The storage class of a claim or a volume; `""` is none.
pub(super) fn class(object: &Value) -> &str {
    let annotated = object["metadata"]["annotations"][CLASS_ANNOTATION].as_str();
    annotated
        .or_else(|| object["spec"]["storageClassName"].as_str())
        .unwrap_or_default()
}

/// Whether a volume is (to be) this claim's.
pub(super) fn is_claimed_by(volume: &Value, claim: &Value) -> bool {
    let (reference, meta) = (&volume["spec"]["claimRef"], &claim["metadata"]);
    reference["name"] == meta["name"]
        && reference["namespace"] == meta["namespace"]
        && (reference["uid"].as_str().is_none_or(str::is_empty) || reference["uid"] == meta["uid"])
}

fn modes(object: &Value) -> impl Iterator<Item = &str> {
    let modes = object["spec"]["accessModes"]
        .as_array()
        .into_iter()
        .flatten();
    modes.filter_map(Value::as_str)
}

fn amount(value: &Value) -> Option<Quantity> {
    Quantity::parse(value.as_str()?)
}

fn fits(volume: &Value, claim: &Value) -> bool {
    let (v, c) = (&volume["spec"], &claim["spec"]);
    let mode = |spec: &Value| {
        spec["volumeMode"]
            .as_str()
            .unwrap_or("Filesystem")
            .to_owned()
    };
    let enough = match (
        amount(&v["capacity"]["storage"]),
        amount(&c["resources"]["requests"]["storage"]),
    ) {
        (Some(there), Some(wanted)) => there >= wanted,
        (_, wanted) => wanted.is_none(),
    };
    let selected = c["selector"].is_null()
        || LabelSelector::from_json(&c["selector"]).is_ok_and(|selector| {
            let labels = volume["metadata"]["labels"]
                .as_object()
                .into_iter()
                .flatten();
            let labels: Vec<(String, String)> = labels
                .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
                .collect();
            selector.matches(&labels)
        });
    enough
        && selected
        && mode(v) == mode(c)
        && class(volume) == class(claim)
        && modes(claim).all(|wanted| modes(volume).any(|offered| offered == wanted))
}

/// The volume for a claim: the one that names it, else the smallest that is free and fits.
pub(super) fn find(volumes: &[Arc<Value>], claim: &Value) -> Option<Arc<Value>> {
    let living = || {
        volumes
            .iter()
            .filter(|volume| volume["metadata"]["deletionTimestamp"].is_null())
    };
    if let Some(named) = claim["spec"]["volumeName"]
        .as_str()
        .filter(|name| !name.is_empty())
    {
        let named = living().find(|volume| volume["metadata"]["name"] == named);
        return named
            .filter(|v| v["spec"]["claimRef"].is_null() || is_claimed_by(v, claim))
            .cloned();
    }
    let fitting = || living().filter(|volume| fits(volume, claim));
    if let Some(claimed) = fitting().find(|volume| is_claimed_by(volume, claim)) {
        return Some(claimed.clone());
    }
    fitting()
        .filter(|volume| {
            volume["spec"]["claimRef"].is_null() && volume["status"]["phase"] == "Available"
        })
        .min_by(|a, b| {
            let size = |volume: &Value| amount(&volume["spec"]["capacity"]["storage"]);
            size(a)
                .partial_cmp(&size(b))
                .unwrap_or(std::cmp::Ordering::Equal)
        })
        .cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn volume(name: &str, size: &str) -> Value {
        json!({"metadata": {"name": name, "labels": {"disk": "ssd"}}, "spec": {"capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "storageClassName": "local"}, "status": {"phase": "Available"}})
    }

    fn claim() -> Value {
        json!({"metadata": {"namespace": "d", "name": "data", "uid": "u"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "storageClassName": "local", "resources": {"requests": {"storage": "2Gi"}}}})
    }

    fn found(volumes: &[Value], claim: &Value) -> Option<String> {
        let volumes: Vec<Arc<Value>> = volumes.iter().cloned().map(Arc::new).collect();
        Some(
            find(&volumes, claim)?["metadata"]["name"]
                .as_str()?
                .to_owned(),
        )
    }

    #[test]
    fn the_smallest_free_volume_that_fits_is_taken() {
        let volumes = [
            volume("small", "1Gi"),
            volume("large", "10Gi"),
            volume("right", "3Gi"),
        ];
        assert_eq!(found(&volumes, &claim()).as_deref(), Some("right"));
        let change = |path: &str, value: Value| {
            let mut claim = claim();
            claim["spec"][path] = value;
            found(&volumes, &claim)
        };
        assert_eq!(change("storageClassName", "other".into()), None);
        assert_eq!(change("accessModes", json!(["ReadWriteMany"])), None);
        assert_eq!(change("volumeMode", "Block".into()), None);
        assert_eq!(
            change("selector", json!({"matchLabels": {"disk": "tape"}})),
            None
        );
        assert_eq!(
            change("selector", json!({"matchLabels": {"disk": "ssd"}})).as_deref(),
            Some("right")
        );
        assert_eq!(
            change("volumeName", "large".into()).as_deref(),
            Some("large")
        );
    }

    #[test]
    fn a_volume_that_is_meant_for_a_claim_goes_to_it_and_to_no_other() {
        let mut meant = volume("meant", "9Gi");
        meant["spec"]["claimRef"] = json!({"namespace": "d", "name": "data"});
        assert_eq!(
            found(&[volume("a", "3Gi"), meant.clone()], &claim()).as_deref(),
            Some("meant")
        );
        meant["spec"]["claimRef"]["uid"] = "another".into();
        assert_eq!(found(&[meant.clone()], &claim()), None);
        let mut by_name = claim();
        by_name["spec"]["volumeName"] = "meant".into();
        assert_eq!(found(&[meant], &by_name), None);
    }
}
