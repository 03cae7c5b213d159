//! How endpoints are spread over slices with as few and as small writes as can be. Pure.
//!
//! As in Kubernetes: endpoints stay in the slice they are in; slices that have to be written anyway are filled up first; what is
//! left goes into the one slice that it fills best, or into new ones. Slices are never re-balanced.

use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The slices of one parent as they all look.
pub(super) struct Template {
    pub(super) namespace: String,
    /// The name of the parent, with which names of slices begin.
    pub(super) parent: String,
    /// The owner reference.
    pub(super) owner: Value,
    pub(super) labels: Map<String, Value>,
    /// Annotations beside that of the trigger time; `None` leaves them as they are.
    pub(super) annotations: Option<Map<String, Value>>,
    /// When the change came about.
    pub(super) trigger: Option<String>,
    /// The most endpoints in a slice.
    pub(super) most: usize,
    /// Whether new slices may be made: not when the parent is going.
    pub(super) creates: bool,
    /// Whether there is an empty slice when there are no endpoints.
    pub(super) placeholder: bool,
}

/// Endpoints with the same ports.
pub(super) struct Group {
    pub(super) ports: Vec<Value>,
    pub(super) endpoints: Vec<Value>,
}

/// Endpoints by address type and ports.
#[derive(Default)]
pub(super) struct Wanted(BTreeMap<&'static str, BTreeMap<Vec<String>, Group>>);

impl Wanted {
    /// Endpoints of these types, none yet; a type without endpoints has its placeholder.
    pub(super) fn of_types(types: impl IntoIterator<Item = &'static str>) -> Self {
        let groups = |address_type| (address_type, BTreeMap::new());
        Self(types.into_iter().map(groups).collect())
    }

    pub(super) fn add(&mut self, address_type: &'static str, ports: Vec<Value>, endpoint: Value) {
        let groups = self.0.entry(address_type).or_default();
        let group = groups.entry(ports_key(&ports)).or_insert_with(|| Group {
            ports,
            endpoints: Vec::new(),
        });
        group.endpoints.push(endpoint);
    }

    /// What is to be written so that slices show them, and nothing else.
    pub(super) fn changes(self, template: &Template, existing: &[Arc<Value>]) -> Changes {
        let mut changes = Changes {
            delete: of_other_types(existing, &self.0.keys().copied().collect()),
            ..Changes::default()
        };
        for (address_type, groups) in self.0 {
            let same = existing.iter().filter(|s| s["addressType"] == address_type);
            let same: Vec<Arc<Value>> = same.cloned().collect();
            let groups = groups.into_values().collect();
            let mut more = plan(template, address_type, &same, groups);
            changes.create.append(&mut more.create);
            changes.update.append(&mut more.update);
            changes.delete.append(&mut more.delete);
        }
        changes
    }
}

/// What is to be written.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Changes {
    pub(super) create: Vec<Value>,
    pub(super) update: Vec<Value>,
    pub(super) delete: Vec<Value>,
}

/// Ports regardless of their order.
fn ports_key(ports: &[Value]) -> Vec<String> {
    let mut key: Vec<String> = ports
        .iter()
        .map(|port| {
            let text = |field: &str| port[field].as_str().unwrap_or_default().to_owned();
            format!(
                "{}|{}|{}|{}",
                text("name"),
                port["port"],
                text("protocol"),
                text("appProtocol")
            )
        })
        .collect();
    key.sort();
    key
}

fn list<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object[field].as_array().map_or(&[], Vec::as_slice)
}

/// What makes an endpoint the same endpoint before and after a change.
fn identity(endpoint: &Value) -> String {
    let mut addresses: Vec<&str> = list(endpoint, "addresses")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    addresses.sort_unstable();
    let target = &endpoint["targetRef"];
    json!([
        addresses,
        endpoint["hostname"],
        target["namespace"],
        target["name"]
    ])
    .to_string()
}

impl Template {
    fn slice(&self, address_type: &str, ports: &[Value]) -> Value {
        let mut prefix = format!("{}-", self.parent);
        // A parent with the longest of names gets no dash.
        prefix.truncate(253);
        let mut slice = json!({"metadata": {"namespace": self.namespace, "generateName": prefix, "labels": self.labels,
                "ownerReferences": [self.owner]},
            "addressType": address_type, "endpoints": [], "ports": ports});
        if let Some(annotations) = self.annotations.as_ref().filter(|a| !a.is_empty()) {
            slice["metadata"]["annotations"] = annotations.clone().into();
        }
        slice
    }

    fn is_labelled(&self, slice: &Value) -> bool {
        let meta = &slice["metadata"];
        let none = Map::new();
        let annotations = super::without(meta["annotations"].as_object(), &[super::TRIGGER_TIME]);
        meta["labels"].as_object().unwrap_or(&none) == &self.labels
            && self
                .annotations
                .as_ref()
                .is_none_or(|wanted| *wanted == annotations)
    }

    fn label(&self, slice: &mut Value) {
        slice["metadata"]["labels"] = self.labels.clone().into();
        if let Some(annotations) = &self.annotations {
            slice["metadata"]["annotations"] = annotations.clone().into();
        }
    }

    fn stamp(&self, slice: &mut Value) {
        let meta = &mut slice["metadata"];
        if let Some(time) = &self.trigger {
            if !meta["annotations"].is_object() {
                meta["annotations"] = json!({});
            }
            meta["annotations"][super::TRIGGER_TIME] = time.as_str().into();
        } else if let Some(annotations) = meta["annotations"].as_object_mut() {
            annotations.remove(super::TRIGGER_TIME);
        }
    }

    fn owns(&self, slice: &Value) -> bool {
        let owners = slice["metadata"]["ownerReferences"]
            .as_array()
            .into_iter()
            .flatten();
        owners
            .into_iter()
            .any(|owner| owner["uid"] == self.owner["uid"])
    }
}

/// What is to be done so that the `existing` slices of one address type show the `groups`.
pub(super) fn plan(
    template: &Template,
    address_type: &str,
    existing: &[Arc<Value>],
    groups: Vec<Group>,
) -> Changes {
    let mut changes = Changes::default();
    let mut by_ports: BTreeMap<Vec<String>, Vec<&Value>> = BTreeMap::new();
    for slice in existing {
        if template.owns(slice) {
            by_ports
                .entry(ports_key(list(slice, "ports")))
                .or_default()
                .push(slice);
        } else {
            changes.delete.push(Value::clone(slice));
        }
    }
    for group in groups {
        let slices = by_ports
            .remove(&ports_key(&group.ports))
            .unwrap_or_default();
        fit(template, address_type, &slices, group, &mut changes);
    }
    changes
        .delete
        .extend(by_ports.into_values().flatten().cloned());
    if template.placeholder {
        keep_placeholder(template, address_type, existing, &mut changes);
    }
    reuse(template, &mut changes);
    if !template.creates {
        changes.create.clear();
    }
    for slice in changes.create.iter_mut().chain(&mut changes.update) {
        template.stamp(slice);
    }
    changes
}

/// Fits the endpoints of one group into its slices.
fn fit(
    template: &Template,
    address_type: &str,
    existing: &[&Value],
    group: Group,
    changes: &mut Changes,
) {
    let mut desired: BTreeMap<String, Value> = group
        .endpoints
        .into_iter()
        .map(|endpoint| (identity(&endpoint), endpoint))
        .collect();
    let mut unchanged: Vec<Value> = Vec::new();
    let mut updated: Vec<Value> = Vec::new();
    for slice in existing {
        let before = list(slice, "endpoints");
        let kept: Vec<Value> = before
            .iter()
            .filter_map(|endpoint| desired.remove(&identity(endpoint)))
            .collect();
        let same = kept.as_slice() == before;
        if kept.is_empty() && !before.is_empty() {
            changes.delete.push(Value::clone(slice));
        } else if same && template.is_labelled(slice) {
            unchanged.push(Value::clone(slice));
        } else {
            let mut slice = Value::clone(slice);
            slice["endpoints"] = kept.into();
            template.label(&mut slice);
            updated.push(slice);
        }
    }
    let mut desired: Vec<Value> = desired.into_values().collect();
    let room = |slice: &Value| template.most.saturating_sub(list(slice, "endpoints").len());
    let fill = |slice: &mut Value, desired: &mut Vec<Value>| {
        let count = room(slice).min(desired.len());
        let more = desired.drain(..count);
        match slice["endpoints"].as_array_mut() {
            Some(endpoints) => endpoints.extend(more),
            None => slice["endpoints"] = more.collect(),
        }
    };
    updated.sort_by_key(|slice| room(slice));
    for slice in &mut updated {
        fill(slice, &mut desired);
    }
    while !desired.is_empty() {
        // Of the slices that take all that is left, the one that is fullest afterwards.
        let fits = unchanged
            .iter()
            .enumerate()
            .filter(|(_, slice)| room(slice) >= desired.len());
        let tightest = fits.min_by_key(|(_, slice)| room(slice)).map(|(at, _)| at);
        if let Some(at) = tightest {
            let mut slice = unchanged.remove(at);
            fill(&mut slice, &mut desired);
            updated.push(slice);
        } else {
            let mut slice = template.slice(address_type, &group.ports);
            fill(&mut slice, &mut desired);
            changes.create.push(slice);
        }
    }
    changes.update.append(&mut updated);
}

/// A parent without endpoints has one empty slice.
fn keep_placeholder(
    template: &Template,
    address_type: &str,
    existing: &[Arc<Value>],
    changes: &mut Changes,
) {
    if existing.len() != changes.delete.len() || !changes.create.is_empty() {
        return;
    }
    let is_placeholder = |slice: &Value| {
        template.owns(slice)
            && list(slice, "endpoints").is_empty()
            && list(slice, "ports").is_empty()
            && template.is_labelled(slice)
    };
    match changes.delete.iter().position(is_placeholder) {
        Some(at) => {
            changes.delete.remove(at);
        }
        None => changes.create.push(template.slice(address_type, &[])),
    }
}

/// Slices that would go are given what new ones would show.
fn reuse(template: &Template, changes: &mut Changes) {
    let (mut usable, others): (Vec<Value>, Vec<Value>) = std::mem::take(&mut changes.delete)
        .into_iter()
        .partition(|slice| template.owns(slice));
    let mut create = std::mem::take(&mut changes.create).into_iter();
    while !usable.is_empty() {
        let Some(new) = create.next() else {
            break;
        };
        let mut slice = usable.remove(0);
        slice["endpoints"] = new["endpoints"].clone();
        slice["ports"] = new["ports"].clone();
        template.label(&mut slice);
        changes.update.push(slice);
    }
    changes.create = create.collect();
    changes.delete = others;
    changes.delete.append(&mut usable);
}

/// The slices of `existing` of an address type that is not shown any more.
fn of_other_types(existing: &[Arc<Value>], types: &BTreeSet<&str>) -> Vec<Value> {
    let other = |slice: &&Arc<Value>| {
        !slice["addressType"]
            .as_str()
            .is_some_and(|t| types.contains(t))
    };
    existing
        .iter()
        .filter(other)
        .map(|slice| Value::clone(slice))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn template(most: usize) -> Template {
        let labels = json!({"app": "web"})
            .as_object()
            .cloned()
            .unwrap_or_default();
        Template {
            namespace: "default".into(),
            parent: "web".into(),
            owner: json!({"uid": "service", "kind": "Service", "name": "web"}),
            labels,
            annotations: None,
            trigger: Some("2026-01-01T00:00:00Z".into()),
            most,
            creates: true,
            placeholder: true,
        }
    }

    fn endpoint(n: usize, ready: bool) -> Value {
        json!({"addresses": [format!("10.0.{}.{}", n / 250, n % 250)], "conditions": {"ready": ready}})
    }

    fn group(endpoints: impl IntoIterator<Item = usize>) -> Vec<Group> {
        vec![Group {
            ports: vec![json!({"name": "", "port": 80, "protocol": "TCP"})],
            endpoints: endpoints.into_iter().map(|n| endpoint(n, true)).collect(),
        }]
    }

    /// Writes the changes as an API server would.
    fn apply(existing: &[Arc<Value>], changes: Changes, names: &mut usize) -> Vec<Arc<Value>> {
        let mut slices: BTreeMap<String, Value> = existing
            .iter()
            .map(|s| {
                (
                    s["metadata"]["name"]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned(),
                    Value::clone(s),
                )
            })
            .collect();
        for slice in changes.delete {
            slices.remove(slice["metadata"]["name"].as_str().unwrap_or_default());
        }
        for slice in changes.update {
            slices.insert(
                slice["metadata"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
                slice,
            );
        }
        for mut slice in changes.create {
            *names += 1;
            let name = format!("web-{names:04}");
            slice["metadata"]["name"] = name.clone().into();
            slices.insert(name, slice);
        }
        slices.into_values().map(Arc::new).collect()
    }

    fn sizes(slices: &[Arc<Value>]) -> Vec<usize> {
        slices
            .iter()
            .map(|slice| list(slice, "endpoints").len())
            .collect()
    }

    #[test]
    fn slices_fill_up_and_endpoints_stay_where_they_are() {
        let (template, mut names) = (template(100), 0);
        let changes = plan(&template, "IPv4", &[], group(0..250));
        assert_eq!(
            (
                changes.create.len(),
                changes.update.len(),
                changes.delete.len()
            ),
            (3, 0, 0)
        );
        let slices = apply(&[], changes, &mut names);
        assert_eq!(sizes(&slices), [100, 100, 50]);
        assert_eq!(
            plan(&template, "IPv4", &slices, group(0..250)),
            Changes::default(),
            "nothing changed"
        );
        let changes = plan(&template, "IPv4", &slices, group(0..251));
        assert_eq!(
            (
                changes.create.len(),
                changes.update.len(),
                changes.delete.len()
            ),
            (0, 1, 0)
        );
        let slices = apply(&slices, changes, &mut names);
        assert_eq!(sizes(&slices), [100, 100, 51]);
        let first: Vec<usize> = (0..251).filter(|n| *n != 3).chain([300]).collect();
        let changes = plan(&template, "IPv4", &slices, group(first));
        assert_eq!(
            (changes.create.len(), changes.update.len()),
            (0, 1),
            "the gap is filled in the slice that is written anyway"
        );
    }

    #[test]
    fn a_changed_endpoint_writes_its_slice_only() {
        let (template, mut names) = (template(2), 0);
        let slices = apply(&[], plan(&template, "IPv4", &[], group(0..4)), &mut names);
        let mut changed = group(0..4);
        changed[0].endpoints[3] = endpoint(3, false);
        let changes = plan(&template, "IPv4", &slices, changed);
        assert_eq!(
            (
                changes.create.len(),
                changes.update.len(),
                changes.delete.len()
            ),
            (0, 1, 0)
        );
        assert_eq!(
            changes.update[0]["metadata"]["name"],
            slices[1]["metadata"]["name"]
        );
        assert_eq!(
            changes.update[0]["metadata"]["annotations"][super::super::TRIGGER_TIME],
            "2026-01-01T00:00:00Z"
        );
    }

    #[test]
    fn without_endpoints_one_empty_slice_stays() {
        let (template, mut names) = (template(100), 0);
        let slices = apply(&[], plan(&template, "IPv4", &[], Vec::new()), &mut names);
        assert_eq!(sizes(&slices), [0]);
        assert_eq!(
            plan(&template, "IPv4", &slices, Vec::new()),
            Changes::default()
        );
        let changes = plan(&template, "IPv4", &slices, group(0..1));
        assert_eq!(
            (changes.create.len(), changes.update.len()),
            (0, 1),
            "the empty one is used"
        );
        let slices = apply(&slices, changes, &mut names);
        let changes = plan(&template, "IPv4", &slices, Vec::new());
        let slices = apply(&slices, changes, &mut names);
        assert_eq!(sizes(&slices), [0]);
        assert!(list(&slices[0], "ports").is_empty());
    }

    #[test]
    fn slices_of_an_earlier_service_of_the_name_go() {
        let mut foreign = template(100).slice("IPv4", &[]);
        foreign["metadata"]["name"] = "web-old".into();
        foreign["metadata"]["ownerReferences"][0]["uid"] = "earlier".into();
        let changes = plan(&template(100), "IPv4", &[Arc::new(foreign)], group(0..1));
        assert_eq!(
            (
                changes.create.len(),
                changes.update.len(),
                changes.delete.len()
            ),
            (1, 0, 1)
        );
    }

    #[test]
    fn labels_follow_the_parent() {
        let mut names = 0;
        let slices = apply(
            &[],
            plan(&template(100), "IPv4", &[], group(0..1)),
            &mut names,
        );
        let mut other = template(100);
        other.labels.insert("tier".into(), "front".into());
        let changes = plan(&other, "IPv4", &slices, group(0..1));
        assert_eq!(changes.update[0]["metadata"]["labels"]["tier"], "front");
    }

    proptest! {
        #[test]
        fn whatever_happens_every_endpoint_is_shown_once_and_slices_are_bounded(
            steps in proptest::collection::vec(proptest::collection::btree_set(0_usize..40, 0..30), 1..8), most in 1_usize..12,
        ) {
            let (template, mut names) = (template(most), 0);
            let mut slices = Vec::new();
            for wanted in steps {
                let groups = if wanted.is_empty() { Vec::new() } else { group(wanted.iter().copied()) };
                let changes = plan(&template, "IPv4", &slices, groups);
                slices = apply(&slices, changes, &mut names);
                let mut shown: Vec<String> = slices.iter().flat_map(|s| list(s, "endpoints")).map(identity).collect();
                shown.sort();
                let mut expected: Vec<String> = wanted.iter().map(|n| identity(&endpoint(*n, true))).collect();
                expected.sort();
                prop_assert_eq!(shown, expected);
                prop_assert!(sizes(&slices).iter().all(|size| *size <= most));
                prop_assert!(!slices.is_empty());
                let groups = if wanted.is_empty() { Vec::new() } else { group(wanted) };
                prop_assert_eq!(plan(&template, "IPv4", &slices, groups), Changes::default());
            }
        }
    }
}
