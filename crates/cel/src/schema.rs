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

/// A schema that is written down in a program.
#[derive(Debug)]
pub struct Declared {
    /// What values are.
    pub form: Form,
    /// Of items or values.
    pub inner: Option<&'static dyn Schema>,
    /// Of fields.
    pub fields: &'static [(&'static str, &'static dyn Schema)],
}

impl Declared {
    /// Any text.
    pub const TEXT: Self = Self {
        form: Form::String,
        inner: None,
        fields: &[],
    };

    /// Lists or maps.
    pub const fn of(form: Form, inner: &'static dyn Schema) -> Self {
        Self {
            form,
            inner: Some(inner),
            fields: &[],
        }
    }

    /// Objects.
    pub const fn object(fields: &'static [(&'static str, &'static dyn Schema)]) -> Self {
        Self {
            form: Form::Object,
            inner: None,
            fields,
        }
    }
}

impl Schema for Declared {
    fn form(&self) -> Form {
        self.form
    }

    fn inner(&self) -> Option<&dyn Schema> {
        self.inner
    }

    fn fields(&self) -> Box<dyn Iterator<Item = (&str, &dyn Schema)> + '_> {
        Box::new(self.fields.iter().map(|(name, of)| (*name, *of)))
    }
}

/// What expressions see of `metadata` where a schema does not say more.
pub(crate) const METADATA: &dyn Schema =
    &Declared::object(&[("name", &Declared::TEXT), ("generateName", &Declared::TEXT)]);
