//! The name, labels and volumes by which a pod of a stateful set stays who it is.

use super::{
    super::{claim, collections::STATEFUL_SETS, pod},
    HASH,
};
use serde_json::{Value, json};

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// `metadata.name`.
pub(super) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The first ordinal.
pub(super) fn start(set: &Value) -> i64 {
    set["spec"]["ordinals"]["start"].as_i64().unwrap_or(0)
}

fn parts(pod: &Value) -> Option<(&str, i64)> {
    let (parent, ordinal) = name(pod).rsplit_once('-')?;
    let digits = !ordinal.is_empty() && ordinal.bytes().all(|b| b.is_ascii_digit());
    let ordinal = ordinal.parse::<i32>().ok().filter(|_| digits)?;
    Some((parent, ordinal.into()))
}

/// The number in a pod's name.
pub(super) fn ordinal(pod: &Value) -> Option<i64> {
    parts(pod).map(|(_, ordinal)| ordinal)
}

/// Whether a pod's name is one that the set gives.
pub(super) fn is_member(set: &Value, pod: &Value) -> bool {
    parts(pod).is_some_and(|(parent, _)| parent == name(set))
}

/// The claims of a pod: the templates' names and the claims'.
pub(super) fn claims_of(set: &Value, ordinal: i64) -> Vec<(&Value, String)> {
    let templates = set["spec"]["volumeClaimTemplates"].as_array();
    let templates = templates.into_iter().flatten();
    templates
        .map(|template| {
            let claim = format!("{}-{}-{ordinal}", name(template), name(set));
            (template, claim)
        })
        .collect()
}

/// The pod of an ordinal.
pub(super) fn new_pod(set: &Value, ordinal: i64, revision: &str) -> Value {
    let namespace = set["metadata"]["namespace"].as_str().unwrap_or_default();
    let owner = claim::reference(&STATEFUL_SETS, set);
    let mut pod = pod::from_template(&set["spec"]["template"], &owner, namespace);
    let pod_name = format!("{}-{ordinal}", name(set));
    let labels = &mut pod["metadata"]["labels"];
    labels[POD_NAME] = pod_name.clone().into();
    labels[POD_INDEX] = ordinal.to_string().into();
    labels[HASH] = revision.into();
    pod["spec"]["hostname"] = pod_name.clone().into();
    if let Some(service) = set["spec"]["serviceName"]
        .as_str()
        .filter(|s| !s.is_empty())
    {
        pod["spec"]["subdomain"] = service.into();
    }
    pod["metadata"]["name"] = pod_name.into();
    let mut volumes: Vec<Value> = Vec::new();
    for (template, claim) in claims_of(set, ordinal) {
        volumes
            .push(json!({"name": name(template), "persistentVolumeClaim": {"claimName": claim}}));
    }
    // A claim takes the place of a volume of its name.
    let of_template = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let kept: Vec<Value> = of_template
        .filter(|volume| volumes.iter().all(|claim| claim["name"] != volume["name"]))
        .cloned()
        .collect();
    volumes.extend(kept);
    if !volumes.is_empty() {
        pod["spec"]["volumes"] = volumes.into();
    }
    pod
}

/// The pod with the labels of its identity, if it lost them.
pub(super) fn fixed(set: &Value, pod: &Value) -> Option<Value> {
    let ordinal = ordinal(pod).filter(|_| is_member(set, pod))?;
    let (pod_name, index) = (name(pod).to_owned(), ordinal.to_string());
    let labels = &pod["metadata"]["labels"];
    if labels[POD_NAME] == pod_name && labels[POD_INDEX] == index {
        return None;
    }
    let mut fixed = pod.clone();
    fixed["metadata"]["labels"][POD_NAME] = pod_name.into();
    fixed["metadata"]["labels"][POD_INDEX] = index.into();
    Some(fixed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> Value {
        json!({"metadata": {"name": "db", "namespace": "default", "uid": "u"}, "spec": {
            "serviceName": "db", "ordinals": {"start": 5},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {
                "containers": [], "volumes": [{"name": "data", "emptyDir": {}}, {"name": "conf", "emptyDir": {}}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}}]}})
    }

    #[test]
    fn a_pod_is_who_its_number_says() {
        let pod = new_pod(&set(), 7, "db-abc");
        assert_eq!(name(&pod), "db-7");
        assert_eq!(pod["metadata"]["generateName"], "db-");
        assert_eq!(
            pod["metadata"]["labels"],
            json!({"app": "db", "statefulset.kubernetes.io/pod-name": "db-7", "apps.kubernetes.io/pod-index": "7",
                "controller-revision-hash": "db-abc"})
        );
        assert_eq!(pod["spec"]["hostname"], "db-7");
        assert_eq!(pod["spec"]["subdomain"], "db");
        assert_eq!(
            pod["spec"]["volumes"],
            json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data-db-7"}}, {"name": "conf", "emptyDir": {}}])
        );
        assert!(is_member(&set(), &pod));
        assert!(fixed(&set(), &pod).is_none());
        let mut robbed = pod.clone();
        robbed["metadata"]["labels"] = json!({"app": "db", "controller-revision-hash": "db-abc"});
        assert_eq!(fixed(&set(), &robbed), Some(pod));
    }

    #[test]
    fn names_of_others_are_no_members() {
        for (other, member) in [
            ("db-1", true),
            ("db-x", false),
            ("db-", false),
            ("db", false),
            ("other-1", false),
            ("db--1", false),
            ("db-99999999999", false),
        ] {
            let pod = json!({"metadata": {"name": other}});
            assert_eq!(is_member(&set(), &pod), member, "{other}");
        }
    }
}
