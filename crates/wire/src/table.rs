//! `meta.k8s.io` Tables: what `kubectl get` prints, by kind, as kube-apiserver's printers do.

use crate::Gvk;
use serde_json::Value;

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

/// How objects of a kind become rows.
#[derive(Clone, Debug)]
pub struct Printer {/* private */}

impl Printer {
    /// The printer of a built-in kind; for others `Name` and `Age`.
    pub fn of(_gvk: &Gvk) -> Self {
        unimplemented!()
    }
    /// From a CRD's `additionalPrinterColumns` (JSON array of {name,type,format,description,priority,jsonPath}).
    pub fn from_crd_columns(_columns: &Value) -> Self {
        unimplemented!()
    }
    /// The column definitions.
    pub fn columns(&self) -> &[Column] {
        unimplemented!()
    }
    /// The cells of one object (JSON with apiVersion and kind). `now` is seconds since the epoch, for ages.
    pub fn cells(&self, _object: &Value, _now: i64) -> Vec<Value> {
        unimplemented!()
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

/// A whole Table as JSON. `head` is the ListMeta as JSON; `version` is `v1` or `v1beta1`; `with_columns`
/// is false for the second and later events of a watch.
pub fn table(
    _printer: &Printer,
    _head: &Value,
    _objects: &[Value],
    _include: IncludeObject,
    _version: &str,
    _with_columns: bool,
    _now: i64,
) -> Value {
    unimplemented!()
}
