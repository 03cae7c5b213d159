//! Paths and operations.

use super::schemas::{Definitions, gvk_extension};
use super::{Dialect, group_version_path};
use crate::resources::{Resource, Subresource};
use serde_json::{Map, Value, json};
use yurt_wire::{
    Gvk,
    schema::{self, FieldKind},
};

const OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";

const STRING: &str = "string";
const INTEGER: &str = "integer";
const BOOLEAN: &str = "boolean";
type Parameter = (&'static str, &'static str);
const WRITE: &[Parameter] = &[
    ("dryRun", STRING),
    ("fieldManager", STRING),
    ("fieldValidation", STRING),
];
const FORCE: &[Parameter] = &[("force", BOOLEAN)];
const DELETE: &[Parameter] = &[
    ("dryRun", STRING),
    ("gracePeriodSeconds", INTEGER),
    ("orphanDependents", BOOLEAN),
    ("propagationPolicy", STRING),
];
const LIST: &[Parameter] = &[
    ("allowWatchBookmarks", BOOLEAN),
    ("continue", STRING),
    ("fieldSelector", STRING),
    ("labelSelector", STRING),
    ("limit", INTEGER),
    ("resourceVersion", STRING),
    ("resourceVersionMatch", STRING),
    ("sendInitialEvents", BOOLEAN),
    ("timeoutSeconds", INTEGER),
    ("watch", BOOLEAN),
];

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const PATCHES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    // Built-in kinds only; keep last.
    "application/strategic-merge-patch+json",
];

/// One operation, as it is being written.
struct Operation<'a> {
    resource: &'a Resource,
    /// `list`, `get`, `post`, ...: what clients look for.
    action: &'static str,
    /// First word of the operation's id.
    word: &'static str,
    gvk: Gvk,
    body: Option<Value>,
    answer: Value,
    query: Vec<Parameter>,
    subresource: &'a str,
    scope: &'static str,
}

/// Adds the paths of a resource and the schemas they need.
pub(super) fn add(
    resource: &Resource,
    definitions: &mut Definitions,
    paths: &mut Map<String, Value>,
) {
    let base = format!(
        "/{}",
        group_version_path(&resource.group, &resource.version)
    );
    let plural = &resource.plural;
    let collection = if resource.namespaced {
        format!("{base}/namespaces/{{namespace}}/{plural}")
    } else {
        format!("{base}/{plural}")
    };
    let kind = definitions.kind(resource, &resource.gvk());
    let list = if resource.serves("list") {
        Some(definitions.kind(resource, &resource.list_gvk()))
    } else {
        None
    };
    let status = definitions.reference(STATUS);
    let scope = if resource.namespaced {
        "Namespaced"
    } else {
        ""
    };
    let operation = |action, word, answer: &Value| Operation {
        resource,
        action,
        word,
        gvk: resource.gvk(),
        body: None,
        answer: answer.clone(),
        query: Vec::new(),
        subresource: "",
        scope,
    };
    let dialect = definitions.dialect;

    let mut item = Map::new();
    if let Some(list) = &list {
        let mut op = operation("list", "list", list);
        op.query.extend(LIST);
        item.insert("get".into(), op.write(dialect));
        if resource.namespaced {
            op.scope = "ForAllNamespaces";
            let mut everywhere = Map::from_iter([("get".to_owned(), op.write(dialect))]);
            place(&format!("{base}/{plural}"), &mut everywhere, dialect, paths);
        }
    }
    if resource.serves("create") {
        let mut op = operation("post", "create", &kind);
        op.body = Some(kind.clone());
        op.query.extend(WRITE);
        item.insert("post".into(), op.write(dialect));
    }
    if resource.serves("deletecollection") {
        let mut op = operation("deletecollection", "deletecollection", &status);
        op.body = Some(definitions.reference(OPTIONS));
        op.query.extend(DELETE.iter().chain(LIST));
        item.insert("delete".into(), op.write(dialect));
    }
    place(&collection, &mut item, dialect, paths);

    let mut item = Map::new();
    if resource.serves("get") {
        let op = operation("get", "read", &kind);
        item.insert("get".into(), op.write(dialect));
    }
    if resource.serves("delete") {
        let mut op = operation("delete", "delete", &status);
        op.body = Some(definitions.reference(OPTIONS));
        op.query.extend(DELETE);
        item.insert("delete".into(), op.write(dialect));
    }
    for (verb, action, word) in [("update", "put", "replace"), ("patch", "patch", "patch")] {
        if resource.serves(verb) {
            let mut op = operation(action, word, &kind);
            op.change(&kind);
            item.insert(action.into(), op.write(dialect));
        }
    }
    let object = format!("{collection}/{{name}}");
    place(&object, &mut item, dialect, paths);

    for sub in &resource.subresources {
        if sub.is_connection() {
            connection(resource, sub, &object, dialect, paths);
            continue;
        }
        let gvk = if sub.kind.is_empty() {
            resource.gvk()
        } else {
            Gvk {
                group: sub.group.clone(),
                version: sub.version.clone(),
                kind: sub.kind.clone(),
            }
        };
        let known = gvk == resource.gvk() || schema::message_of(&gvk).is_some();
        if !known {
            continue;
        }
        let body = definitions.kind(resource, &gvk);
        let mut item = Map::new();
        for (verb, action, word) in [
            ("get", "get", "read"),
            ("create", "post", "create"),
            ("update", "put", "replace"),
            ("patch", "patch", "patch"),
        ] {
            if !sub.verbs.iter().any(|served| served == verb) {
                continue;
            }
            let mut op = operation(action, word, &body);
            op.gvk = gvk.clone();
            op.subresource = &sub.name;
            if verb != "get" {
                op.change(&body);
            }
            item.insert(action.into(), op.write(dialect));
        }
        place(&format!("{object}/{}", sub.name), &mut item, dialect, paths);
    }
}

/// The paths of a subresource that is a connection: no objects, only bytes.
fn connection(
    resource: &Resource,
    sub: &Subresource,
    object: &str,
    dialect: Dialect,
    paths: &mut Map<String, Value>,
) {
    let own = |kind: &str| Gvk {
        kind: kind.to_owned(),
        ..resource.gvk()
    };
    let (methods, gvk, options): (&[&str], Gvk, &str) = match sub.name.as_str() {
        "log" => (&["get"], resource.gvk(), "PodLogOptions"),
        "proxy" => (
            &["get", "put", "post", "delete", "options", "head", "patch"],
            own(&sub.kind),
            &sub.kind,
        ),
        _ => (&["get", "post"], own(&sub.kind), &sub.kind),
    };
    let fields = schema::message_of(&own(options)).map_or(&[][..], |message| message.fields);
    let query: Vec<Parameter> = fields
        .iter()
        .map(|field| {
            let of = match field.kind {
                FieldKind::Bool => BOOLEAN,
                FieldKind::Int32 | FieldKind::Int64 => INTEGER,
                _ => STRING,
            };
            (field.json_name, of)
        })
        .collect();
    let base = format!("{object}/{}", sub.name);
    let with_path = (sub.name == "proxy").then(|| (format!("{base}/{{path}}"), "WithPath"));
    for (path, end) in [(base, "")].into_iter().chain(with_path) {
        let mut item = Map::new();
        for method in methods {
            let log = sub.name == "log";
            let (word, method_word) = match log {
                true => ("read", String::new()),
                false => ("connect", capitalized(method)),
            };
            let scope = if resource.namespaced {
                "Namespaced"
            } else {
                ""
            };
            let group = group_word(&resource.group);
            let version = capitalized(&resource.version);
            let (kind, name) = (&resource.kind, capitalized(&sub.name));
            let produced = if log { "text/plain" } else { "*/*" };
            let mut operation = json!({
                "operationId": format!("{word}{group}{version}{method_word}{scope}{kind}{name}{end}"),
                "tags": [format!("core_{}", resource.version)],
                "x-kubernetes-action": if log { "get" } else { "connect" },
                "x-kubernetes-group-version-kind": gvk_extension(&gvk),
            });
            let answer = json!({"type": STRING});
            operation["responses"] = match dialect {
                Dialect::V2 => {
                    operation["consumes"] = json!(["*/*"]);
                    operation["produces"] = json!([produced]);
                    json!({"200": {"description": "OK", "schema": answer}})
                }
                Dialect::V3 => {
                    let content = json!({produced: {"schema": answer}});
                    json!({"200": {"description": "OK", "content": content}})
                }
            };
            item.insert((*method).to_owned(), operation);
        }
        let parameters: Vec<Value> = query
            .iter()
            .map(|(name, of)| parameter(name, "query", of, dialect))
            .collect();
        place(&path, &mut item, dialect, paths);
        if let Some(shared) = paths[&path]["parameters"].as_array_mut() {
            // `pretty` says nothing about bytes.
            shared.retain(|parameter| parameter["name"] != "pretty");
            shared.extend(parameters);
        }
    }
}

/// Puts a path into the document, with the parameters its address has.
fn place(
    path: &str,
    item: &mut Map<String, Value>,
    dialect: Dialect,
    paths: &mut Map<String, Value>,
) {
    if item.is_empty() {
        return;
    }
    let mut parameters = Vec::new();
    for name in ["namespace", "name", "path"] {
        if path.contains(&format!("{{{name}}}")) {
            let mut parameter = parameter(name, "path", STRING, dialect);
            parameter["required"] = json!(true);
            parameters.push(parameter);
        }
    }
    parameters.push(parameter("pretty", "query", STRING, dialect));
    item.insert("parameters".into(), Value::Array(parameters));
    paths.insert(path.to_owned(), Value::Object(std::mem::take(item)));
}

fn parameter(name: &str, place: &str, of: &str, dialect: Dialect) -> Value {
    match dialect {
        Dialect::V2 => json!({"name": name, "in": place, "type": of, "uniqueItems": true}),
        Dialect::V3 => {
            json!({"name": name, "in": place, "schema": {"type": of, "uniqueItems": true}})
        }
    }
}

/// `apps` -> `Apps`, `rbac.authorization.k8s.io` -> `RbacAuthorization`.
fn group_word(group: &str) -> String {
    let group = group.strip_suffix(".k8s.io").unwrap_or(group);
    if group.is_empty() {
        return "Core".to_owned();
    }
    group.split(['.', '-']).map(capitalized).collect()
}

fn capitalized(word: &str) -> String {
    let mut chars = word.chars();
    chars
        .next()
        .map(|first| first.to_uppercase().chain(chars).collect())
        .unwrap_or_default()
}

impl Operation<'_> {
    /// Makes it a write of `body`.
    fn change(&mut self, body: &Value) {
        self.query.extend(WRITE);
        if self.action == "patch" {
            self.query.extend(FORCE);
        } else {
            self.body = Some(body.clone());
        }
    }

    fn id(&self) -> String {
        let (namespaced, everywhere) = match self.scope {
            "ForAllNamespaces" => ("", "ForAllNamespaces"),
            scope => (scope, ""),
        };
        let collection = if self.action == "deletecollection" {
            "Collection"
        } else {
            ""
        };
        format!(
            "{}{}{}{collection}{namespaced}{}{}{everywhere}",
            if collection.is_empty() {
                self.word
            } else {
                "delete"
            },
            group_word(&self.resource.group),
            capitalized(&self.resource.version),
            self.resource.kind,
            capitalized(self.subresource),
        )
    }

    fn tag(&self) -> String {
        let group = match self.resource.group.as_str() {
            "" => "core",
            group => group.strip_suffix(".k8s.io").unwrap_or(group),
        };
        let group: String = group
            .split(['.', '-'])
            .enumerate()
            .map(|(i, word)| {
                if i == 0 {
                    word.to_owned()
                } else {
                    capitalized(word)
                }
            })
            .collect();
        format!("{group}_{}", self.resource.version)
    }

    /// What the body may be written in.
    fn consumes(&self) -> Vec<&'static str> {
        let custom = self.resource.custom.is_some();
        match (self.action, custom) {
            ("patch", true) => PATCHES[..PATCHES.len() - 1].to_vec(),
            ("patch", false) => PATCHES.to_vec(),
            (_, true) => vec![JSON, YAML],
            (_, false) => vec![JSON, YAML, PROTOBUF],
        }
    }

    fn produces(&self) -> Vec<&'static str> {
        if self.resource.custom.is_some() {
            vec![JSON, YAML]
        } else {
            vec![JSON, YAML, PROTOBUF]
        }
    }

    fn write(&self, dialect: Dialect) -> Value {
        let mut parameters: Vec<Value> = Vec::new();
        // A collection may be deleted by the same parameters as it is listed.
        let mut seen = Vec::new();
        for (name, of) in &self.query {
            if !seen.contains(name) {
                seen.push(*name);
                parameters.push(parameter(name, "query", of, dialect));
            }
        }
        let codes: &[&str] = match self.action {
            "post" => &["200", "201", "202"],
            "put" | "patch" => &["200", "201"],
            "delete" => &["200", "202"],
            _ => &["200"],
        };
        let mut out = json!({
            "operationId": self.id(),
            "tags": [self.tag()],
            "x-kubernetes-action": self.action,
            "x-kubernetes-group-version-kind": gvk_extension(&self.gvk),
        });
        let patch_body = json!({"type": "object"});
        let body = match (self.action, &self.body) {
            ("patch", _) => Some(&patch_body),
            (_, body) => body.as_ref(),
        };
        let mut responses = Map::new();
        match dialect {
            Dialect::V2 => {
                if let Some(body) = body {
                    parameters.push(json!({
                        "name": "body", "in": "body", "required": self.needs_body(), "schema": body,
                    }));
                    out["consumes"] = json!(self.consumes());
                }
                out["produces"] = json!(self.produces());
                for code in codes {
                    responses.insert(
                        (*code).to_owned(),
                        json!({"description": describe(code), "schema": self.answer}),
                    );
                }
            }
            Dialect::V3 => {
                let content = |types: Vec<&'static str>, schema: &Value| -> Value {
                    types
                        .into_iter()
                        .map(|name| (name.to_owned(), json!({"schema": schema})))
                        .collect::<Map<String, Value>>()
                        .into()
                };
                if let Some(body) = body {
                    out["requestBody"] = json!({
                        "content": content(self.consumes(), body),
                        "required": self.needs_body(),
                    });
                }
                for code in codes {
                    responses.insert(
                        (*code).to_owned(),
                        json!({
                            "description": describe(code),
                            "content": content(self.produces(), &self.answer),
                        }),
                    );
                }
            }
        }
        if !parameters.is_empty() {
            out["parameters"] = Value::Array(parameters);
        }
        out["responses"] = Value::Object(responses);
        out
    }

    fn needs_body(&self) -> bool {
        !matches!(self.action, "delete" | "deletecollection")
    }
}

fn describe(code: &str) -> &'static str {
    match code {
        "201" => "Created",
        "202" => "Accepted",
        _ => "OK",
    }
}
