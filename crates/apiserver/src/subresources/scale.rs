//! `autoscaling/v1` `Scale`: the number of replicas of anything that has one.

use crate::{meta, registry::Reply, resources::Resource, selectable};
use serde_json::{Map, Value, json};
use yurt_wire::{Gvk, Reason, Status, selector::LabelSelector};

/// The kind of a scale.
pub(crate) fn gvk() -> Gvk {
    Gvk::from_api_version("autoscaling/v1", "Scale")
}

/// Where an object keeps its replicas: (wanted, present, selector).
fn paths(resource: &Resource) -> (String, String, Option<String>) {
    let custom = resource.crd_version().and_then(|v| v.scale.as_ref());
    match custom {
        Some(scale) => (
            scale.spec_replicas.clone(),
            scale.status_replicas.clone(),
            scale.label_selector.clone(),
        ),
        None => ("spec.replicas".into(), "status.replicas".into(), None),
    }
}

/// The scale of an object.
pub(crate) fn of(resource: &Resource, object: &Value) -> Reply<Value> {
    let (wanted, present, selector) = paths(resource);
    let number = |path: &str| selectable::at(object, path).and_then(Value::as_i64);
    let selector = match selector {
        Some(path) => selectable::at(object, &path)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned(),
        None if resource.custom.is_some() => String::new(),
        None => selector_text(&object["spec"]["selector"])?,
    };
    let mut metadata = Map::new();
    for field in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if let Some(value) = object["metadata"].get(field) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    let mut scale = json!({
        "apiVersion": "autoscaling/v1",
        "kind": "Scale",
        "metadata": metadata,
        "spec": {},
        "status": {"replicas": number(&present).unwrap_or_default()},
    });
    if let Some(replicas) = number(&wanted)
        && replicas != 0
    {
        scale["spec"]["replicas"] = replicas.into();
    }
    if !selector.is_empty() {
        scale["status"]["selector"] = selector.into();
    }
    Ok(scale)
}

fn selector_text(selector: &Value) -> Reply<String> {
    // Replication controllers have a plain map.
    let is_plain = selector
        .as_object()
        .is_some_and(|s| !s.is_empty() && s.values().all(Value::is_string));
    let selector = if is_plain {
        json!({"matchLabels": selector})
    } else {
        selector.clone()
    };
    LabelSelector::from_json(&selector)
        .map(|s| s.to_string())
        .map_err(|e| Box::new(Status::new(Reason::InternalError, e.to_string())))
}

/// Sets the wanted replicas of an object from a scale.
pub(crate) fn set(resource: &Resource, object: &mut Value, scale: &Value) -> Reply<()> {
    crate::types::check_kind(&gvk(), scale)?;
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or_default();
    if replicas < 0 {
        return Err(Box::new(Status::invalid(
            "autoscaling",
            "Scale",
            meta::name(object),
            vec![yurt_wire::status::Cause {
                reason: "FieldValueInvalid".into(),
                message: format!("Invalid value: {replicas}: must be greater than or equal to 0"),
                field: "spec.replicas".into(),
            }],
        )));
    }
    let (wanted, _, _) = paths(resource);
    let mut at = object;
    for part in wanted.trim_start_matches('.').split('.') {
        if at.is_null() {
            *at = json!({});
        }
        let Some(fields) = at.as_object_mut() else {
            return Err(Box::new(Status::new(
                Reason::BadRequest,
                format!("{wanted} of the object is not a number of replicas"),
            )));
        };
        at = fields.entry(part).or_insert(Value::Null);
    }
    *at = replicas.into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Catalog;

    #[test]
    fn a_deployment_is_scaled() {
        let catalog = Catalog::new(&[]);
        let resource = catalog.find("apps", "v1", "deployments").expect("served");
        let mut object = json!({"metadata": {"name": "d", "namespace": "n", "labels": {"x": "y"}},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}}, "status": {"replicas": 1}});
        let mut scale = of(resource, &object).expect("a scale");
        assert_eq!(scale["spec"]["replicas"], 2);
        assert_eq!(
            scale["status"],
            json!({"replicas": 1, "selector": "app=web"})
        );
        scale["spec"]["replicas"] = 5.into();
        set(resource, &mut object, &scale).expect("scaled");
        assert_eq!(object["spec"]["replicas"], 5);
        scale["spec"]["replicas"] = (-1).into();
        assert!(set(resource, &mut object, &scale).is_err());
    }
}
