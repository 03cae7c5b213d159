//! Causes in the words of kube-apiserver's `field.Error`.

use serde_json::Value;
use yurt_wire::status::Cause;

fn cause(reason: &str, field: &str, message: String) -> Cause {
    Cause {
        reason: reason.into(),
        message,
        field: field.into(),
    }
}

fn with_detail(head: &str, detail: &str) -> String {
    if detail.is_empty() {
        head.to_owned()
    } else {
        format!("{head}: {detail}")
    }
}

/// `Required value: ...`.
pub(crate) fn required(field: &str, detail: &str) -> Cause {
    cause(
        "FieldValueRequired",
        field,
        with_detail("Required value", detail),
    )
}

/// `Invalid value: <value>: ...`.
pub(crate) fn invalid(field: &str, value: &Value, detail: &str) -> Cause {
    cause(
        "FieldValueInvalid",
        field,
        with_detail(&format!("Invalid value: {value}"), detail),
    )
}

/// `Invalid value: <value>: ...` for a value of a wrong JSON type.
pub(crate) fn type_invalid(field: &str, value: &Value, detail: &str) -> Cause {
    cause(
        "FieldValueTypeInvalid",
        field,
        with_detail(&format!("Invalid value: {value}"), detail),
    )
}

/// `Forbidden: ...`.
pub(crate) fn forbidden(field: &str, detail: &str) -> Cause {
    cause(
        "FieldValueForbidden",
        field,
        with_detail("Forbidden", detail),
    )
}

/// `Duplicate value: <value>`.
pub(crate) fn duplicate(field: &str, value: &Value) -> Cause {
    cause(
        "FieldValueDuplicate",
        field,
        format!("Duplicate value: {value}"),
    )
}

/// `Unsupported value: <value>: supported values: "a", "b"`.
pub(crate) fn not_supported<S: AsRef<str>>(field: &str, value: &Value, supported: &[S]) -> Cause {
    let supported: Vec<String> = supported
        .iter()
        .map(|s| format!("{:?}", s.as_ref()))
        .collect();
    let detail = if supported.is_empty() {
        String::new()
    } else {
        format!("supported values: {}", supported.join(", "))
    };
    cause(
        "FieldValueNotSupported",
        field,
        with_detail(&format!("Unsupported value: {value}"), &detail),
    )
}

/// `Too long: may not be more than N bytes`.
pub(crate) fn too_long(field: &str, max: u64) -> Cause {
    cause(
        "FieldValueTooLong",
        field,
        format!("Too long: may not be more than {max} bytes"),
    )
}

/// `Too many: N: must have at most M items`.
pub(crate) fn too_many(field: &str, actual: usize, max: u64) -> Cause {
    cause(
        "FieldValueTooMany",
        field,
        format!("Too many: {actual}: must have at most {max} items"),
    )
}

/// `Not found: <value>`.
pub(crate) fn not_found(field: &str, value: &Value) -> Cause {
    cause("FieldValueNotFound", field, format!("Not found: {value}"))
}
