//! Filling in the defaults of a schema.

use super::structural::{Additional, Structural};
use serde_json::Value;

impl Structural {
    /// Whether there is anything that [`Structural::apply_defaults`] may set.
    pub fn has_defaults(&self) -> bool {
        let additional = match &self.additional {
            Some(Additional::Schema(schema)) => Some(&**schema),
            _ => None,
        };
        self.properties
            .values()
            .chain(additional)
            .chain(self.items.as_deref())
            .any(|schema| schema.default.is_some() || schema.has_defaults())
    }

    /// Sets every absent field that has a default, outermost first. A null where null is not allowed counts as
    /// absent if there is a default.
    pub fn apply_defaults(&self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, property) in &self.properties {
                    let Some(default) = &property.default else {
                        continue;
                    };
                    let absent = match fields.get(name) {
                        None => true,
                        Some(Value::Null) => !property.nullable,
                        Some(_) => false,
                    };
                    if absent {
                        fields.insert(name.clone(), default.clone());
                    }
                }
                for (name, inner) in fields.iter_mut() {
                    match (self.properties.get(name), &self.additional) {
                        (Some(property), _) => property.apply_defaults(inner),
                        (None, Some(Additional::Schema(schema))) => {
                            if inner.is_null()
                                && !schema.nullable
                                && let Some(default) = &schema.default
                            {
                                *inner = default.clone();
                            }
                            schema.apply_defaults(inner);
                        }
                        _ => {}
                    }
                }
            }
            Value::Array(items) => {
                if let Some(schema) = &self.items {
                    for item in items {
                        if item.is_null()
                            && !schema.nullable
                            && let Some(default) = &schema.default
                        {
                            *item = default.clone();
                        }
                        schema.apply_defaults(item);
                    }
                }
            }
            _ => {}
        }
    }
}
