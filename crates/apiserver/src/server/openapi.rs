//! Serving the OpenAPI documents: each is built when first asked for, and kept until the catalog changes.

use super::respond::{self, Wanted};
use crate::{openapi, resources::Catalog};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header, request::Parts};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use yurt_transport::Body;

/// A document to serve.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Document {
    /// `/openapi/v3`.
    Index,
    /// `/openapi/v3/api/v1`, `/openapi/v3/apis/apps/v1`: group and version.
    Version(String, String),
    /// `/openapi/v2`.
    V2Json,
    /// The same for `kubectl`.
    V2Protobuf,
}

impl Document {
    /// The document of a path below `/openapi`.
    pub(super) fn of(segments: &[&str], accept: Option<&str>) -> Option<Self> {
        Some(match segments {
            ["v3"] => Self::Index,
            ["v3", "api", version] => Self::Version(String::new(), (*version).to_owned()),
            ["v3", "apis", group, version] => {
                Self::Version((*group).to_owned(), (*version).to_owned())
            }
            ["v2"] if accept.is_some_and(|accept| accept.contains("proto-openapi.spec.v2")) => {
                Self::V2Protobuf
            }
            ["v2"] => Self::V2Json,
            _ => return None,
        })
    }

    fn build(&self, catalog: &Catalog) -> Option<Vec<u8>> {
        let resources = catalog.resources();
        Some(match self {
            Self::Index => openapi::v3_index(resources).to_string().into_bytes(),
            Self::Version(group, version) => openapi::v3_document(group, version, resources)?
                .to_string()
                .into_bytes(),
            Self::V2Json => openapi::v2_document(resources).to_string().into_bytes(),
            Self::V2Protobuf => openapi::v2_protobuf(resources),
        })
    }

    fn content_type(&self) -> &'static str {
        match self {
            Self::V2Protobuf => openapi::V2_PROTOBUF,
            _ => "application/json",
        }
    }
}

/// A document as it was sent.
#[derive(Clone, Debug)]
struct Built {
    bytes: Bytes,
    etag: String,
}

/// The documents built so far, and the catalog they describe.
#[derive(Debug, Default)]
struct Kept {
    catalog: Option<Arc<Catalog>>,
    built: HashMap<Document, Built>,
}

impl Kept {
    fn is_of(&self, catalog: &Arc<Catalog>) -> bool {
        self.catalog
            .as_ref()
            .is_some_and(|of| Arc::ptr_eq(of, catalog))
    }
}

/// The documents of the catalog that is served.
#[derive(Debug, Default)]
pub(super) struct Documents {
    kept: Mutex<Kept>,
}

impl Documents {
    /// Answers a request for a document; `None` when there is no such document.
    pub(super) async fn answer(
        &self,
        document: Document,
        catalog: &Arc<Catalog>,
        parts: &Parts,
        wanted: &Wanted,
    ) -> Option<Response<Body>> {
        let content_type = document.content_type();
        let built = self.get(document, catalog).await?;
        let known = parts.headers.get(header::IF_NONE_MATCH);
        let mut response = if known.is_some_and(|tag| tag.as_bytes() == built.etag.as_bytes()) {
            respond::with_headers(
                yurt_transport::body::empty(),
                content_type,
                StatusCode::NOT_MODIFIED,
            )
        } else {
            respond::bytes(wanted, vec![built.bytes], content_type, StatusCode::OK).await
        };
        if let Ok(etag) = HeaderValue::from_str(&built.etag) {
            response.headers_mut().insert(header::ETAG, etag);
        }
        Some(response)
    }

    async fn get(&self, document: Document, catalog: &Arc<Catalog>) -> Option<Built> {
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if !kept.is_of(catalog) {
                *kept = Kept {
                    catalog: Some(catalog.clone()),
                    built: HashMap::new(),
                };
            }
            if let Some(built) = kept.built.get(&document) {
                return Some(built.clone());
            }
        }
        // Two first askers may both build; the documents are the same.
        let (key, of) = (document.clone(), catalog.clone());
        let bytes = tokio::task::spawn_blocking(move || key.build(&of))
            .await
            .ok()??;
        let hash: String = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02X}"))
            .collect();
        let built = Built {
            bytes: bytes.into(),
            etag: format!("\"{hash}\""),
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.is_of(catalog) {
            kept.built.insert(document, built.clone());
        }
        Some(built)
    }
}
