//! Documents that are not objects: `/version`, discovery, OpenAPI. Kept by path and form (legacy, aggregated, protobuf…).

use std::collections::BTreeMap;

/// Largest document kept, in bytes.
pub(crate) const MAX_DOCUMENT: usize = 8 << 20;
/// Bytes of all documents.
pub(crate) const MAX_TOTAL: usize = 48 << 20;

/// Which documents are there, with their sizes; the bodies are on disk.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    sizes: BTreeMap<String, (usize, u64)>,
    total: usize,
}

impl Documents {
    /// Notes one; gives those that must go (oldest first) to stay within bounds.
    pub(crate) fn note(&mut self, name: String, bytes: usize, clock: u64) -> Vec<String> {
        if let Some((old, _)) = self.sizes.insert(name.clone(), (bytes, clock)) {
            self.total -= old;
        }
        self.total += bytes;
        let mut gone = Vec::new();
        while self.total > MAX_TOTAL {
            let oldest = self
                .sizes
                .iter()
                .filter(|(other, _)| **other != name)
                .min_by_key(|(_, (_, used))| *used)
                .map(|(other, _)| other.clone());
            let Some(oldest) = oldest else { break };
            if let Some((bytes, _)) = self.sizes.remove(&oldest) {
                self.total -= bytes;
            }
            gone.push(oldest);
        }
        gone
    }

    /// Takes one out.
    pub(crate) fn remove(&mut self, name: &str) {
        if let Some((bytes, _)) = self.sizes.remove(name) {
            self.total -= bytes;
        }
    }

    /// The names of all.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.sizes.keys().map(String::as_str)
    }

    /// The names of those whose form clients can do without: neither plain JSON nor the aggregated form of today.
    pub(crate) fn other_forms(&self) -> Vec<String> {
        self.names()
            .filter(|name| !name.ends_with("#json") && !name.ends_with("#aggregated-v2"))
            .map(str::to_owned)
            .collect()
    }

    /// The forms known of a path.
    pub(crate) fn forms(&self, path: &str) -> Vec<String> {
        let prefix = format!("{path}#");
        self.sizes
            .range(prefix.clone()..)
            .map(|(name, _)| name)
            .take_while(|name| name.starts_with(&prefix))
            .map(|name| name[prefix.len()..].to_owned())
            .collect()
    }
}

/// The form of a document by its content type: `json`, `aggregated-v2`, `aggregated-v2beta1`, or the media type itself.
pub(crate) fn form(content_type: &str) -> String {
    let lower = content_type.to_ascii_lowercase();
    let media = lower.split(';').next().unwrap_or_default().trim();
    if lower.contains("as=apigroupdiscoverylist") {
        let version = lower
            .split(';')
            .filter_map(|p| p.trim().strip_prefix("v="))
            .next()
            .unwrap_or("v2");
        return format!("aggregated-{version}");
    }
    match media {
        "application/json" => "json".into(),
        other => other.into(),
    }
}
