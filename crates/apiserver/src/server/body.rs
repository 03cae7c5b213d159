//! Request bodies: JSON, YAML and protobuf to values.

use crate::{
    registry::{DeleteOptions, Reply},
    types,
};
use bytes::Bytes;
use http::HeaderMap;
use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;
use yurt_transport::{BoxError, CollectError, collect};
use yurt_wire::{Encoding, Gvk, Object, Status, patch::PatchType, request::query_pairs};

/// The largest request body, as kube-apiserver's.
pub(super) const MAX_BODY_BYTES: usize = 3 << 20;
/// Deeper objects cannot be read back: serde_json stops at 128.
const MAX_DEPTH: usize = 100;

const ACCEPTED: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];
const ACCEPTED_PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// A decoded body.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) value: Value,
    /// The body as sent, where it was text.
    pub(super) raw: Option<Bytes>,
}

/// Reads a body up to the limit.
pub(super) async fn read<B>(body: B) -> Reply<Bytes>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    collect(body, MAX_BODY_BYTES).await.map_err(|error| {
        Box::new(match error {
            CollectError::TooLarge(limit) => {
                Status::request_entity_too_large(&format!("limit is {limit}"))
            }
            CollectError::Broken(error) => {
                Status::bad_request(format!("the body of the request broke off: {error}"))
            }
        })
    })
}

fn content_type(headers: &HeaderMap) -> &str {
    headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .map_or("", str::trim)
}

fn is_yaml(content_type: &str) -> bool {
    ["application/yaml", "text/yaml", "application/x-yaml"]
        .iter()
        .any(|yaml| content_type.eq_ignore_ascii_case(yaml))
}

/// Decodes an object of a kind. Its apiVersion and kind are filled in when absent.
pub(super) fn decode(headers: &HeaderMap, bytes: Bytes, gvk: &Gvk) -> Reply<Decoded> {
    let content_type = content_type(headers);
    let (mut value, raw) = if is_yaml(content_type) {
        (yaml(&bytes, gvk)?, Some(bytes))
    } else {
        match Encoding::from_content_type(content_type) {
            Some(Encoding::Protobuf) => (protobuf(&bytes)?, None),
            Some(Encoding::Json) => (json(&bytes, gvk)?, Some(bytes)),
            None if content_type.is_empty() => (json(&bytes, gvk)?, Some(bytes)),
            None => return Err(Box::new(Status::unsupported_media_type(ACCEPTED))),
        }
    };
    if !value.is_object() || depth(&value) > MAX_DEPTH {
        return Err(unrecognized(gvk, "not an object"));
    }
    adopt_kind(&mut value, gvk)?;
    Ok(Decoded { value, raw })
}

fn unrecognized(gvk: &Gvk, why: &str) -> Box<Status> {
    Box::new(Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: {why}",
        gvk.kind
    )))
}

fn json(bytes: &[u8], gvk: &Gvk) -> Reply<Value> {
    serde_json::from_slice(bytes).map_err(|e| unrecognized(gvk, &e.to_string()))
}

fn yaml(bytes: &[u8], gvk: &Gvk) -> Reply<Value> {
    // A field given twice is complained about elsewhere, as the request wishes; the last one counts.
    let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins };
    serde_saphyr::from_slice_with_options(bytes, options)
        .map_err(|e| unrecognized(gvk, &e.to_string()))
}

fn protobuf(bytes: &Bytes) -> Reply<Value> {
    let object = Object {
        encoding: Encoding::Protobuf,
        bytes: bytes.clone(),
    };
    object
        .to_json_value()
        .map_err(|e| Box::new(Status::bad_request(e.to_string())))
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn adopt_kind(value: &mut Value, gvk: &Gvk) -> Reply<()> {
    let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let (kind, api_version) = (text("kind"), text("apiVersion"));
    if !kind.is_empty() && kind != gvk.kind {
        return Err(Box::new(Status::bad_request(format!(
            "{kind} in version \"{}\" cannot be handled as a {}: converting ({api_version}.{kind}) to ({}.{}): unknown conversion",
            yurt_wire::gvk::split_api_version(&api_version).1,
            gvk.kind,
            gvk.api_version(),
            gvk.kind
        ))));
    }
    if !api_version.is_empty() && api_version != gvk.api_version() {
        return Err(Box::new(Status::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({})",
            gvk.api_version()
        ))));
    }
    value["kind"] = gvk.kind.clone().into();
    value["apiVersion"] = gvk.api_version().into();
    Ok(())
}

/// Decodes a patch. An apply patch is an object of the kind.
pub(super) fn decode_patch(
    headers: &HeaderMap,
    bytes: &Bytes,
    gvk: &Gvk,
) -> Reply<(PatchType, Value)> {
    let Some(kind) = PatchType::from_content_type(content_type(headers)) else {
        return Err(Box::new(Status::unsupported_media_type(ACCEPTED_PATCHES)));
    };
    let mut value = match kind {
        PatchType::Apply => serde_json::from_slice(bytes).or_else(|_| yaml(bytes, gvk))?,
        _ => serde_json::from_slice(bytes)
            .map_err(|e| Box::new(Status::bad_request(format!("error decoding patch: {e}"))))?,
    };
    if depth(&value) > MAX_DEPTH {
        return Err(Box::new(Status::bad_request(
            "the patch is nested too deep",
        )));
    }
    match kind {
        PatchType::Json if !value.is_array() => {
            return Err(Box::new(Status::bad_request(
                "error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch",
            )));
        }
        PatchType::Json => {}
        _ if !value.is_object() => {
            return Err(Box::new(Status::bad_request(
                "error decoding patch: not an object",
            )));
        }
        PatchType::Apply => adopt_kind(&mut value, gvk)?,
        PatchType::Merge | PatchType::StrategicMerge => {}
    }
    Ok((kind, value))
}

/// Reads delete options from body and query; the body wins.
pub(super) fn delete_options(
    headers: &HeaderMap,
    bytes: &Bytes,
    query: &str,
) -> Reply<DeleteOptions> {
    let mut options = DeleteOptions::default();
    for (name, value) in query_pairs(query) {
        match name.as_str() {
            "gracePeriodSeconds" => {
                let seconds = value.parse().map_err(|_| {
                    Box::new(Status::bad_request(format!(
                        "gracePeriodSeconds: invalid number \"{value}\""
                    )))
                })?;
                options.grace_period = Some(seconds);
            }
            "propagationPolicy" => options.propagation = Some(value),
            "orphanDependents" if value == "true" => options.propagation = Some("Orphan".into()),
            "dryRun" => options.dry_run = check_dry_run(&value)?,
            _ => {}
        }
    }
    if !bytes.is_empty() {
        read_delete_options(headers, bytes, &mut options)?;
    }
    let known = ["Orphan", "Background", "Foreground"];
    if let Some(policy) = &options.propagation
        && !known.contains(&policy.as_str())
    {
        return Err(Box::new(Status::invalid(
            "meta.k8s.io",
            "DeleteOptions",
            "",
            vec![yurt_wire::status::Cause::not_supported(
                "propagationPolicy",
                policy,
                &known,
            )],
        )));
    }
    Ok(options)
}

fn read_delete_options(
    headers: &HeaderMap,
    bytes: &Bytes,
    options: &mut DeleteOptions,
) -> Reply<()> {
    let gvk = delete_options_kind();
    let content_type = content_type(headers);
    let body = if is_yaml(content_type) {
        yaml(bytes, &gvk)?
    } else if Encoding::from_content_type(content_type) == Some(Encoding::Protobuf) {
        protobuf(bytes)?
    } else {
        json(bytes, &gvk)?
    };
    fill_delete_options(&body, options)
}

fn delete_options_kind() -> Gvk {
    Gvk::from_api_version("meta.k8s.io/v1", "DeleteOptions")
}

fn fill_delete_options(body: &Value, options: &mut DeleteOptions) -> Reply<()> {
    let kind = body["kind"].as_str().unwrap_or("DeleteOptions");
    if !(kind.is_empty() || kind == "DeleteOptions") {
        return Err(Box::new(Status::bad_request(format!(
            "{kind} cannot be handled as DeleteOptions"
        ))));
    }
    types::check_kind(&delete_options_kind(), body)?;
    if let Some(seconds) = body["gracePeriodSeconds"].as_i64() {
        options.grace_period = Some(seconds);
    }
    if let Some(policy) = body["propagationPolicy"].as_str() {
        options.propagation = Some(policy.to_owned());
    }
    match body["orphanDependents"].as_bool() {
        Some(true) => options.propagation = Some("Orphan".into()),
        Some(false) => options.propagation = Some("Background".into()),
        None => {}
    }
    for value in body["dryRun"].as_array().into_iter().flatten() {
        options.dry_run = check_dry_run(value.as_str().unwrap_or_default())?;
    }
    let preconditions = &body["preconditions"];
    options.uid = preconditions["uid"].as_str().map(str::to_owned);
    options.resource_version = preconditions["resourceVersion"].as_str().map(str::to_owned);
    Ok(())
}

/// The delete options inside an `Eviction`.
pub(super) fn eviction_options(eviction: &Value) -> Reply<DeleteOptions> {
    let mut options = DeleteOptions::default();
    if eviction["deleteOptions"].is_object() {
        fill_delete_options(&eviction["deleteOptions"], &mut options)?;
    }
    Ok(options)
}

/// The only dry run there is, is of all stages.
pub(super) fn check_dry_run(value: &str) -> Reply<bool> {
    match value {
        "All" => Ok(true),
        "" => Ok(false),
        other => Err(Box::new(Status::invalid(
            "meta.k8s.io",
            "Options",
            "",
            vec![yurt_wire::status::Cause::not_supported(
                "dryRun",
                other,
                &["All"],
            )],
        ))),
    }
}
