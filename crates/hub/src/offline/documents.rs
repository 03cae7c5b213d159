//! Documents that are no objects: `/version`, discovery, OpenAPI, health.

use super::{Offline, discovery, represent};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header, request::Parts};
use yurt_transport::Body;
use yurt_wire::{
    RequestInfo, Status,
    media::{aggregated_discovery, parse_accept},
};

impl Offline {
    /// `/version`, discovery, OpenAPI, health.
    pub(super) fn document(
        &self,
        info: &RequestInfo,
        parts: &Parts,
    ) -> Result<Response<Body>, Box<Status>> {
        let path = info.path.as_str();
        let root = path.split('/').nth(1).unwrap_or_default();
        match root {
            "healthz" | "livez" => return Ok(text(StatusCode::OK, "ok")),
            "readyz" => {
                let why = format!("[-]cloud failed: {}\nreadyz check failed\n", self.away());
                return Ok(text(StatusCode::SERVICE_UNAVAILABLE, why));
            }
            _ => {}
        }
        let accept = parts
            .headers
            .get(header::ACCEPT)
            .and_then(|value| value.to_str().ok());
        let found = self.find_document(info, accept);
        let Some((content_type, bytes)) = found else {
            return Err(Box::new(Status::service_unavailable(format!(
                "node {:?} is offline, and {path} was never cached on it",
                self.node_name
            ))));
        };
        let content_type = HeaderValue::from_str(&content_type)
            .unwrap_or(HeaderValue::from_static("application/json"));
        let gzip = parts
            .headers
            .get(header::ACCEPT_ENCODING)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.contains("gzip"));
        Ok(represent::body(
            StatusCode::OK,
            content_type,
            vec![bytes],
            gzip,
        ))
    }

    fn find_document(&self, info: &RequestInfo, accept: Option<&str>) -> Option<(String, Bytes)> {
        let trimmed = match info.path.trim_end_matches('/') {
            "" => "/",
            path => path,
        };
        let mut names = vec![info.path.clone()];
        if trimmed != info.path {
            names.push(trimmed.to_owned());
        }
        if !info.query.is_empty() {
            names.insert(0, format!("{}?{}", info.path, info.query));
        }
        if let Some(version) = aggregated_discovery(accept) {
            let form = format!("aggregated-{version}");
            if let Some(found) = names
                .iter()
                .find_map(|name| self.cache.document_form(name, &form))
            {
                return Some(found);
            }
        }
        for clause in parse_accept(accept.unwrap_or("*/*")) {
            if clause.param("as").is_some() {
                continue;
            }
            let form = match clause.media_type.as_str() {
                "application/json" | "*/*" | "application/*" => "json",
                other => other,
            };
            if let Some(found) = names
                .iter()
                .find_map(|name| self.cache.document_form(name, form))
            {
                return Some(found);
            }
        }
        if let Some(derived) = self.derive(trimmed) {
            return Some(("application/json".into(), derived));
        }
        // Something else than asked for is better than nothing, but never an aggregated document for who wants a legacy one.
        names.iter().find_map(|name| {
            let forms = self.cache.document_forms(name);
            forms
                .iter()
                .filter(|form| !form.starts_with("aggregated-"))
                .find_map(|form| self.cache.document_form(name, form))
        })
    }

    fn derive(&self, path: &str) -> Option<Bytes> {
        let of = discovery::aggregated_path(path)?;
        ["aggregated-v2", "aggregated-v2beta1"]
            .iter()
            .filter_map(|form| self.cache.document_form(of, form))
            .filter_map(|(_, body)| serde_json::from_slice(&body).ok())
            .find_map(|aggregated| discovery::legacy(path, &aggregated))
            .map(|legacy| legacy.to_string().into())
    }
}

fn text(code: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    represent::body(
        code,
        HeaderValue::from_static("text/plain; charset=utf-8"),
        vec![body.into()],
        false,
    )
}
