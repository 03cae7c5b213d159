//! `meta.k8s.io` Tables: what `kubectl get` prints, by kind, as kube-apiserver's printers do.
//!
//! Columns and cells follow `pkg/printers/internalversion` of Kubernetes 1.36 and the table converters of CRDs and API
//! services. A server always sends the wide columns too (priority 1); the client leaves them out. Objects are read
//! tolerantly: a field that is missing or of the wrong type counts as empty.

use crate::Gvk;
use serde_json::{Value, json};

mod age;
mod apis;
mod cluster;
mod fields;
mod jsonpath;
mod network;
mod pod;
mod storage;
mod workloads;

pub use age::human_duration;
use age::human_since;
use fields::Fields;
use jsonpath::JsonPath;

/// One column definition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Column {
    pub name: String,
    pub kind: String,
    pub format: String,
    pub description: String,
    pub priority: i32,
}

impl Column {
    fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "type": self.kind,
            "format": self.format,
            "description": self.description,
            "priority": self.priority,
        })
    }
}

/// A column of a built-in kind.
#[derive(Clone, Copy, Debug)]
struct Spec {
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    description: &'static str,
    priority: i32,
}

impl Spec {
    const fn of(name: &'static str, kind: &'static str, description: &'static str) -> Self {
        Self {
            name,
            kind,
            format: "",
            description,
            priority: 0,
        }
    }
    /// Shown only in wide output.
    const fn wide(self) -> Self {
        Self {
            priority: 1,
            ..self
        }
    }
    /// Holds the object's name.
    const fn name_format(self) -> Self {
        Self {
            format: "name",
            ..self
        }
    }
}

const fn text(name: &'static str, description: &'static str) -> Spec {
    Spec::of(name, "string", description)
}
const fn integer(name: &'static str, description: &'static str) -> Spec {
    Spec::of(name, "integer", description)
}
const fn boolean(name: &'static str, description: &'static str) -> Spec {
    Spec::of(name, "boolean", description)
}

const NAME: Spec = text("Name", "Name of the object.").name_format();
const AGE: Spec = text("Age", "Time since the object was created.");
const CREATED_AT: Spec = Spec::of("Created At", "date", "When the object was created.");
const CONTAINERS: Spec = text("Containers", "Names of the containers.").wide();
const IMAGES: Spec = text("Images", "Images of the containers.").wide();
const SELECTOR: Spec = text("Selector", "Labels of the pods that belong to it.").wide();

/// Makes the cells of one object. The second argument is the present, in seconds since the epoch.
type CellsFn = fn(Fields<'_>, i64) -> Vec<Value>;

/// The printer of one built-in kind.
struct BuiltIn {
    group: &'static str,
    kind: &'static str,
    columns: &'static [Spec],
    cells: CellsFn,
}

const fn built_in(
    group: &'static str,
    kind: &'static str,
    columns: &'static [Spec],
    cells: CellsFn,
) -> BuiltIn {
    BuiltIn {
        group,
        kind,
        columns,
        cells,
    }
}

/// How objects of a kind become rows.
#[derive(Clone, Debug)]
pub struct Printer {
    columns: Vec<Column>,
    cells: Cells,
}

#[derive(Clone, Debug)]
enum Cells {
    BuiltIn(CellsFn),
    /// The name, then one cell for each path; a path that does not parse gives empty cells.
    Paths(Vec<Option<JsonPath>>),
}

/// Columns that a CRD may have; what goes beyond is left out.
const MAX_CRD_COLUMNS: usize = 256;

impl Printer {
    /// The printer of a built-in kind; for others `Name` and `Age`. The version does not matter.
    pub fn of(gvk: &Gvk) -> Self {
        let built_in = [
            pod::PRINTERS,
            workloads::PRINTERS,
            network::PRINTERS,
            storage::PRINTERS,
            cluster::PRINTERS,
            apis::PRINTERS,
        ]
        .into_iter()
        .flatten()
        .find(|printer| printer.group == gvk.group && printer.kind == gvk.kind);
        match built_in {
            Some(printer) => Self {
                columns: printer.columns.iter().map(column).collect(),
                cells: Cells::BuiltIn(printer.cells),
            },
            None => Self::from_crd_columns(&Value::Null),
        }
    }

    /// From a CRD's `additionalPrinterColumns` (JSON array of {name,type,format,description,priority,jsonPath}). Without
    /// any the columns are `Name` and `Age`.
    pub fn from_crd_columns(columns: &Value) -> Self {
        let default = json!([{
            "name": AGE.name,
            "type": "date",
            "description": AGE.description,
            "jsonPath": ".metadata.creationTimestamp",
        }]);
        let wanted = match columns.as_array() {
            Some(columns) if !columns.is_empty() => columns.as_slice(),
            _ => default.as_array().map_or(&[][..], Vec::as_slice),
        };
        let mut defined = vec![column(&NAME)];
        let mut paths = Vec::new();
        for wanted in wanted.iter().take(MAX_CRD_COLUMNS) {
            let wanted = Fields::of(wanted);
            let path = wanted.text("jsonPath");
            let description = match wanted.text("description") {
                text if text.is_empty() => format!("The value at {path}."),
                text => text,
            };
            defined.push(Column {
                name: wanted.text("name"),
                kind: wanted.text("type"),
                format: wanted.text("format"),
                description,
                priority: i32::try_from(wanted.int("priority")).unwrap_or(i32::MAX),
            });
            paths.push(JsonPath::parse(&path));
        }
        Self {
            columns: defined,
            cells: Cells::Paths(paths),
        }
    }

    /// The column definitions.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The cells of one object (JSON with apiVersion and kind), one for each column. `now` is seconds since the
    /// epoch, for ages.
    pub fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let fields = Fields::of(object);
        match &self.cells {
            Cells::BuiltIn(cells) => cells(fields, now),
            Cells::Paths(paths) => {
                let mut cells = vec![fields.name()];
                cells.extend(paths.iter().zip(&self.columns[1..]).map(|(path, column)| {
                    path.as_ref()
                        .and_then(|path| path.first(object))
                        .map_or(Value::Null, |found| crd_cell(&column.kind, found, now))
                }));
                cells
            }
        }
    }
}

fn column(spec: &Spec) -> Column {
    Column {
        name: spec.name.into(),
        kind: spec.kind.into(),
        format: spec.format.into(),
        description: spec.description.into(),
        priority: spec.priority,
    }
}

/// A value as a cell of the type that the CRD's column declares; `null` when it does not fit.
fn crd_cell(kind: &str, value: &Value, now: i64) -> Value {
    match (kind, value) {
        (_, Value::Null) => Value::Null,
        ("string", Value::String(text)) => json!(text),
        ("string", other) => json!(other.to_string()),
        // Fractions are cut off.
        ("integer", Value::Number(number)) => {
            let whole = number.as_i64().or(number.as_f64().map(|f| f as i64));
            whole.map_or(Value::Null, Value::from)
        }
        ("number", Value::Number(number)) => Value::Number(number.clone()),
        ("boolean", Value::Bool(_)) => value.clone(),
        ("date", Value::String(time)) => json!(match age::parse(time) {
            Some(_) => human_since(time, now),
            None => "<invalid>".to_owned(),
        }),
        _ => Value::Null,
    }
}

/// Which part of the object goes into a row (`includeObject` query).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

impl IncludeObject {
    /// From the query parameter; `None` for a value that is none of the three (400 BadRequest).
    pub fn parse(parameter: Option<&str>) -> Option<Self> {
        match parameter {
            None | Some("" | "Metadata") => Some(Self::Metadata),
            Some("None") => Some(Self::None),
            Some("Object") => Some(Self::Object),
            Some(_) => None,
        }
    }
}

/// A whole Table as JSON. `head` is the ListMeta as JSON; `version` is `v1` or `v1beta1`; `with_columns`
/// is false for the second and later events of a watch.
pub fn table(
    printer: &Printer,
    head: &Value,
    objects: &[Value],
    include: IncludeObject,
    version: &str,
    with_columns: bool,
    now: i64,
) -> Value {
    let columns = match with_columns {
        true => printer.columns.iter().map(Column::to_json).collect(),
        false => Value::Null,
    };
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| row(printer, object, include, version, now))
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": head,
        "columnDefinitions": columns,
        "rows": rows,
    })
}

fn row(
    printer: &Printer,
    object: &Value,
    include: IncludeObject,
    version: &str,
    now: i64,
) -> Value {
    let included = match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Object => object.clone(),
        IncludeObject::Metadata => json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": format!("meta.k8s.io/{version}"),
            "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
        }),
    };
    let mut row = json!({"cells": printer.cells(object, now), "object": included});
    let fields = Fields::of(object);
    if fields.text("kind") == "Pod"
        && let Some(conditions) = pod::row_conditions(fields)
    {
        row["conditions"] = conditions;
    }
    row
}

#[cfg(test)]
mod tests;
