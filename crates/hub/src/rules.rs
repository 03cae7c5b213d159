//! Users' own filters, without a rebuild: rules that say which objects which components are not to see, or are to see otherwise.
//!
//! A document is a list of rules ([`read`]); a rule is a filter like those that come with the hub ([`Rule`], [`InForce`]), and comes
//! after them. Nothing here knows where documents come from: `source` does (the config map `yurt-hub-cfg` and a file of the node's).
//! What rules may say is in `docs/rules.md`.
//!
//! A rule that makes no sense is left out. One that fails on an object leaves that object as it is. Both are told and counted, and
//! neither ends the hub or shows anybody more than he may read.

mod document;
mod environment;
mod guard;
mod matching;
mod patch;
mod source;

pub use document::Complaint;
pub(crate) use matching::plural;
pub(crate) use source::follow;
pub use source::{Origin, Rules, read_file};

use crate::{
    filter::{Context, Filter, Inputs, Scope, Verdict, is_built_in},
    metrics::Metrics,
    settings::is_component,
};
use document::{Complaints, Fields, Node, Tree, shown};
use environment::Environment;
use matching::Match;
use patch::Patch;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32, Ordering},
    },
};
use yurt_wire::{Object, ObjectMeta};

/// Rules of one document.
const MOST_RULES: usize = 64;
/// Components that one rule may name.
const MOST_COMPONENTS: usize = 64;
/// Longest name of a rule.
const LONGEST_NAME: usize = 63;
/// Seconds between log lines about failures of one rule.
const QUIET: i64 = 60;

/// Objects on which a rule may run out of steps before it is put aside until it is written otherwise: the hub has more to do.
const MOST_EXHAUSTED: u32 = 100;

/// Agents that are the hub itself, which sees everything as it is.
const OWN: &str = "yurthub";
const MULTIPLEXER: &str = "multiplexer-proxy-";

/// A rule that makes sense.
#[derive(Clone, Debug)]
pub struct Rule {
    name: String,
    components: Option<BTreeSet<String>>,
    matching: Match,
    action: Action,
    /// As it was written.
    written: Value,
    /// What whoever wrote it should know.
    warnings: Vec<String>,
}

#[derive(Clone, Debug)]
enum Action {
    Drop,
    Patch(Patch),
}

/// Rules are the same when they are written the same.
impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

/// Why a rule did nothing to an object that it is for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Its expressions are too much work.
    #[error("{0} takes more steps than one object may")]
    Budget(String),
    /// Its condition has no value.
    #[error("match.expression: {0}")]
    Condition(String),
    /// The value for an operation cannot be had.
    #[error("{0}")]
    Value(String),
    /// Its patch does not fit the object.
    #[error("patch: {0}")]
    DoesNotApply(String),
}

impl Failure {
    fn of(error: yurt_cel::Error, at: &str) -> Self {
        match error {
            yurt_cel::Error::Budget => Self::Budget(at.to_owned()),
            yurt_cel::Error::Failed(why) => Self::Value(format!("{at}: {why}")),
        }
    }

    /// In metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Budget(_) => "budget",
            Self::Condition(_) => "condition",
            Self::Value(_) => "value",
            Self::DoesNotApply(_) => "patch",
        }
    }
}

/// What a document says.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Its rules, in order.
    pub entries: Vec<Entry>,
    /// What is wrong with those that make no sense.
    pub complaints: Vec<Complaint>,
}

/// A rule of a document.
#[derive(Clone, Debug)]
pub enum Entry {
    /// It makes sense.
    Rule(Box<Rule>),
    /// It does not; its name, where that much can be read.
    Broken(String),
}

/// Reads a list of rules, in YAML or JSON; an empty document has none. An error is about all of it.
pub fn read(text: &str) -> Result<Reading, Complaint> {
    if text.trim().is_empty() {
        return Ok(Reading::default());
    }
    let node = Node::parse(text)?;
    let about_all = |why: String| Complaint {
        line: node.line,
        column: node.column,
        rule: String::new(),
        at: String::new(),
        why,
    };
    let items = match &node.tree {
        Tree::Scalar(Value::Null) => &[][..],
        Tree::List(items) if items.len() > MOST_RULES => {
            return Err(about_all(format!(
                "{} rules are more than {MOST_RULES}",
                items.len()
            )));
        }
        Tree::List(items) => items,
        _ => return Err(about_all("is not a list of rules (- name: ...)".into())),
    };
    let complaints = Complaints::default();
    let mut reading = Reading::default();
    let mut names = BTreeSet::new();
    for item in items {
        complaints.about("");
        let before = complaints.count();
        let Some(mut fields) = Fields::of(item, String::new(), &complaints) else {
            continue;
        };
        let name = name(&mut fields, &names, &complaints);
        let rule = Rule::read(name.unwrap_or_default(), item, fields);
        names.extend(name.map(str::to_owned));
        match rule {
            Some(rule) if complaints.count() == before => {
                reading.entries.push(Entry::Rule(Box::new(rule)));
            }
            _ => {
                let name = name.unwrap_or_default();
                reading.entries.push(Entry::Broken(name.to_owned()));
            }
        }
    }
    reading.complaints = complaints.into_list();
    Ok(reading)
}

fn name<'n>(
    fields: &mut Fields<'n>,
    others: &BTreeSet<String>,
    complaints: &Complaints,
) -> Option<&'n str> {
    if fields.any("name").is_none() {
        fields.complain("name", "is missing");
        return None;
    }
    let name = fields.text("name")?;
    complaints.about(name);
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    let is_label = bytes.len() <= LONGEST_NAME
        && bytes.iter().all(|byte| is_inner(*byte) || *byte == b'-')
        && bytes.first().is_some_and(|byte| is_inner(*byte))
        && bytes.last().is_some_and(|byte| is_inner(*byte));
    let why = if !is_label {
        format!("is no DNS label (at most {LONGEST_NAME} of a-z, 0-9 and -)")
    } else if is_built_in(name) {
        "is the name of a filter that comes with the hub".into()
    } else if others.contains(name) {
        "is the name of a rule before it".into()
    } else {
        return Some(name);
    };
    fields.complain("name", why);
    None
}

impl Rule {
    fn read(name: &str, node: &Node, mut fields: Fields<'_>) -> Option<Self> {
        let components = components(&mut fields);
        let matching = match fields.object("match") {
            Some(mut inner) => {
                let matching = Match::read(&mut inner);
                inner.end();
                Some(matching)
            }
            None => {
                if fields.any("match").is_none() {
                    fields.complain("match", "is missing");
                }
                None
            }
        };
        let (drops, patches) = (fields.truth("drop"), fields.get("patch").is_some());
        let patch = Patch::read(&mut fields);
        let action = match (drops, patches) {
            (true, false) => Some(Action::Drop),
            (false, true) => Some(Action::Patch(patch)),
            (true, true) => {
                fields.complain("patch", "excludes drop: true");
                None
            }
            (false, false) => {
                fields.complain_of_all("does nothing: drop: true or a patch is missing");
                None
            }
        };
        let force = fields.truth("force");
        let (matching, action) = match (matching, action) {
            (Some(matching), Some(action)) => (matching, action),
            _ => {
                fields.end();
                return None;
            }
        };
        let vital = guard::needs_force(components.as_ref(), &matching, &action);
        if let Some(why) = vital.filter(|_| !force) {
            fields.complain("match", why);
        }
        fields.end();
        let mut rule = Self {
            name: name.to_owned(),
            components,
            matching,
            action,
            written: node.to_value(),
            warnings: Vec::new(),
        };
        rule.warn();
        Some(rule)
    }

    fn warn(&mut self) {
        if matches!(self.action, Action::Drop) && self.matching.is_sweeping() {
            let whom = match &self.components {
                Some(names) => names.iter().cloned().collect::<Vec<_>>().join(", "),
                None => "every component".into(),
            };
            self.warnings.push(format!(
                "hides every object that it is about from {whom}: its match has no namespaces, names, selectors or expression"
            ));
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What whoever wrote it should know.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Which requests it is for.
    pub fn scope(&self) -> Scope {
        self.matching.scope(self.components.clone())
    }

    /// What else than the object its verdict depends on.
    pub fn inputs(&self) -> Inputs {
        let condition = self.matching.condition.as_ref();
        let of_condition = condition.map_or(Inputs::NONE, environment::inputs);
        match &self.action {
            Action::Drop => of_condition,
            Action::Patch(patch) => of_condition | patch.inputs(),
        }
    }

    /// Whether it is for an object, as far as that can be told without decoding it.
    pub fn concerns(&self, object: &Object, meta: &ObjectMeta) -> bool {
        self.matching.takes(object, meta)
    }

    /// Does to an object that it [`concerns`](Self::concerns) what it says; the object is unchanged when that fails.
    pub fn apply(&self, object: &mut Value, context: &Context) -> Result<Verdict, Failure> {
        let operations = {
            let mut environment = Environment::new(object, context);
            if let Some(condition) = &self.matching.condition {
                let holds = environment.holds(condition).map_err(|error| match error {
                    yurt_cel::Error::Budget => Failure::Budget("match.expression".into()),
                    yurt_cel::Error::Failed(why) => Failure::Condition(why),
                })?;
                if !holds {
                    return Ok(Verdict::Kept);
                }
            }
            match &self.action {
                Action::Drop => return Ok(Verdict::Dropped),
                Action::Patch(patch) => patch.operations(object, &mut environment)?,
            }
        };
        patch::apply(object, operations)
    }
}

fn components(fields: &mut Fields<'_>) -> Option<BTreeSet<String>> {
    let names = fields.texts("components", MOST_COMPONENTS)?;
    let mut components = BTreeSet::new();
    for name in names {
        let lower = name.to_ascii_lowercase();
        let why = if !is_component(name) {
            "is no component: what a User-Agent has before the first slash"
        } else if lower == OWN || lower.starts_with(MULTIPLEXER) {
            "is the hub itself, which sees everything as it is"
        } else {
            components.insert(lower);
            continue;
        };
        fields.complain("components", format!("{:?} {why}", shown(name)));
    }
    Some(components)
}

/// Said of a rule that is put aside.
const ASIDE: &str = "took more steps than it may on too many objects, and is put aside until it is written otherwise";

/// A rule as a filter of the hub: its failures are counted and told.
#[derive(Debug)]
pub struct InForce {
    rule: Rule,
    metrics: Metrics,
    /// When a failure was last told, in seconds since the epoch.
    told: AtomicI64,
    /// Objects on which it ran out of steps.
    exhausted: AtomicU32,
}

impl InForce {
    /// A rule that counts its failures.
    pub fn new(rule: Rule, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            rule,
            metrics,
            told: AtomicI64::new(i64::MIN),
            exhausted: AtomicU32::new(0),
        })
    }

    /// The rule.
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// Whether it took too much work too often to be asked any more.
    pub fn is_aside(&self) -> bool {
        self.exhausted.load(Ordering::Relaxed) >= MOST_EXHAUSTED
    }

    fn failed(&self, failure: &Failure, object: &Value) {
        let name = self.rule.name();
        if matches!(failure, Failure::Budget(_))
            && self.exhausted.fetch_add(1, Ordering::Relaxed) + 1 == MOST_EXHAUSTED
        {
            tracing::error!(rule = name, "{ASIDE}");
        }
        self.metrics.rules().failed(name, failure.reason());
        let now = jiff::Timestamp::now().as_second();
        let before = self.told.load(Ordering::Relaxed);
        let is_due = now.saturating_sub(before).saturating_abs() >= QUIET;
        let first = || {
            let told = &self.told;
            told.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        };
        if is_due && first() {
            let text = |at: &str| {
                object
                    .pointer(at)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
            };
            tracing::warn!(
                rule = name,
                kind = text("/kind"),
                namespace = text("/metadata/namespace"),
                name = text("/metadata/name"),
                %failure,
                "a rule failed on an object, which is shown as if there were no such rule"
            );
        }
    }
}

impl Filter for InForce {
    fn name(&self) -> &str {
        self.rule.name()
    }

    fn scope(&self) -> Scope {
        self.rule.scope()
    }

    fn inputs(&self) -> Inputs {
        self.rule.inputs()
    }

    fn concerns(&self, object: &Object, meta: &ObjectMeta, _context: &Context) -> bool {
        !self.is_aside() && self.rule.concerns(object, meta)
    }

    fn failure(&self, object: &Value, context: &Context) -> Option<String> {
        let applied = self.rule.apply(&mut object.clone(), context);
        applied.err().map(|failure| failure.to_string())
    }

    fn apply(&self, object: &mut Value, context: &Context) -> Verdict {
        match self.rule.apply(object, context) {
            Ok(verdict) => verdict,
            Err(failure) => {
                self.failed(&failure, object);
                Verdict::Kept
            }
        }
    }
}

#[cfg(test)]
mod tests;
