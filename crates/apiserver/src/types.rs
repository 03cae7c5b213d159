//! Whether JSON has the types its kind asks for. Everything after this check relies on objects being objects and
//! lists being lists.

use crate::{registry::Reply, resources::Resource, validation};
use serde_json::Value;
use yurt_wire::{Gvk, Status};

/// A 400 Status when a value of the object has a type its kind does not allow. Of custom resources only the metadata is
/// checked here; the rest is for their schema.
pub(crate) fn check(resource: &Resource, object: &Value) -> Reply<()> {
    if resource.custom.is_some() {
        check_metadata(object)
    } else {
        check_kind(&resource.gvk(), object)
    }
}

/// As [`check`], of a built-in kind.
pub(crate) fn check_kind(gvk: &Gvk, object: &Value) -> Reply<()> {
    validation::type_errors(gvk, object).map_err(|why| Box::new(Status::bad_request(why)))
}

/// Metadata is the same for all kinds.
fn check_metadata(object: &Value) -> Reply<()> {
    check_kind(
        &Gvk::from_api_version("meta.k8s.io/v1", "PartialObjectMetadata"),
        object,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn metadata_of_any_kind_is_checked() {
        for bad in [
            json!([]),
            json!({"metadata": "x"}),
            json!({"metadata": {"labels": []}}),
            json!({"metadata": {"labels": {"a": 1}}}),
            json!({"metadata": {"annotations": "x"}}),
            json!({"metadata": {"finalizers": "x"}}),
            json!({"metadata": {"ownerReferences": {}}}),
        ] {
            assert!(check_metadata(&bad).is_err(), "{bad}");
            assert!(check_kind(&Gvk::from_api_version("v1", "Pod"), &bad).is_err());
        }
        assert!(check_metadata(&json!({"metadata": {"name": "a"}, "spec": "free"})).is_ok());
    }
}
