//! The patch types of the Kubernetes API, on JSON values.

use crate::{Gvk, Status, status::Reason};
use serde_json::Value;

mod strategic;

/// Operations that one JSON Patch may have.
pub const MAX_JSON_PATCH_OPERATIONS: usize = 10_000;
/// Bytes that the `copy` operations of one JSON Patch may add in all: each can double what the one before made.
pub const MAX_JSON_PATCH_COPY_BYTES: usize = 3 << 20;
/// Values that they may add in all: a value takes up to 650 bytes of memory, however short its text.
pub const MAX_JSON_PATCH_COPY_VALUES: usize = 32_768;
/// Depth to which a JSON Patch may nest values. Deeper documents could not be read back.
pub const MAX_DEPTH: usize = 128;

/// Why a patch does not apply.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PatchError {
    /// The patch itself is malformed, or has more operations than are taken: 400 BadRequest.
    #[error("{0}")]
    Malformed(String),
    /// The patch is well-formed but cannot be applied to this object (missing path, failed test): 422 Invalid.
    #[error("{0}")]
    DoesNotApply(String),
}

impl PatchError {
    /// The answer to the client.
    pub fn to_status(&self) -> Status {
        match self {
            Self::Malformed(message) => Status::bad_request(message),
            Self::DoesNotApply(message) => Status::new(
                Reason::Invalid,
                format!(
                    "the server rejected our request due to an error in our request: {message}"
                ),
            ),
        }
    }
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
    const ALL: [Self; 4] = [Self::Json, Self::Merge, Self::StrategicMerge, Self::Apply];

    /// The content type of a patch of this kind.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::StrategicMerge => "application/strategic-merge-patch+json",
            Self::Apply => "application/apply-patch+yaml",
        }
    }

    /// From a `Content-Type` (`application/json-patch+json`, `application/merge-patch+json`,
    /// `application/strategic-merge-patch+json`, `application/apply-patch+yaml`).
    pub fn from_content_type(content_type: &str) -> Option<Self> {
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        Self::ALL
            .into_iter()
            .find(|kind| media_type.eq_ignore_ascii_case(kind.content_type()))
    }
}

/// RFC 6902. At most 10,000 operations, of which the copies add at most 3 MiB of text, as kube-apiserver, and 32,768
/// values. The target is unchanged when an operation fails.
pub fn json_patch(target: &mut Value, patch: &Value) -> Result<(), PatchError> {
    use json_patch::PatchOperation;
    let operations = patch
        .as_array()
        .ok_or_else(|| PatchError::Malformed("a JSON patch must be a list of operations".into()))?;
    if operations.len() > MAX_JSON_PATCH_OPERATIONS {
        return Err(PatchError::Malformed(format!(
            "The allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let patch: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|error| PatchError::Malformed(format!("error decoding JSON patch: {error}")))?;
    let mut patched = target.clone();
    let (mut copied, mut copied_values) = (0usize, 0usize);
    for operation in &patch.0 {
        match operation {
            PatchOperation::Add(op) => check_depth(op.path.count(), &op.value)?,
            PatchOperation::Replace(op) => check_depth(op.path.count(), &op.value)?,
            PatchOperation::Move(op) => {
                if let Some(moved) = patched.pointer(op.from.as_str()) {
                    check_depth(op.path.count(), moved)?;
                }
            }
            PatchOperation::Copy(op) => {
                if let Some(source) = patched.pointer(op.from.as_str()) {
                    check_depth(op.path.count(), source)?;
                    copied_values = copied_values.saturating_add(values(source));
                    if copied_values > MAX_JSON_PATCH_COPY_VALUES {
                        return Err(PatchError::DoesNotApply(format!(
                            "the copy operations add more than {MAX_JSON_PATCH_COPY_VALUES} values"
                        )));
                    }
                    copied = copied.saturating_add(text_len(source));
                    if copied > MAX_JSON_PATCH_COPY_BYTES {
                        return Err(PatchError::DoesNotApply(format!(
                            "the copy operations add {copied} bytes, more than the limit of {MAX_JSON_PATCH_COPY_BYTES}"
                        )));
                    }
                }
            }
            // A path that is not there equals null, as kube-apiserver's implementation has it.
            PatchOperation::Test(op)
                if op.value.is_null() && patched.pointer(op.path.as_str()).is_none() =>
            {
                continue;
            }
            PatchOperation::Remove(_) | PatchOperation::Test(_) => {}
        }
        json_patch::patch_unsafe(&mut patched, std::slice::from_ref(operation))
            .map_err(|error| PatchError::DoesNotApply(format!("{}: {operation}", error.kind)))?;
    }
    *target = patched;
    Ok(())
}

/// Refuses what would nest deeper than documents may: dropping a value takes stack for each level.
fn check_depth(above: usize, value: &Value) -> Result<(), PatchError> {
    if above.saturating_add(depth(value)) > MAX_DEPTH {
        return Err(PatchError::DoesNotApply(format!(
            "the patch nests values deeper than {MAX_DEPTH} levels"
        )));
    }
    Ok(())
}

/// Values in a value, itself included.
fn values(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(values).sum::<usize>(),
        Value::Object(fields) => 1 + fields.values().map(values).sum::<usize>(),
        _ => 1,
    }
}

/// The length of a value as JSON text, without making the text.
fn text_len(value: &Value) -> usize {
    struct Length(usize);
    impl std::io::Write for Length {
        fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
            self.0 += text.len();
            Ok(text.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut length = Length(0);
    match serde_json::to_writer(&mut length, value) {
        Ok(()) => length.0,
        // Counting cannot fail.
        Err(_) => usize::MAX,
    }
}

/// Levels of objects and lists in a value; 0 for scalars.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// RFC 7386.
pub fn merge_patch(target: &mut Value, patch: &Value) {
    json_patch::merge(target, patch);
}

/// Strategic merge patch by the merge keys of the built-in type `gvk` (schema tables), with `$patch`,
/// `$retainKeys`, `$setElementOrder/...` and `$deleteFromPrimitiveList/...`. For kinds without a schema:
/// `Malformed`. The target is unchanged when the patch fails.
///
/// Behaves as `strategicpatch.StrategicMergeMapPatch` of `k8s.io/apimachinery` followed by the server's decoding into
/// the type: what directives and nulls the former leaves in new values is left out here.
pub fn strategic_merge_patch(
    gvk: &Gvk,
    target: &mut Value,
    patch: &Value,
) -> Result<(), PatchError> {
    let message = crate::schema::message_of(gvk).ok_or_else(|| {
        PatchError::Malformed("strategic merge patch format is not supported".into())
    })?;
    strategic::apply(message, target, patch)
}

#[cfg(test)]
mod tests;
