//! What expressions are told of values beforehand. Schemas themselves belong to others.

use std::fmt;

/// What values a schema admits, as far as expressions care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Any, or not known.
    Any,
    /// Objects with declared fields ([`Schema::fields`]).
    Object,
    /// Objects with values of one kind under any name ([`Schema::inner`]).
    Map,
    /// Lists of values of one kind ([`Schema::inner`]).
    List,
    /// Texts.
    String,
    /// Texts that are bytes in base64.
    Bytes,
    /// Texts that are times (RFC 3339).
    Timestamp,
    /// Texts that are spans of time, as Go writes them.
    Duration,
    /// Integers.
    Int,
    /// Numbers.
    Double,
    /// Truth values.
    Bool,
}

/// The schema of values.
pub trait Schema: fmt::Debug + Sync {
    /// What they are.
    fn form(&self) -> Form;

    /// Whether they are whole Kubernetes objects, with apiVersion, kind and metadata even where it does not declare them.
    fn is_resource(&self) -> bool {
        false
    }

    /// Of the items of a list or the values of a map, where it is known.
    fn inner(&self) -> Option<&dyn Schema> {
        None
    }

    /// Of a declared field of an object.
    fn field(&self, name: &str) -> Option<&dyn Schema> {
        let mut fields = self.fields();
        fields.find(|(known, _)| *known == name).map(|(_, of)| of)
    }

    /// All declared fields of an object.
    fn fields(&self) -> Box<dyn Iterator<Item = (&str, &dyn Schema)> + '_> {
        Box::new(std::iter::empty())
    }
}

/// What expressions see of `metadata` where a schema does not say more.
#[derive(Debug)]
pub(crate) struct Metadata;

pub(crate) const METADATA: &dyn Schema = &Metadata;

#[derive(Debug)]
struct Text;

impl Schema for Text {
    fn form(&self) -> Form {
        Form::String
    }
}

impl Schema for Metadata {
    fn form(&self) -> Form {
        Form::Object
    }

    fn fields(&self) -> Box<dyn Iterator<Item = (&str, &dyn Schema)> + '_> {
        let names = ["name", "generateName"];
        Box::new(names.into_iter().map(|name| (name, &Text as &dyn Schema)))
    }
}
