//! Media types: what a client accepts and what it sends.

/// The two encodings of objects that are stored and relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Encoding {
    /// `application/json`.
    Json,
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
}

impl Encoding {
    /// The content type of a single object or list.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
    /// The content type of a watch stream in this encoding (as kube-apiserver answers:
    /// plain `application/json`, but `application/vnd.kubernetes.protobuf;stream=watch`).
    pub fn watch_content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        }
    }
    /// The encoding a `Content-Type` header names (parameters ignored); `None` for others (YAML, CBOR, text).
    pub fn from_content_type(content_type: &str) -> Option<Self> {
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        [Self::Json, Self::Protobuf]
            .into_iter()
            .find(|e| media_type.eq_ignore_ascii_case(e.content_type()))
    }
}

/// The shape in which objects are wanted (`as=` parameter).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// The objects themselves.
    Full,
    /// `meta.k8s.io/<version>` `Table`.
    Table {
        /// `v1` or `v1beta1`.
        version: String,
    },
    /// `PartialObjectMetadata` or `PartialObjectMetadataList`.
    PartialMetadata {
        /// `v1` or `v1beta1`.
        version: String,
        /// Whether the list kind was asked for (kube-apiserver lets the kind follow the request).
        list: bool,
    },
}

/// One acceptable representation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Representation {
    /// Encoding.
    pub encoding: Encoding,
    /// Shape.
    pub shape: Shape,
    /// `Accept` carried `pretty=1`, or the query did.
    pub pretty: bool,
}

/// One clause of an `Accept` header.
#[derive(Clone, Debug, PartialEq)]
pub struct AcceptClause {
    /// Type and subtype, lower case, e.g. `application/json`, `*/*`.
    pub media_type: String,
    /// Quality 0..=1000 (thousandths).
    pub quality: u16,
    /// Other parameters in order (`as`, `v`, `g`, `stream`, `profile`, ...), lower-cased names.
    pub params: Vec<(String, String)>,
}

/// Clauses of one `Accept` header that are looked at.
const MAX_CLAUSES: usize = 64;
/// Parameters of one clause that are looked at.
const MAX_PARAMS: usize = 16;
/// The group of Tables and partial metadata.
const META_GROUP: &str = "meta.k8s.io";
/// The group of aggregated discovery.
const DISCOVERY_GROUP: &str = "apidiscovery.k8s.io";

impl AcceptClause {
    /// The first value of a parameter.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params
            .iter()
            .find_map(|(key, value)| (key == name).then_some(value.as_str()))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut pieces = split_unquoted(text, b';');
        let media_type = pieces.next()?.trim().to_ascii_lowercase();
        if media_type.is_empty() {
            return None;
        }
        let mut quality = 1000;
        let mut params = Vec::new();
        for piece in pieces.take(MAX_PARAMS) {
            let (name, value) = piece.split_once('=').unwrap_or((piece, ""));
            let name = name.trim().to_ascii_lowercase();
            let value = value.trim();
            let value = value
                .strip_prefix('"')
                .and_then(|v| v.strip_suffix('"'))
                .unwrap_or(value);
            match name.as_str() {
                "" => {}
                "q" => quality = parse_quality(value),
                _ => params.push((name, value.to_owned())),
            }
        }
        Some(Self {
            media_type,
            quality,
            params,
        })
    }

    /// How exactly the clause names a type: exact types go before ranges of equal quality.
    fn breadth(&self) -> u8 {
        match self.media_type.as_str() {
            "*/*" => 2,
            range if range.ends_with("/*") => 1,
            _ => 0,
        }
    }

    /// The encoding served for the clause; JSON where it leaves the choice.
    fn encoding(&self) -> Option<Encoding> {
        match self.media_type.as_str() {
            "*/*" | "application/*" => Some(Encoding::Json),
            exact => Encoding::from_content_type(exact),
        }
    }

    /// The group, version and kind to convert to, when any of them is given.
    fn target(&self) -> Option<(&str, &str, &str)> {
        let (group, version, kind) = (self.param("g"), self.param("v"), self.param("as"));
        if group.is_none() && version.is_none() && kind.is_none() {
            return None;
        }
        Some((
            group.unwrap_or_default(),
            version.unwrap_or_default(),
            kind.unwrap_or_default(),
        ))
    }

    /// Only the watch stream schema and the current meta version are known; a clause that asks for others is
    /// passed over, as kube-apiserver does.
    fn has_known_schema(&self) -> bool {
        matches!(self.param("stream"), None | Some("" | "watch"))
            && matches!(self.param("sv"), None | Some("" | "v1"))
    }
}

/// Splits at a separator that is not inside a quoted string.
fn split_unquoted(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let current = rest?;
        let mut quoted = false;
        let end = current.bytes().position(|byte| {
            quoted ^= byte == b'"';
            byte == separator && !quoted
        });
        // The separator is ASCII, so that both sides are at character borders.
        let (piece, tail) = match end {
            Some(at) => (&current[..at], Some(&current[at + 1..])),
            None => (current, None),
        };
        rest = tail;
        Some(piece)
    })
}

/// Thousandths of a quality; what is no number counts as 1.
fn parse_quality(text: &str) -> u16 {
    match text.parse::<f32>() {
        Ok(q) if q.is_finite() => (q.clamp(0.0, 1.0) * 1000.0).round() as u16,
        _ => 1000,
    }
}

/// Parses an `Accept` header into clauses, best first (by quality, then exact types before ranges, then by order).
/// Clauses of quality 0 are kept, at the end. Bounded: at most 64 clauses are looked at.
pub fn parse_accept(accept: &str) -> Vec<AcceptClause> {
    let mut clauses: Vec<AcceptClause> = split_unquoted(accept, b',')
        .take(MAX_CLAUSES)
        .filter_map(AcceptClause::parse)
        .collect();
    clauses.sort_by_key(|clause| (std::cmp::Reverse(clause.quality), clause.breadth()));
    clauses
}

/// The clauses to consider: those of an absent or empty header are `*/*`, those of quality 0 are refusals.
fn acceptable(accept: Option<&str>) -> impl Iterator<Item = AcceptClause> {
    let header = accept.filter(|a| !a.trim().is_empty()).unwrap_or("*/*");
    parse_accept(header)
        .into_iter()
        .filter(|clause| clause.quality > 0)
}

/// Chooses the representation for resource requests among JSON and protobuf, as kube-apiserver
/// negotiates: the first clause that can be served; `Table`/partial clauses only when `shapes` is true; no
/// header or `*/*` means JSON. `None` means 406 Not Acceptable. Table has no protobuf form.
pub fn negotiate(accept: Option<&str>, shapes: bool) -> Option<Representation> {
    acceptable(accept).find_map(|clause| {
        let encoding = clause.encoding()?;
        if !clause.has_known_schema() {
            return None;
        }
        let shape = match clause.target() {
            None => Shape::Full,
            Some((META_GROUP, version @ ("v1" | "v1beta1"), kind)) if shapes => {
                let version = version.to_owned();
                match kind {
                    "Table" if encoding == Encoding::Json => Shape::Table { version },
                    "PartialObjectMetadata" => Shape::PartialMetadata {
                        version,
                        list: false,
                    },
                    "PartialObjectMetadataList" => Shape::PartialMetadata {
                        version,
                        list: true,
                    },
                    _ => return None,
                }
            }
            Some(_) => return None,
        };
        Some(Representation {
            encoding,
            shape,
            pretty: clause.param("pretty") == Some("1"),
        })
    })
}

/// Whether the header asks for aggregated discovery
/// (`application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList`); gives `v2` or `v2beta1` when
/// that clause is preferred over plain JSON.
pub fn aggregated_discovery(accept: Option<&str>) -> Option<&'static str> {
    acceptable(accept)
        .filter(|clause| clause.encoding() == Some(Encoding::Json))
        .find_map(|clause| match clause.target() {
            None => Some(None),
            Some((DISCOVERY_GROUP, "v2", "APIGroupDiscoveryList")) => Some(Some("v2")),
            Some((DISCOVERY_GROUP, "v2beta1", "APIGroupDiscoveryList")) => Some(Some("v2beta1")),
            Some(_) => None,
        })
        .flatten()
}

/// Whether indented JSON is wanted apart from the `Accept` header: by the `pretty` parameter of the query (a Go
/// boolean), else for the tools with which people look at the API by hand.
pub fn wants_pretty(pretty_parameter: Option<&str>, user_agent: Option<&str>) -> bool {
    match pretty_parameter {
        Some(value) if !value.is_empty() => {
            matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True")
        }
        _ => user_agent.is_some_and(|agent| {
            ["curl", "Wget", "Mozilla/5.0"]
                .iter()
                .any(|tool| agent.starts_with(tool))
        }),
    }
}

#[cfg(test)]
mod tests;
