//! Custom resources in another version than the one they were stored in: their `apiVersion` is set (strategy `None`), or a
//! webhook is asked (strategy `Webhook`).

use crate::{
    crd::{Crd, Structural},
    meta,
    registry::{Registry, Reply},
    resources::Resource,
    storage::Stored,
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use yurt_wire::{Gvk, Reason, Status, gvk::join_api_version};

/// As kube-apiserver waits.
const PATIENCE: Duration = Duration::from_secs(30);
/// Objects in one review: a list is converted in parts of this size.
const MAX_OBJECTS: usize = 500;

/// What is wrong with a conversion.
fn failed(message: String) -> Box<Status> {
    let mut status = Status::new(Reason::InternalError, message);
    // kube-apiserver gives these no reason.
    status.foreign = Some((500, String::new()));
    Box::new(status)
}

/// The definition of a resource whose objects may be stored in more than one version.
fn versioned(resource: &Resource) -> Option<&Crd> {
    let crd = &resource.custom.as_ref()?.crd;
    (crd.versions.len() > 1).then_some(&**crd)
}

/// The schema of a resource that sets defaults: those that came into it after an object was stored are filled in when it
/// is read.
fn defaulting(resource: &Resource) -> Option<&Structural> {
    let schema = resource.crd_version()?.schema.as_ref()?;
    schema.has_defaults().then_some(schema)
}

fn with_defaults(resource: &Resource, objects: Vec<Arc<Stored>>) -> Vec<Arc<Stored>> {
    let Some(schema) = defaulting(resource) else {
        return objects;
    };
    objects
        .into_iter()
        .map(|object| {
            let stored = object.value();
            let mut value = stored.clone();
            schema.apply_defaults(&mut value);
            if value == stored {
                object
            } else {
                Arc::new(object.showing(&value))
            }
        })
        .collect()
}

impl Resource {
    /// Whether what a client sees may differ from what is stored in more than the apiVersion.
    pub(crate) fn asks_webhook(&self) -> bool {
        versioned(self).is_some_and(|crd| crd.conversion_webhook.is_some())
    }
}

impl Registry {
    /// Stored objects as `resource` serves them.
    pub(crate) async fn shown(
        &self,
        resource: &Resource,
        objects: Vec<Arc<Stored>>,
    ) -> Reply<Vec<Arc<Stored>>> {
        if versioned(resource).is_none() || objects.is_empty() {
            return Ok(with_defaults(resource, objects));
        }
        let values = objects.iter().map(|object| object.value()).collect();
        let values = self.in_version(resource, &resource.version, values).await?;
        let converted = objects
            .into_iter()
            .zip(values)
            .map(|(object, value)| match value {
                Some(value) => Arc::new(object.showing(&value)),
                None => object,
            })
            .collect();
        Ok(with_defaults(resource, converted))
    }

    /// One stored object as `resource` serves it.
    pub(crate) async fn shown_one(
        &self,
        resource: &Resource,
        object: Arc<Stored>,
    ) -> Reply<Arc<Stored>> {
        if versioned(resource).is_none() && defaulting(resource).is_none() {
            return Ok(object);
        }
        let mut objects = self.shown(resource, vec![object.clone()]).await?;
        Ok(objects.pop().unwrap_or(object))
    }

    /// An object from storage as a value of the version served.
    pub(crate) async fn served_value(&self, resource: &Resource, object: Value) -> Reply<Value> {
        let mut value = if versioned(resource).is_none() {
            super::to_served(resource, object)
        } else {
            self.one_in_version(resource, &resource.version, object)
                .await?
        };
        if let Some(schema) = defaulting(resource) {
            schema.apply_defaults(&mut value);
        }
        Ok(value)
    }

    /// An object of the version served as it is stored.
    pub(crate) async fn stored_value(&self, resource: &Resource, object: Value) -> Reply<Value> {
        if versioned(resource).is_none() {
            return Ok(super::to_stored(resource, object));
        }
        self.one_in_version(resource, &resource.storage_version, object)
            .await
    }

    /// An object of one resource as another resource shows it.
    pub(crate) async fn converted(
        &self,
        from: &Resource,
        to: &Resource,
        object: Value,
    ) -> Reply<Value> {
        if from.version == to.version && from.group == to.group {
            return Ok(object);
        }
        if to.custom.is_some() {
            return self.one_in_version(to, &to.version, object).await;
        }
        Ok(super::to_served(to, super::to_stored(from, object)))
    }

    async fn one_in_version(
        &self,
        resource: &Resource,
        version: &str,
        object: Value,
    ) -> Reply<Value> {
        let mut converted = self
            .in_version(resource, version, vec![object.clone()])
            .await?;
        Ok(converted.pop().flatten().unwrap_or(object))
    }

    /// Objects in a version; `None` for those that are in it.
    async fn in_version(
        &self,
        resource: &Resource,
        version: &str,
        objects: Vec<Value>,
    ) -> Reply<Vec<Option<Value>>> {
        let wanted = join_api_version(&resource.group, version);
        let webhook = versioned(resource).and_then(|crd| crd.conversion_webhook.as_ref());
        let mut out: Vec<Option<Value>> = Vec::with_capacity(objects.len());
        let mut others = Vec::new();
        for (i, mut object) in objects.into_iter().enumerate() {
            out.push(None);
            if object["apiVersion"] == *wanted {
                continue;
            }
            if webhook.is_none() {
                object["apiVersion"] = wanted.clone().into();
                out[i] = Some(object);
            } else {
                others.push((i, object));
            }
        }
        let Some(webhook) = webhook else {
            return Ok(out);
        };
        while !others.is_empty() {
            let part: Vec<(usize, Value)> = others.drain(..others.len().min(MAX_OBJECTS)).collect();
            let (places, objects): (Vec<usize>, Vec<Value>) = part.into_iter().unzip();
            let converted = self.ask_to_convert(webhook, &wanted, &objects).await?;
            for (place, object) in places.into_iter().zip(converted) {
                out[place] = Some(object);
            }
        }
        Ok(out)
    }

    async fn ask_to_convert(
        &self,
        conversion: &Value,
        wanted: &str,
        objects: &[Value],
    ) -> Reply<Vec<Value>> {
        let versions = conversion["webhook"]["conversionReviewVersions"].as_array();
        let spoken = versions
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .find(|version| matches!(*version, "v1" | "v1beta1"));
        let about = objects.first().map_or_else(String::new, kind_of);
        let fail = |why: &str| failed(format!("conversion webhook for {about} failed: {why}"));
        let Some(version) = spoken else {
            return Err(fail(
                "no acceptable ConversionReview version; v1 and v1beta1 are spoken",
            ));
        };
        let uid = meta::new_uid();
        let api_version = format!("apiextensions.k8s.io/{version}");
        let review = json!({"kind": "ConversionReview", "apiVersion": api_version, "request": {
            "uid": uid, "desiredAPIVersion": wanted, "objects": objects}});
        let client = &conversion["webhook"]["clientConfig"];
        let answer = self
            .caller
            .call(&self.storage, client, &review, PATIENCE)
            .await
            .map_err(|error| fail(&error.to_string()))?;
        read(&answer, &api_version, &uid, wanted, objects).map_err(|why| fail(&why))
    }
}

/// `example.com/v1, Kind=Thing`.
fn kind_of(object: &Value) -> String {
    let text = |name: &str| object[name].as_str().unwrap_or_default();
    let gvk = Gvk::from_api_version(text("apiVersion"), text("kind"));
    format!("{}, Kind={}", gvk.api_version(), gvk.kind)
}

/// The objects of an answer; otherwise what is wrong with it.
fn read(
    answer: &Value,
    api_version: &str,
    uid: &str,
    wanted: &str,
    originals: &[Value],
) -> Result<Vec<Value>, String> {
    let response = &answer["response"];
    if !response.is_object() {
        return Err("no response provided".into());
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if api_version.ends_with("/v1") {
        let given = text(&response["uid"]);
        if given != uid {
            return Err(format!("expected response.uid={uid:?}, got {given:?}"));
        }
        if answer["kind"] != "ConversionReview" || answer["apiVersion"] != *api_version {
            return Err(format!(
                "expected webhook response of {api_version}, Kind=ConversionReview, got {}",
                kind_of(answer)
            ));
        }
    }
    let result = &response["result"];
    if result["status"] != "Success" {
        return Err(match (text(&result["message"]), text(&result["reason"])) {
            (message, _) if !message.is_empty() => message,
            (_, reason) if !reason.is_empty() => reason,
            _ => format!(
                "response.result.status was '{}', not 'Success'",
                text(&result["status"])
            ),
        });
    }
    let converted = response["convertedObjects"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if converted.len() != originals.len() {
        return Err(format!(
            "returned {} objects, expected {}",
            converted.len(),
            originals.len()
        ));
    }
    originals
        .iter()
        .zip(converted)
        .enumerate()
        .map(|(i, (original, converted))| {
            settle(original, converted, wanted)
                .map_err(|why| format!("returned invalid converted object at index {i}: {why}"))
        })
        .collect()
}

/// A converted object with the metadata it may not have changed: only labels and annotations are the webhook's.
fn settle(original: &Value, converted: &Value, wanted: &str) -> Result<Value, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let given = text(&converted["apiVersion"]);
    if given != wanted {
        return Err(format!(
            "invalid groupVersion (expected {wanted}, received {given})"
        ));
    }
    if converted["kind"] != original["kind"] {
        return Err(format!(
            "invalid kind (expected {}, received {})",
            text(&original["kind"]),
            text(&converted["kind"])
        ));
    }
    if !converted["metadata"].is_object() {
        return Err("must have metadata".into());
    }
    for field in ["name", "namespace", "uid"] {
        let (before, after) = (meta::text(original, field), meta::text(converted, field));
        if before != after {
            return Err(format!(
                "invalid metadata, must have the same {field}: {after} != {before}"
            ));
        }
    }
    let mut out = converted.clone();
    let metadata = out["metadata"].take();
    out["metadata"] = original["metadata"].clone();
    for field in ["labels", "annotations"] {
        match metadata.get(field).filter(|value| value.is_object()) {
            Some(value) => out["metadata"][field] = value.clone(),
            None => meta::remove(&mut out, field),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn original() -> Value {
        json!({"apiVersion": "example.com/v1", "kind": "Thing",
            "metadata": {"name": "a", "uid": "u", "resourceVersion": "5", "labels": {"a": "b"}}})
    }

    fn answered(object: Value) -> Result<Vec<Value>, String> {
        let answer = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
            "response": {"uid": "x", "result": {"status": "Success"}, "convertedObjects": [object]}});
        read(
            &answer,
            "apiextensions.k8s.io/v1",
            "x",
            "example.com/v2",
            &[original()],
        )
    }

    #[test]
    fn only_labels_and_annotations_are_the_webhooks() {
        let converted = json!({"apiVersion": "example.com/v2", "kind": "Thing", "spec": 1,
            "metadata": {"name": "a", "uid": "u", "resourceVersion": "99", "labels": {"c": "d"}}});
        let object = answered(converted).expect("a good answer").remove(0);
        assert_eq!(object["metadata"]["resourceVersion"], "5");
        assert_eq!(object["metadata"]["labels"], json!({"c": "d"}));
        assert_eq!(object["spec"], 1);
    }

    #[test]
    fn answers_that_do_not_fit_are_refused() {
        let with = |field: &str, value: Value| {
            let mut object = json!({"apiVersion": "example.com/v2", "kind": "Thing",
                "metadata": {"name": "a", "uid": "u"}});
            object[field] = value;
            answered(object).expect_err("a bad answer")
        };
        assert!(with("apiVersion", "example.com/v1".into()).contains("invalid groupVersion"));
        assert!(with("kind", "Other".into()).contains("invalid kind"));
        assert!(
            with("metadata", json!({"name": "b", "uid": "u"}))
                .contains("must have the same name: b != a")
        );
        let refuse =
            |answer: Value| read(&answer, "apiextensions.k8s.io/v1", "x", "v", &[original()]);
        assert_eq!(refuse(json!({})), Err("no response provided".into()));
        let failure = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
            "response": {"uid": "x", "result": {"status": "Failure", "message": "no way"}}});
        assert_eq!(refuse(failure), Err("no way".into()));
    }
}
