//! Responses: objects, lists and errors in the representation asked for.

use crate::{
    conversion, meta,
    registry::{Content, Page, Reply},
    resources::Resource,
    storage::Stored,
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use std::{io::Write, sync::Arc};
use yurt_transport::{Body, chunks};
use yurt_wire::{
    Encoding, Gvk, Object, Status,
    list::{self, ListHead},
    media::{self, Representation, Shape},
    object::Malformed,
    request::query_pairs,
    table::{self, IncludeObject, Printer},
    transcode,
};

/// Bodies from this size on are compressed for clients that accept it, as kube-apiserver does.
const GZIP_FROM: usize = 128 << 10;

/// How a client wants its answer.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// With `application/json` for `application/yaml`: YAML is JSON in other clothes, put on last.
    accept: Option<String>,
    yaml: bool,
    gzip: bool,
    pretty: bool,
    include: IncludeObject,
}

impl Wanted {
    /// From a request's headers and query.
    pub(super) fn of(headers: &HeaderMap, query: &str) -> Self {
        let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
        let pairs = query_pairs(query);
        let parameter = |name: &str| {
            let found = pairs.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.as_str())
        };
        let gzip = text(header::ACCEPT_ENCODING).is_some_and(|encodings| {
            encodings.split(',').any(|e| {
                let mut parts = e.split(';');
                let gzip = parts.next().is_some_and(|e| e.trim() == "gzip");
                gzip && !parts.any(|p| p.trim() == "q=0")
            })
        });
        let accept = text(header::ACCEPT);
        let yaml = accept.is_some_and(prefers_yaml);
        Self {
            accept: accept.map(|accept| match yaml {
                true => accept.replacen(YAML, JSON, 1),
                false => accept.to_owned(),
            }),
            yaml,
            gzip,
            pretty: media::wants_pretty(parameter("pretty"), text(header::USER_AGENT)),
            include: match parameter("includeObject") {
                Some("None") => IncludeObject::None,
                Some("Object") => IncludeObject::Object,
                _ => IncludeObject::Metadata,
            },
        }
    }

    pub(super) fn accept(&self) -> Option<&str> {
        self.accept.as_deref()
    }

    /// The representation for a resource; 406 when none fits.
    pub(super) fn representation(&self, resource: &Resource) -> Reply<Representation> {
        self.negotiate(transcode::has_protobuf(&resource.gvk()), true)
    }

    /// The encoding for bodies that have both, JSON when nothing fits (errors must get through).
    pub(super) fn error_encoding(&self) -> Encoding {
        self.negotiate(true, true)
            .map_or(Encoding::Json, |r| r.encoding)
    }

    pub(super) fn negotiate(&self, has_protobuf: bool, shapes: bool) -> Reply<Representation> {
        const SERVED: &[&str] = &[JSON, YAML, PROTOBUF];
        let accept = self.accept.as_deref();
        let chosen = media::negotiate(accept, shapes).filter(|r| {
            has_protobuf
                || r.encoding == Encoding::Json
                || matches!(r.shape, Shape::PartialMetadata { .. })
        });
        let chosen = chosen.or_else(|| {
            // The next best clause for a kind that has no protobuf form.
            let rest: Vec<&str> = accept?
                .split(',')
                .filter(|clause| !clause.contains("protobuf"))
                .collect();
            (!has_protobuf && !rest.is_empty())
                .then(|| media::negotiate(Some(&rest.join(",")), shapes))
                .flatten()
        });
        let served = if has_protobuf { SERVED } else { &SERVED[..2] };
        chosen.ok_or_else(|| Box::new(Status::not_acceptable(served)))
    }

    /// 406 for what cannot be streamed: there is no YAML for watches.
    pub(super) fn streamed(&self) -> Reply<()> {
        if self.yaml {
            return Err(Box::new(Status::not_acceptable(&[JSON, PROTOBUF])));
        }
        Ok(())
    }

    pub(super) fn include(&self) -> IncludeObject {
        self.include
    }
}

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Whether YAML is the first of the media types that are served.
fn prefers_yaml(accept: &str) -> bool {
    const SERVED: &[&str] = &[YAML, JSON, PROTOBUF, "*/*", "application/*"];
    accept
        .split(',')
        .filter_map(|clause| clause.split(';').next().map(str::trim))
        .find(|media| SERVED.contains(media))
        == Some(YAML)
}

/// JSON as YAML; what is not JSON stays as it is.
fn to_yaml(json: Vec<u8>) -> Vec<u8> {
    let yaml = serde_json::from_slice::<Value>(&json)
        .ok()
        .and_then(|value| serde_saphyr::to_string(&value).ok());
    yaml.map_or(json, String::into_bytes)
}

fn internal(error: Malformed) -> Box<Status> {
    Box::new(Status::internal_error(error))
}

/// A stored object in the version served.
pub(super) fn served(
    resource: &Resource,
    stored: &Stored,
    encoding: Encoding,
) -> Result<Object, Malformed> {
    if resource.is_storage_version() {
        return stored.object(encoding);
    }
    let value = conversion::to_served(resource, stored.value());
    Object::from_json_value(&value, encoding)
}

fn json_object(value: &Value) -> Object {
    Object {
        encoding: Encoding::Json,
        bytes: value.to_string().into(),
    }
}

/// `PartialObjectMetadata` in an encoding; kinds without a protobuf form still have protobuf metadata.
pub(super) fn partial(
    resource: &Resource,
    stored: &Stored,
    version: &str,
    encoding: Encoding,
) -> Result<Object, Malformed> {
    served(resource, stored, Encoding::Json)?
        .to_partial_metadata(version)?
        .to_encoding(encoding)
}

/// The printer of a resource's Tables.
pub(super) fn printer(resource: &Resource) -> Printer {
    match resource.crd_version() {
        Some(version) => match &version.columns {
            Some(columns) => Printer::from_crd_columns(columns),
            None => Printer::from_crd_columns(&json!([])),
        },
        None => Printer::of(&resource.gvk()),
    }
}

/// One object.
pub(super) async fn object(
    wanted: &Wanted,
    resource: &Resource,
    content: Content,
    code: StatusCode,
) -> Reply<Response<Body>> {
    let representation = wanted.representation(resource)?;
    let body = match &representation.shape {
        Shape::Full => match &content {
            Content::Stored(stored) => served(resource, stored, representation.encoding),
            Content::Value(value) => value_object(value, representation.encoding),
        }
        .map_err(internal)?,
        Shape::PartialMetadata { version, .. } => json_object(&content.into_value())
            .to_partial_metadata(version)
            .and_then(|o| o.to_encoding(representation.encoding))
            .map_err(internal)?,
        Shape::Table { version } => {
            let value = content.into_value();
            let head = json!({"resourceVersion": meta::text(&value, "resourceVersion")});
            let table = table::table(
                &printer(resource),
                &head,
                &[value],
                wanted.include,
                version,
                true,
                meta::now_seconds(),
            );
            json_object(&table)
        }
    };
    Ok(finish(wanted, &representation, vec![body.bytes], code).await)
}

fn value_object(value: &Value, encoding: Encoding) -> Result<Object, Malformed> {
    if encoding == Encoding::Json {
        Ok(json_object(value))
    } else {
        Object::from_json_value(value, encoding)
    }
}

/// A built-in value that is not stored (reviews, Status, ...), in JSON or protobuf.
pub(super) async fn value(
    wanted: &Wanted,
    value: &Value,
    code: StatusCode,
) -> Reply<Response<Body>> {
    let gvk = Gvk::from_api_version(
        value["apiVersion"].as_str().unwrap_or_default(),
        value["kind"].as_str().unwrap_or_default(),
    );
    let has_protobuf = transcode::has_protobuf(&gvk);
    let mut representation = wanted.negotiate(has_protobuf, true)?;
    representation.shape = Shape::Full;
    let object = value_object(value, representation.encoding).map_err(internal)?;
    Ok(finish(wanted, &representation, vec![object.bytes], code).await)
}

/// Lists of more objects than this are put together apart from the threads that serve everybody.
const LARGE_LIST: usize = 256;

/// A list.
pub(super) async fn page(
    wanted: &Wanted,
    resource: &Arc<Resource>,
    page: Page,
) -> Reply<Response<Body>> {
    let representation = wanted.representation(resource)?;
    let body = if page.items.len() > LARGE_LIST {
        let (resource, representation) = (resource.clone(), representation.clone());
        let include = wanted.include;
        tokio::task::spawn_blocking(move || list_body(&resource, &representation, include, page))
            .await
            .map_err(|error| Box::new(Status::internal_error(error)))?
    } else {
        list_body(resource, &representation, wanted.include, page)
    };
    Ok(finish(
        wanted,
        &representation,
        body.map_err(internal)?,
        StatusCode::OK,
    )
    .await)
}

/// The body of a list in chunks.
fn list_body(
    resource: &Resource,
    representation: &Representation,
    include: IncludeObject,
    page: Page,
) -> Result<Vec<Bytes>, Malformed> {
    let encoding = representation.encoding;
    let mut head = ListHead {
        gvk: resource.list_gvk(),
        resource_version: page.revision.to_string(),
        continue_token: page.continue_token,
        remaining: page.remaining,
    };
    match &representation.shape {
        Shape::Full => {
            let items: Result<Vec<Object>, Malformed> = page
                .items
                .iter()
                .map(|stored| served(resource, stored, encoding))
                .collect();
            list::join(&head, encoding, &items?)
        }
        Shape::PartialMetadata { version, .. } => {
            let items: Result<Vec<Object>, Malformed> = page
                .items
                .iter()
                .map(|stored| partial(resource, stored, version, encoding))
                .collect();
            head.gvk = Gvk::from_api_version(
                &format!("meta.k8s.io/{version}"),
                "PartialObjectMetadataList",
            );
            list::join(&head, encoding, &items?)
        }
        Shape::Table { version } => {
            let mut meta = json!({"resourceVersion": head.resource_version});
            if !head.continue_token.is_empty() {
                meta["continue"] = head.continue_token.into();
            }
            if let Some(remaining) = head.remaining {
                meta["remainingItemCount"] = remaining.into();
            }
            let printer = printer(resource);
            let now = meta::now_seconds();
            let head = table::table(&printer, &meta, &[], include, version, true, now);
            let rows = page.items.iter().map(|stored| {
                let object = conversion::to_served(resource, stored.value());
                let object = std::slice::from_ref(&object);
                let mut one =
                    table::table(&printer, &Value::Null, object, include, version, false, now);
                one["rows"][0].take()
            });
            Ok(table_body(&head, rows))
        }
    }
}

/// Rows of a Table that are printed together.
const ROWS_BYTES: usize = 64 << 10;

/// A Table in chunks, a row at a time: objects as values are many times as large as their JSON.
fn table_body(head: &Value, rows: impl Iterator<Item = Value>) -> Vec<Bytes> {
    let mut text = String::from("{");
    for (name, value) in head.as_object().into_iter().flatten() {
        if name != "rows" {
            text.push_str(&format!("{}:{value},", Value::from(name.as_str())));
        }
    }
    text.push_str("\"rows\":[");
    let mut chunks = Vec::new();
    for (index, row) in rows.enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(&row.to_string());
        if text.len() >= ROWS_BYTES {
            chunks.push(std::mem::take(&mut text).into());
        }
    }
    text.push_str("]}");
    chunks.push(text.into());
    chunks
}

/// A collection that was deleted, as a list of what it was.
pub(super) async fn contents(
    wanted: &Wanted,
    resource: &Resource,
    contents: Vec<Content>,
    revision: u64,
) -> Reply<Response<Body>> {
    let items: Vec<Value> = contents.into_iter().map(Content::into_value).collect();
    let list = json!({"apiVersion": resource.api_version(), "kind": resource.list_kind,
        "metadata": {"resourceVersion": revision.to_string()}, "items": items});
    value(wanted, &list, StatusCode::OK).await
}

/// An error.
pub(super) fn status(wanted: &Wanted, status: &Status) -> Response<Body> {
    let encoding = wanted.error_encoding();
    let (bytes, content_type) = if wanted.yaml {
        let json = status.to_bytes(Encoding::Json);
        (to_yaml(json.into()).into(), YAML)
    } else if wanted.pretty && encoding == Encoding::Json {
        (status.to_pretty_json(), encoding.content_type())
    } else {
        (status.to_bytes(encoding), encoding.content_type())
    };
    let code = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = with_headers(chunks(vec![bytes]), content_type, code);
    if let Some(seconds) = status.retry_after_seconds {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, seconds.into());
    }
    if code == StatusCode::UNAUTHORIZED {
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// Plain JSON (discovery, version), prettified and compressed as asked.
pub(super) async fn json(wanted: &Wanted, value: &Value, content_type: &str) -> Response<Body> {
    if wanted.yaml && content_type == JSON {
        let yaml = to_yaml(value.to_string().into_bytes());
        return bytes(wanted, vec![yaml.into()], YAML, StatusCode::OK).await;
    }
    let text = if wanted.pretty {
        serde_json::to_string_pretty(value).unwrap_or_default()
    } else {
        value.to_string()
    };
    bytes(wanted, vec![text.into()], content_type, StatusCode::OK).await
}

/// Plain text.
pub(super) fn text(text: impl Into<Bytes>, content_type: &str) -> Response<Body> {
    with_headers(chunks(vec![text.into()]), content_type, StatusCode::OK)
}

async fn finish(
    wanted: &Wanted,
    representation: &Representation,
    body: Vec<Bytes>,
    code: StatusCode,
) -> Response<Body> {
    if wanted.yaml && representation.encoding == Encoding::Json {
        let yaml = to_yaml(body.concat());
        return bytes(wanted, vec![yaml.into()], YAML, code).await;
    }
    let pretty =
        (wanted.pretty || representation.pretty) && representation.encoding == Encoding::Json;
    let body = if pretty { prettify(body) } else { body };
    bytes(wanted, body, representation.encoding.content_type(), code).await
}

fn prettify(body: Vec<Bytes>) -> Vec<Bytes> {
    let whole = body.concat();
    let pretty = serde_json::from_slice::<Value>(&whole)
        .ok()
        .and_then(|value| serde_json::to_vec_pretty(&value).ok());
    vec![pretty.unwrap_or(whole).into()]
}

/// Bytes, compressed when large and wanted.
pub(super) async fn bytes(
    wanted: &Wanted,
    body: Vec<Bytes>,
    content_type: &str,
    code: StatusCode,
) -> Response<Body> {
    let length: usize = body.iter().map(Bytes::len).sum();
    if !wanted.gzip || length < GZIP_FROM {
        return with_headers(chunks(body), content_type, code);
    }
    let body = Arc::new(body);
    let plain = body.clone();
    let zipped = tokio::task::spawn_blocking(move || gzip(&plain))
        .await
        .ok()
        .and_then(Result::ok);
    match zipped {
        Some(zipped) => {
            let mut response = with_headers(chunks(vec![zipped.into()]), content_type, code);
            response
                .headers_mut()
                .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response
        }
        None => with_headers(chunks(body.to_vec()), content_type, code),
    }
}

fn gzip(body: &[Bytes]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    for chunk in body {
        encoder.write_all(chunk)?;
    }
    encoder.finish()
}

pub(super) fn with_headers(body: Body, content_type: &str, code: StatusCode) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(content_type) {
        headers.insert(header::CONTENT_TYPE, value);
    }
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    headers.append(header::VARY, HeaderValue::from_static("Accept"));
    if let Ok(id) = HeaderValue::from_str(&meta::new_uid()) {
        headers.insert("audit-id", id);
    }
    response
}

/// Adds `Warning` headers.
pub(super) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings.iter().take(16) {
        let text: String = warning
            .chars()
            .filter(|c| c.is_ascii() && !c.is_ascii_control())
            .take(256)
            .collect::<String>()
            .replace('\\', "\\\\")
            .replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}
