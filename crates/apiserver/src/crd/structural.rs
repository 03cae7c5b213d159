//! Structural schemas: OpenAPI schemas that say the type of every field they mention, so that objects can be
//! pruned, defaulted and merged by them.

mod parse;

use super::rules::Rule;
use regex::Regex;
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

/// `type` of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum JsonType {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

impl JsonType {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "object" => Self::Object,
            "array" => Self::Array,
            "string" => Self::String,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            _ => return None,
        })
    }

    /// As in a schema.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}

/// `additionalProperties`.
#[derive(Clone, Debug)]
pub enum Additional {
    /// Any value under any name (`true`).
    Any,
    /// Values of one schema.
    Schema(Box<Structural>),
}

/// A compiled `pattern`.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// As written.
    pub source: String,
    /// As it matches (anywhere in the value, as RE2 does).
    pub regex: Regex,
}

/// A schema, parsed and checked. Also used for the schemas below `allOf`, `anyOf`, `oneOf` and `not`, of which only
/// the value validations matter.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Structural {
    pub json_type: Option<JsonType>,
    pub description: Option<String>,
    pub default: Option<Value>,
    pub nullable: bool,
    pub properties: BTreeMap<String, Structural>,
    pub additional: Option<Additional>,
    pub items: Option<Box<Structural>>,
    pub required: Vec<String>,
    // Extensions.
    pub preserve_unknown: bool,
    pub embedded_resource: bool,
    pub int_or_string: bool,
    pub list_type: Option<String>,
    pub list_map_keys: Vec<String>,
    pub map_type: Option<String>,
    /// `x-kubernetes-validations`, as written.
    pub rules: Vec<Value>,
    /// The same, read.
    pub(crate) compiled: Arc<[Rule]>,
    // Value validations.
    pub format: Option<String>,
    pub pattern: Option<Pattern>,
    pub enumeration: Option<Vec<Value>>,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub multiple_of: Option<f64>,
    pub min_length: Option<u64>,
    pub max_length: Option<u64>,
    pub min_items: Option<u64>,
    pub max_items: Option<u64>,
    pub unique_items: bool,
    pub min_properties: Option<u64>,
    pub max_properties: Option<u64>,
    pub all_of: Vec<Structural>,
    pub any_of: Vec<Structural>,
    pub one_of: Vec<Structural>,
    pub not: Option<Box<Structural>>,
}

impl Structural {
    /// The schema of a field, if it is declared or covered by `additionalProperties`.
    pub fn property(&self, name: &str) -> Option<&Structural> {
        self.properties.get(name).or(match &self.additional {
            Some(Additional::Schema(schema)) => Some(schema),
            _ => None,
        })
    }
}
