//! What the schemas of CRDs tell expressions of types.

use super::structural::{Additional, JsonType, Structural};
use yurt_cel::{Form, Schema};

impl Schema for Structural {
    fn form(&self) -> Form {
        match self.json_type {
            _ if self.int_or_string => Form::Any,
            _ if self.additional.is_some() => Form::Map,
            None => Form::Any,
            Some(JsonType::Object) => Form::Object,
            Some(JsonType::Array) => Form::List,
            Some(JsonType::String) => match self.format.as_deref() {
                Some("date-time") => Form::Timestamp,
                Some("duration") => Form::Duration,
                Some("byte") => Form::Bytes,
                _ => Form::String,
            },
            Some(JsonType::Integer) => Form::Int,
            Some(JsonType::Number) => Form::Double,
            Some(JsonType::Boolean) => Form::Bool,
        }
    }

    fn is_resource(&self) -> bool {
        self.embedded_resource
    }

    fn inner(&self) -> Option<&dyn Schema> {
        match (&self.additional, &self.items) {
            (Some(Additional::Schema(inner)), _) | (None, Some(inner)) => Some(&**inner),
            _ => None,
        }
    }

    fn field(&self, name: &str) -> Option<&dyn Schema> {
        self.properties.get(name).map(|field| field as &dyn Schema)
    }

    fn fields(&self) -> Box<dyn Iterator<Item = (&str, &dyn Schema)> + '_> {
        let fields = self.properties.iter();
        Box::new(fields.map(|(name, field)| (name.as_str(), field as &dyn Schema)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use yurt_cel::{Budget, Expression, Type, Val};

    #[test]
    fn schemas_give_types() {
        let schema = json!({"type": "object", "properties": {
            "x": {"type": "integer"}, "name": {"type": "string"}, "foo-bar": {"type": "boolean"},
            "namespace": {"type": "string"}, "ratio": {"type": "number"},
            "at": {"type": "string", "format": "date-time"},
            "tags": {"type": "array", "items": {"type": "string"}}}});
        let schema = Structural::parse(&schema, "s").expect("structural");
        let compile = |source: &str| {
            Expression::compile(source, &[("self", Type::of(&schema, false))])
                .map(|(_, found)| found)
        };
        assert_eq!(compile("self.x > 1"), Ok(Type::Plain("bool")));
        assert_eq!(
            compile("self.foo__dash__bar && self.__namespace__ == 'a'"),
            Ok(Type::Plain("bool"))
        );
        assert_eq!(
            compile("self.tags.map(t, t.size())[0] > 2"),
            Ok(Type::Plain("bool"))
        );
        assert_eq!(
            compile("self.tags.all(t, t.startsWith('a'))"),
            Ok(Type::Plain("bool"))
        );
        for (source, why) in [
            ("self.z == 1", "undefined field 'z'"),
            (
                "self.x > '1'",
                "found no matching overload for '_>_' applied to '(int, string)'",
            ),
            ("self.x.y", "does not support field selection"),
            ("self.x.all(i, i)", "cannot be range of a comprehension"),
            ("self.name && true", "found no matching overload for '_&&_'"),
        ] {
            let error = compile(source).expect_err(source);
            assert!(error.contains(why), "{error}");
        }
        let object = json!({"x": 2, "ratio": 2, "foo-bar": true, "namespace": "n", "at": "2024-01-01T00:00:00Z"});
        let value = |source: &str| {
            let (expression, _) =
                Expression::compile(source, &[("self", Type::of(&schema, false))])
                    .expect("compiles");
            let variables = [("self", Val::of(&object, Some(&schema)))];
            expression
                .evaluate(&variables, &mut Budget::default())
                .map(|value| value.as_bool())
        };
        assert_eq!(
            value("self.foo__dash__bar && self.__namespace__ == 'n'"),
            Ok(Some(true))
        );
        assert_eq!(
            value("self.ratio == 2.0 && self.ratio / 2.0 == 1.0"),
            Ok(Some(true))
        );
        assert_eq!(
            value("self.at < timestamp('2025-01-01T00:00:00Z')"),
            Ok(Some(true))
        );
    }
}
