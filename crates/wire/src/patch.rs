//! The patch types of the Kubernetes API, on JSON values.

use crate::Gvk;
use serde_json::Value;

/// Why a patch does not apply.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PatchError {
    /// The patch itself is malformed: 400 BadRequest.
    #[error("{0}")]
    Malformed(String),
    /// The patch is well-formed but cannot be applied to this object (missing path, failed test): 422 Invalid.
    #[error("{0}")]
    DoesNotApply(String),
}

/// The kind of a patch by its content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum PatchType {
    Json,
    Merge,
    StrategicMerge,
    Apply,
}

impl PatchType {
    /// From a `Content-Type` (`application/json-patch+json`, `application/merge-patch+json`,
    /// `application/strategic-merge-patch+json`, `application/apply-patch+yaml`).
    pub fn from_content_type(_content_type: &str) -> Option<Self> {
        unimplemented!()
    }
}

/// RFC 6902. At most 10,000 operations, as kube-apiserver.
pub fn json_patch(_target: &mut Value, _patch: &Value) -> Result<(), PatchError> {
    unimplemented!()
}
/// RFC 7386.
pub fn merge_patch(_target: &mut Value, _patch: &Value) {
    unimplemented!()
}
/// Strategic merge patch by the merge keys of the built-in type `gvk` (schema tables), with `$patch`,
/// `$retainKeys`, `$setElementOrder/...` and `$deleteFromPrimitiveList/...`. For kinds without a schema: `Malformed`.
pub fn strategic_merge_patch(
    _gvk: &Gvk,
    _target: &mut Value,
    _patch: &Value,
) -> Result<(), PatchError> {
    unimplemented!()
}
