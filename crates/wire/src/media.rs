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
    pub fn from_content_type(_content_type: &str) -> Option<Self> {
        unimplemented!()
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

/// Parses an `Accept` header into clauses, best first (by quality, then by order). Bounded: at
/// most 64 clauses are looked at.
pub fn parse_accept(_accept: &str) -> Vec<AcceptClause> {
    unimplemented!()
}

/// Chooses the representation for resource requests among JSON and protobuf, as kube-apiserver
/// negotiates: the first clause that can be served; `Table`/partial clauses only when `shapes` is true; no
/// header or `*/*` means JSON. `None` means 406 Not Acceptable. Table has no protobuf form.
pub fn negotiate(_accept: Option<&str>, _shapes: bool) -> Option<Representation> {
    unimplemented!()
}

/// Whether the header asks for aggregated discovery
/// (`application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList`); gives `v2` or `v2beta1` when
/// that clause is preferred over plain JSON.
pub fn aggregated_discovery(_accept: Option<&str>) -> Option<&'static str> {
    unimplemented!()
}
