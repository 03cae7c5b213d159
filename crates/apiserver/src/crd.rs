//! CustomResourceDefinitions: the parsed form. (Parsing, structural schemas: to come.)

/// A parsed definition.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Crd {
    pub group: String,
    pub names: Names,
    pub namespaced: bool,
    pub versions: Vec<CrdVersion>,
}

/// The names of a custom resource.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Names {
    pub plural: String,
    pub singular: String,
    pub kind: String,
    pub list_kind: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
}

/// One version of a definition.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct CrdVersion {
    pub name: String,
    pub served: bool,
    pub storage: bool,
    pub deprecated: bool,
    pub schema: Option<Structural>,
    pub status_subresource: bool,
    pub scale: Option<ScalePaths>,
    pub columns: Option<serde_json::Value>,
    pub selectable_fields: Vec<String>,
}

/// Where a custom resource keeps what the scale subresource shows (dotted paths, with a leading dot).
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct ScalePaths {
    pub spec_replicas: String,
    pub status_replicas: String,
    pub label_selector: Option<String>,
}

/// A structural schema.
#[derive(Clone, Debug)]
pub struct Structural {}
