//! Objects in the representation a caller asked for: encoding, shape, compression.

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use std::io::Write as _;
use yurt_transport::{Body, chunks};
use yurt_wire::{
    Encoding, Gvk, Object, RequestInfo, Status,
    list::{self, ListHead},
    media::{Representation, Shape, negotiate},
    object::Malformed,
    table::{IncludeObject, Printer, table},
};

/// As kube-apiserver: smaller answers are not worth compressing.
const GZIP_FROM: usize = 128 << 10;

/// What the caller wants to see.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) representation: Representation,
    pub(crate) include: IncludeObject,
    gzip: bool,
}

/// `includeObject` of the query: what of each object a Table row carries.
fn include_object(info: &RequestInfo) -> IncludeObject {
    match info.query_value("includeObject").as_deref() {
        Some("None") => IncludeObject::None,
        Some("Object") => IncludeObject::Object,
        _ => IncludeObject::Metadata,
    }
}

impl Wanted {
    /// Reads `Accept`, `Accept-Encoding` and the query. 406 when nothing can be served.
    pub(crate) fn of(headers: &HeaderMap, info: &RequestInfo) -> Result<Self, Box<Status>> {
        let accept = headers
            .get(header::ACCEPT)
            .map(|v| v.to_str().unwrap_or("*/*"));
        let mut representation = negotiate(accept, true).ok_or_else(|| {
            Box::new(Status::not_acceptable(&[
                "application/json",
                "application/vnd.kubernetes.protobuf",
            ]))
        })?;
        if matches!(
            info.query_value("pretty").as_deref(),
            Some("" | "1" | "true")
        ) {
            representation.pretty = true;
        }
        let gzip = headers
            .get_all(header::ACCEPT_ENCODING)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|coding| coding.split(';').next().unwrap_or_default().trim() == "gzip");
        Ok(Self {
            representation,
            include: include_object(info),
            gzip,
        })
    }

    /// The encoding of errors: what was asked for, JSON when that cannot be told.
    pub(crate) fn error_encoding(headers: &HeaderMap) -> Encoding {
        let accept = headers
            .get(header::ACCEPT)
            .map(|v| v.to_str().unwrap_or("*/*"));
        negotiate(accept, true).map_or(Encoding::Json, |wanted| wanted.encoding)
    }

    /// The encoding objects of a kind are given in: kinds without a protobuf form only exist in JSON.
    pub(crate) fn encoding_for(&self, gvk: Option<&Gvk>) -> Encoding {
        let wanted = self.representation.encoding;
        match (&self.representation.shape, gvk) {
            (Shape::Table { .. }, _) => Encoding::Json,
            (Shape::PartialMetadata { .. }, _) | (_, None) => wanted,
            (Shape::Full, Some(gvk)) => {
                if yurt_wire::transcode::has_protobuf(gvk) {
                    wanted
                } else {
                    Encoding::Json
                }
            }
        }
    }

    /// One object in encoding and shape (not for Tables).
    pub(crate) fn object(&self, object: &Object, gvk: &Gvk) -> Result<Object, Malformed> {
        match &self.representation.shape {
            Shape::PartialMetadata { version, .. } => object
                .to_partial_metadata(version)?
                .to_encoding(self.representation.encoding),
            Shape::Full | Shape::Table { .. } => object.to_encoding(self.encoding_for(Some(gvk))),
        }
    }

    /// The Table of some objects.
    pub(crate) fn table(
        &self,
        gvk: &Gvk,
        head: &Value,
        objects: &[Object],
        with_columns: bool,
        now: i64,
    ) -> Result<Value, Malformed> {
        let Shape::Table { version } = &self.representation.shape else {
            return Ok(Value::Null);
        };
        let printer = Printer::of(gvk);
        let objects = objects
            .iter()
            .map(Object::to_json_value)
            .collect::<Result<Vec<_>, _>>()?;
        Ok(table(
            &printer,
            head,
            &objects,
            self.include,
            version,
            with_columns,
            now,
        ))
    }

    /// The answer to a get, or to a write.
    pub(crate) fn single(
        &self,
        code: StatusCode,
        object: &Object,
        gvk: &Gvk,
        now: i64,
    ) -> Result<Response<Body>, Malformed> {
        if let Shape::Table { .. } = self.representation.shape {
            let head = json!({"resourceVersion": object.key()?.resource_version});
            let table = self.table(gvk, &head, std::slice::from_ref(object), true, now)?;
            return Ok(self
                .respond(code, Encoding::Json, vec![self.text(&table)])
                .map(chunks));
        }
        let object = self.object(object, gvk)?;
        let bytes = if self.representation.pretty && object.encoding == Encoding::Json {
            self.text(&object.to_json_value()?)
        } else {
            object.bytes
        };
        Ok(self.respond(code, object.encoding, vec![bytes]).map(chunks))
    }

    /// The answer to a list. `kind` is that of the items.
    pub(crate) fn list(
        &self,
        kind: &Gvk,
        resource_version: &str,
        continue_token: &str,
        remaining: Option<i64>,
        objects: &[Object],
        now: i64,
    ) -> Result<Response<Vec<Bytes>>, Malformed> {
        let mut head = json!({"resourceVersion": resource_version});
        if !continue_token.is_empty() {
            head["continue"] = continue_token.into();
        }
        if let Some(remaining) = remaining {
            head["remainingItemCount"] = remaining.into();
        }
        if let Shape::Table { .. } = self.representation.shape {
            let table = self.table(kind, &head, objects, true, now)?;
            return Ok(self.respond(StatusCode::OK, Encoding::Json, vec![self.text(&table)]));
        }
        let gvk = match &self.representation.shape {
            Shape::PartialMetadata { version, .. } => Gvk {
                group: "meta.k8s.io".into(),
                version: version.clone(),
                kind: "PartialObjectMetadataList".into(),
            },
            Shape::Full | Shape::Table { .. } => Gvk {
                kind: format!("{}List", kind.kind),
                ..kind.clone()
            },
        };
        let encoding = self.encoding_for(Some(kind));
        let head = ListHead {
            gvk,
            resource_version: resource_version.to_owned(),
            continue_token: continue_token.to_owned(),
            remaining,
        };
        let mut shown = Vec::with_capacity(objects.len());
        for object in objects {
            shown.push(self.object(object, kind)?);
        }
        let mut parts = list::join(&head, encoding, &shown)?;
        if self.representation.pretty && encoding == Encoding::Json {
            let whole: Vec<u8> = parts.concat();
            if let Ok(value) = serde_json::from_slice::<Value>(&whole) {
                parts = vec![self.text(&value)];
            }
        }
        Ok(self.respond(StatusCode::OK, encoding, parts))
    }

    fn text(&self, value: &Value) -> Bytes {
        if self.representation.pretty {
            serde_json::to_vec_pretty(value)
                .unwrap_or_else(|_| value.to_string().into_bytes())
                .into()
        } else {
            value.to_string().into()
        }
    }

    fn respond(
        &self,
        code: StatusCode,
        encoding: Encoding,
        parts: Vec<Bytes>,
    ) -> Response<Vec<Bytes>> {
        // kube-apiserver answers with the bare media type; the shape is in the body.
        let content_type = HeaderValue::from_static(encoding.content_type());
        in_parts(code, content_type, parts, self.gzip)
    }
}

/// A response of known parts, compressed when that is asked for and worth it.
pub(crate) fn body(
    code: StatusCode,
    content_type: HeaderValue,
    parts: Vec<Bytes>,
    gzip: bool,
) -> Response<Body> {
    in_parts(code, content_type, parts, gzip).map(chunks)
}

fn in_parts(
    code: StatusCode,
    content_type: HeaderValue,
    parts: Vec<Bytes>,
    gzip: bool,
) -> Response<Vec<Bytes>> {
    let length: usize = parts.iter().map(Bytes::len).sum();
    let compressed = if gzip && length >= GZIP_FROM {
        compress(&parts)
    } else {
        None
    };
    let is_compressed = compressed.is_some();
    let mut response = Response::new(match compressed {
        Some(bytes) => vec![bytes.into()],
        None => parts,
    });
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    if is_compressed {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    response
}

fn compress(parts: &[Bytes]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    for part in parts {
        encoder.write_all(part).ok()?;
    }
    encoder.finish().ok()
}

/// A Status as a response.
pub(crate) fn refuse(status: &Status, encoding: Encoding) -> Response<Body> {
    let code = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = body(
        code,
        HeaderValue::from_static(encoding.content_type()),
        vec![status.to_bytes(encoding)],
        false,
    );
    if let Some(seconds) = status.retry_after_seconds {
        let headers = response.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// An object that cannot be shown: it was cached in a form that is not understood.
pub(crate) fn malformed(error: &Malformed) -> Box<Status> {
    Box::new(Status::internal_error(format!(
        "the cached object cannot be read: {error}"
    )))
}
