//! A document in YAML or JSON whose parts know where they stand, and reading it strictly: whatever is not understood is complained of,
//! with its place.

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;
use std::{
    cell::{Cell, RefCell},
    fmt,
};

/// Largest document.
pub(super) const MOST_BYTES: usize = 256 << 10;
/// Values of a document, those behind aliases counted each time.
const MOST_NODES: usize = 16 << 10;
/// Deeper documents are refused.
const MAX_DEPTH: usize = 48;
/// Complaints that are kept of one document.
const MOST_COMPLAINTS: usize = 64;
/// Characters of foreign text in a complaint.
const SHOWN: usize = 64;

/// What is wrong with a document, and where.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Complaint {
    /// Line, from 1; 0 when it is about all of the document.
    pub line: u64,
    /// Column, from 1.
    pub column: u64,
    /// The rule's name; empty when it has none, or when it is about all of the document.
    pub rule: String,
    /// The path below the rule (`match.kind`, `patch[0].path`); may be empty.
    pub at: String,
    /// What is wrong.
    pub why: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.line > 0 {
            parts.push(format!("line {}, column {}", self.line, self.column));
        }
        if !self.rule.is_empty() {
            parts.push(format!("rule {}", self.rule));
        }
        if !self.at.is_empty() {
            parts.push(self.at.clone());
        }
        parts.push(self.why.clone());
        f.write_str(&parts.join(": "))
    }
}

/// As much of a foreign text as a complaint may have.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) line: u64,
    pub(super) column: u64,
    pub(super) tree: Tree,
}

#[derive(Clone, Debug)]
pub(super) enum Tree {
    Scalar(Value),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    /// Reads a document.
    pub(super) fn parse(text: &str) -> Result<Self, Complaint> {
        let about_all = |why: String| Complaint {
            line: 0,
            column: 0,
            rule: String::new(),
            at: String::new(),
            why,
        };
        if text.len() > MOST_BYTES {
            return Err(about_all(format!(
                "{} bytes are more than the {MOST_BYTES} that are read",
                text.len()
            )));
        }
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! {
                max_nodes: MOST_NODES,
                max_depth: MAX_DEPTH,
                max_documents: 1,
            },
            // Only true and false: a port named "on" is a text.
            strict_booleans: true,
            with_snippet: false,
        };
        serde_saphyr::from_str_with_options::<Node>(text, options).map_err(|error| {
            let place = error.location();
            Complaint {
                line: place.map_or(0, |place| place.line()),
                column: place.map_or(0, |place| place.column()),
                ..about_all(error.without_snippet().to_string())
            }
        })
    }

    /// Without places.
    pub(super) fn to_value(&self) -> Value {
        match &self.tree {
            Tree::Scalar(value) => value.clone(),
            Tree::List(items) => items.iter().map(Self::to_value).collect(),
            Tree::Map(fields) => {
                let field = |(name, node): &(String, Node)| (name.clone(), node.to_value());
                Value::Object(fields.iter().map(field).collect::<Map<_, _>>())
            }
        }
    }

    fn kind(&self) -> &'static str {
        match &self.tree {
            Tree::Scalar(Value::Null) => "nothing",
            Tree::Scalar(Value::Bool(_)) => "true or false",
            Tree::Scalar(Value::Number(_)) => "a number",
            Tree::Scalar(_) => "a text",
            Tree::List(_) => "a list",
            Tree::Map(_) => "an object",
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned {
            value, referenced, ..
        } = Spanned::<Tree>::deserialize(deserializer)?;
        Ok(Self {
            line: referenced.line(),
            column: referenced.column(),
            tree: value,
        })
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Tree, E> {
        let number = serde_json::Number::from_f64(value);
        let number = number.ok_or_else(|| E::custom("is no number that JSON has"))?;
        Ok(Tree::Scalar(number.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Tree::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut fields: Vec<(String, Node)> = Vec::new();
        while let Some((name, node)) = map.next_entry::<String, Node>()? {
            if fields.iter().any(|(known, _)| *known == name) {
                return Err(A::Error::custom(format!(
                    "{:?} is there twice",
                    shown(&name)
                )));
            }
            fields.push((name, node));
        }
        Ok(Tree::Map(fields))
    }
}

/// What is complained of while a document is read.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    rule: RefCell<String>,
    list: RefCell<Vec<Complaint>>,
    count: Cell<usize>,
}

impl Complaints {
    /// What follows is about this rule.
    pub(super) fn about(&self, rule: &str) {
        *self.rule.borrow_mut() = shown(rule);
    }

    /// All complaints so far, also those that were not kept.
    pub(super) fn count(&self) -> usize {
        self.count.get()
    }

    pub(super) fn add(&self, node: &Node, at: &str, why: impl Into<String>) {
        self.count.set(self.count.get() + 1);
        let mut list = self.list.borrow_mut();
        if list.len() < MOST_COMPLAINTS {
            list.push(Complaint {
                line: node.line,
                column: node.column,
                rule: self.rule.borrow().clone(),
                at: at.to_owned(),
                why: why.into(),
            });
        }
    }

    pub(super) fn into_list(self) -> Vec<Complaint> {
        self.list.into_inner()
    }
}

/// The fields of an object, asked for by name; what nobody asked for is complained of at the [`end`](Self::end).
#[derive(Debug)]
pub(super) struct Fields<'n> {
    node: &'n Node,
    at: String,
    fields: &'n [(String, Node)],
    asked: Vec<&'static str>,
    complaints: &'n Complaints,
}

impl<'n> Fields<'n> {
    /// Of a value that is to be an object.
    pub(super) fn of(node: &'n Node, at: String, complaints: &'n Complaints) -> Option<Self> {
        let Tree::Map(fields) = &node.tree else {
            complaints.add(node, &at, format!("is {}, not an object", node.kind()));
            return None;
        };
        Some(Self {
            node,
            at,
            fields,
            asked: Vec::new(),
            complaints,
        })
    }

    /// The path of a field.
    pub(super) fn path(&self, name: &str) -> String {
        if self.at.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.at)
        }
    }

    /// Complains of a field, or of the object where it has none of this name.
    pub(super) fn complain(&self, name: &str, why: impl Into<String>) {
        let node = self.fields.iter().find(|(known, _)| known == name);
        let node = node.map_or(self.node, |(_, node)| node);
        self.complaints.add(node, &self.path(name), why);
    }

    /// Complains of the object.
    pub(super) fn complain_of_all(&self, why: impl Into<String>) {
        self.complaints.add(self.node, &self.at, why);
    }

    /// A field, unless it is absent or null.
    pub(super) fn get(&mut self, name: &'static str) -> Option<&'n Node> {
        self.any(name)
            .filter(|node| !matches!(node.tree, Tree::Scalar(Value::Null)))
    }

    /// A field, unless it is absent.
    pub(super) fn any(&mut self, name: &'static str) -> Option<&'n Node> {
        if !self.asked.contains(&name) {
            self.asked.push(name);
        }
        let found = self.fields.iter().find(|(known, _)| known == name);
        found.map(|(_, node)| node)
    }

    /// A text that is not empty.
    pub(super) fn text(&mut self, name: &'static str) -> Option<&'n str> {
        let node = self.get(name)?;
        self.text_of(node, &self.path(name))
    }

    fn text_of(&self, node: &'n Node, at: &str) -> Option<&'n str> {
        match &node.tree {
            Tree::Scalar(Value::String(text)) if !text.is_empty() => return Some(text),
            Tree::Scalar(Value::String(_)) => self.complaints.add(node, at, "is empty"),
            _ => {
                let why = format!("is {}, not a text", node.kind());
                self.complaints.add(node, at, why);
            }
        }
        None
    }

    /// True or false; false when absent.
    pub(super) fn truth(&mut self, name: &'static str) -> bool {
        let Some(node) = self.get(name) else {
            return false;
        };
        if let Tree::Scalar(Value::Bool(truth)) = &node.tree {
            return *truth;
        }
        let why = format!("is {}, not true or false", node.kind());
        self.complaints.add(node, &self.path(name), why);
        false
    }

    /// A list with something in it.
    pub(super) fn list(&mut self, name: &'static str, most: usize) -> Option<&'n [Node]> {
        let node = self.get(name)?;
        let why = match &node.tree {
            Tree::List(items) if items.is_empty() => "is empty".to_owned(),
            Tree::List(items) if items.len() > most => {
                format!("has {} entries, more than {most}", items.len())
            }
            Tree::List(items) => return Some(items),
            _ => format!("is {}, not a list", node.kind()),
        };
        self.complaints.add(node, &self.path(name), why);
        None
    }

    /// A list of texts.
    pub(super) fn texts(&mut self, name: &'static str, most: usize) -> Option<Vec<&'n str>> {
        let items = self.list(name, most)?;
        let path = self.path(name);
        let text = |(i, item): (usize, &'n Node)| self.text_of(item, &format!("{path}[{i}]"));
        Some(items.iter().enumerate().filter_map(text).collect())
    }

    /// An object.
    pub(super) fn object(&mut self, name: &'static str) -> Option<Fields<'n>> {
        let node = self.get(name)?;
        Fields::of(node, self.path(name), self.complaints)
    }

    /// An object that is an entry of the list under a name.
    pub(super) fn element(&self, name: &str, index: usize, node: &'n Node) -> Option<Fields<'n>> {
        let at = format!("{}[{index}]", self.path(name));
        Fields::of(node, at, self.complaints)
    }

    /// Complains of what nobody asked for.
    pub(super) fn end(self) {
        for (name, node) in self.fields {
            if !self.asked.contains(&name.as_str()) {
                let path = self.path(&shown(name));
                let why = format!("is not known here; there are {}", self.asked.join(", "));
                self.complaints.add(node, &path, why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn documents_keep_their_places() {
        let text = "- name: a\n  value: {x: [1, 2.5, true, ~, y]}\n- {\"name\": \"b\"}\n";
        let node = Node::parse(text).unwrap();
        let value =
            json!([{"name": "a", "value": {"x": [1, 2.5, true, null, "y"]}}, {"name": "b"}]);
        assert_eq!(node.to_value(), value);
        let Tree::List(items) = &node.tree else {
            panic!("a list")
        };
        assert_eq!((items[0].line, items[1].line), (1, 3));
        let Tree::Map(fields) = &items[0].tree else {
            panic!("an object")
        };
        assert_eq!((fields[1].1.line, fields[1].1.column), (2, 10));
    }

    #[test]
    fn what_is_no_document_is_said_with_its_place() {
        for (text, line) in [
            ("- a\n- {b: [}", 2),
            ("a: 1\na: 2", 2),
            ("a: b: c", 1),
            (&"[".repeat(1000), 1),
            (&format!("- {}", "x".repeat(MOST_BYTES)), 0),
            ("a: .nan", 1),
            ("a: 1\n---\nb: 2", 2),
            (
                "a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]",
                0,
            ),
        ] {
            let short: String = text.chars().take(40).collect();
            let complaint = Node::parse(text).expect_err(&short);
            assert!(line == 0 || complaint.line == line, "{short}: {complaint}");
        }
    }

    #[test]
    fn what_nobody_asked_for_is_complained_of() {
        let node = Node::parse("name: 5\nlist: []\nmore: {a: 1}\nodd: 1\nnil: ~").unwrap();
        let complaints = Complaints::default();
        complaints.about("r");
        let mut fields = Fields::of(&node, String::new(), &complaints).unwrap();
        assert_eq!(fields.text("name"), None);
        assert_eq!(fields.text("nil"), None);
        assert!(fields.list("list", 3).is_none());
        let more = fields.object("more").unwrap();
        more.end();
        fields.end();
        let said: Vec<String> = complaints
            .into_list()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            said,
            [
                "line 1, column 7: rule r: name: is a number, not a text",
                "line 2, column 7: rule r: list: is empty",
                "line 3, column 11: rule r: more.a: is not known here; there are ",
                "line 4, column 6: rule r: odd: is not known here; there are name, nil, list, more",
            ]
        );
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in "[-{}\\[\\]:,&*a \n\"'!|>%@~#?]{0,60}") {
            let _ = Node::parse(&text);
        }
    }
}
