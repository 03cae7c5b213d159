//! Fields of objects by JSON pointer (RFC 6901).

use serde_json::{Map, Value};

/// Values by JSON pointer.
pub(super) type Fields = Map<String, Value>;

/// `{}`.
pub(super) fn empty() -> Value {
    Value::Object(Map::new())
}

/// Removes a field; its parents stay.
pub(super) fn take(object: &mut Value, pointer: &str) -> Option<Value> {
    let (parent, name) = pointer.rsplit_once('/')?;
    let name = unescaped(name);
    object.pointer_mut(parent)?.as_object_mut()?.remove(&name)
}

/// Sets a field; parents that are missing, or are no objects, become objects.
pub(super) fn set(object: &mut Value, pointer: &str, value: Value) {
    let mut place = object;
    for name in pointer.split('/').skip(1) {
        if !place.is_object() {
            *place = empty();
        }
        // It is an object now.
        place = &mut place[unescaped(name)];
    }
    *place = value;
}

/// The fields that there are.
pub(super) fn get_all(object: &Value, pointers: &[&str]) -> Fields {
    let field = |pointer: &&str| Some(((*pointer).to_owned(), object.pointer(pointer)?.clone()));
    pointers.iter().filter_map(field).collect()
}

/// Removes the fields that there are.
pub(super) fn take_all(object: &mut Value, pointers: &[&str]) -> Fields {
    let mut field = |pointer: &&str| Some(((*pointer).to_owned(), take(object, pointer)?));
    pointers.iter().filter_map(&mut field).collect()
}

/// Sets fields.
pub(super) fn set_all(object: &mut Value, fields: Fields) {
    for (pointer, value) in fields {
        set(object, &pointer, value);
    }
}

fn unescaped(name: &str) -> String {
    name.replace("~1", "/").replace("~0", "~")
}
