//! Nodes, namespaces, configuration, events and access.

use super::{
    AGE, BuiltIn, CREATED_AT, Fields, NAME, Spec, age::human_duration, boolean, built_in,
    fields::or_none, integer, text,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const RBAC: &str = "rbac.authorization.k8s.io";

pub(super) const PRINTERS: &[BuiltIn] = &[
    built_in(
        "",
        "Node",
        &[
            NAME,
            text("Status", "Whether the node is ready and takes pods."),
            text("Roles", "Roles of the node."),
            AGE,
            text("Version", "Version of the kubelet."),
            text("Internal-IP", "Address inside the cluster.").wide(),
            text("External-IP", "Address outside the cluster.").wide(),
            text("OS-Image", "Operating system.").wide(),
            text("Kernel-Version", "Version of the kernel.").wide(),
            text("Container-Runtime", "Container runtime and its version.").wide(),
        ],
        node,
    ),
    built_in(
        "",
        "Namespace",
        &[NAME, text("Status", "Phase of the namespace."), AGE],
        |object, now| {
            vec![
                object.name(),
                json!(object.text("status.phase")),
                object.age(now),
            ]
        },
    ),
    built_in(
        "",
        "ConfigMap",
        &[NAME, text("Data", "Number of entries."), AGE],
        |object, now| {
            let entries = object.count("data") + object.count("binaryData");
            vec![object.name(), json!(entries), object.age(now)]
        },
    ),
    built_in(
        "",
        "Secret",
        &[
            NAME,
            text("Type", "What the secret is for."),
            text("Data", "Number of entries."),
            AGE,
        ],
        |object, now| {
            vec![
                object.name(),
                json!(object.text("type")),
                json!(object.count("data")),
                object.age(now),
            ]
        },
    ),
    built_in(
        "",
        "ServiceAccount",
        &[NAME, text("Secrets", "Number of secrets."), AGE],
        |object, now| {
            vec![
                object.name(),
                json!(object.count("secrets")),
                object.age(now),
            ]
        },
    ),
    built_in("", "Event", EVENT, event),
    built_in("events.k8s.io", "Event", EVENT, event),
    built_in(
        "",
        "ResourceQuota",
        &[
            NAME,
            text("Request", "Resources requested, of those allowed."),
            text("Limit", "Limits given, of those allowed."),
            AGE,
        ],
        resource_quota,
    ),
    built_in("", "LimitRange", &[NAME, CREATED_AT], created),
    built_in(
        "",
        "ComponentStatus",
        &[
            NAME,
            text("Status", "Whether the component is healthy."),
            text("Message", "What the component says."),
            text("Error", "What is wrong."),
        ],
        component_status,
    ),
    built_in(
        "coordination.k8s.io",
        "Lease",
        &[NAME, text("Holder", "Who holds the lease."), AGE],
        |object, now| {
            vec![
                object.name(),
                json!(object.text("spec.holderIdentity")),
                object.age(now),
            ]
        },
    ),
    built_in(
        "coordination.k8s.io",
        "LeaseCandidate",
        &[
            NAME,
            text("LeaseName", "The lease it is a candidate for."),
            text("BinaryVersion", "Version of the candidate."),
            text("EmulationVersion", "Version that the candidate behaves as."),
            AGE,
        ],
        |object, now| {
            vec![
                object.name(),
                json!(object.text("spec.leaseName")),
                json!(object.text("spec.binaryVersion")),
                json!(object.text("spec.emulationVersion")),
                object.age(now),
            ]
        },
    ),
    built_in(
        "certificates.k8s.io",
        "CertificateSigningRequest",
        &[
            NAME,
            AGE,
            text("SignerName", "Who is asked to sign."),
            text("Requestor", "Who asks."),
            text("RequestedDuration", "For how long."),
            text("Condition", "What became of the request."),
        ],
        certificate_signing_request,
    ),
    built_in(
        "certificates.k8s.io",
        "ClusterTrustBundle",
        &[NAME, text("SignerName", "The signer that is trusted.")],
        |object, _now| {
            vec![
                object.name(),
                json!(object.text_or("spec.signerName", "<none>")),
            ]
        },
    ),
    built_in(RBAC, "Role", &[NAME, CREATED_AT], created),
    built_in(RBAC, "ClusterRole", &[NAME, CREATED_AT], created),
    built_in(RBAC, "RoleBinding", BINDING, role_binding),
    built_in(RBAC, "ClusterRoleBinding", BINDING, role_binding),
    built_in(
        "scheduling.k8s.io",
        "PriorityClass",
        &[
            NAME,
            integer("Value", "The priority."),
            boolean("Global-Default", "Whether pods without a class get it."),
            AGE,
            text("PreemptionPolicy", "Whether other pods make room."),
        ],
        |object, now| {
            vec![
                object.name(),
                json!(object.int("value")),
                json!(object.bool_or("globalDefault", false)),
                object.age(now),
                json!(object.text("preemptionPolicy")),
            ]
        },
    ),
    built_in(
        "node.k8s.io",
        "RuntimeClass",
        &[NAME, text("Handler", "The runtime's name for it."), AGE],
        |object, now| {
            vec![
                object.name(),
                json!(object.text("handler")),
                object.age(now),
            ]
        },
    ),
    built_in(
        "resource.k8s.io",
        "ResourceClaim",
        &[NAME, text("State", "What became of the claim."), AGE],
        resource_claim,
    ),
    built_in(
        "resource.k8s.io",
        "ResourceSlice",
        &[
            NAME,
            text("Node", "The node that has the devices."),
            text("Driver", "The driver of the devices."),
            text("Pool", "The pool of the devices."),
            AGE,
        ],
        |object, now| {
            vec![
                object.name(),
                json!(object.text("spec.nodeName")),
                json!(object.text("spec.driver")),
                json!(object.text("spec.pool.name")),
                object.age(now),
            ]
        },
    ),
];

const EVENT: &[Spec] = &[
    text("Last Seen", "Time since it happened last."),
    text("Type", "Normal or Warning."),
    text("Reason", "What happened, in one word."),
    text("Object", "What it happened to."),
    text("Subobject", "Which part of the object.").wide(),
    text("Source", "Who reports it.").wide(),
    text("Message", "What happened."),
    text("First Seen", "Time since it happened first.").wide(),
    text("Count", "How often it happened.").wide(),
    text("Name", "Name of the event.").name_format().wide(),
];

const BINDING: &[Spec] = &[
    NAME,
    text("Role", "The role that is granted."),
    AGE,
    text("Users", "Users that have the role.").wide(),
    text("Groups", "Groups that have the role.").wide(),
    text("ServiceAccounts", "Service accounts that have the role.").wide(),
];

fn created(object: Fields<'_>, _now: i64) -> Vec<Value> {
    vec![object.name(), object.created_at()]
}

fn node(object: Fields<'_>, now: i64) -> Vec<Value> {
    let ready = match object.condition("Ready") {
        Some(condition) if condition.is("status", "True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let status = match object.bool_or("spec.unschedulable", false) {
        true => format!("{ready},SchedulingDisabled"),
        false => ready.to_owned(),
    };
    let roles: BTreeSet<String> = object
        .entries("metadata.labels")
        .filter_map(|(key, value)| match key {
            "kubernetes.io/role" => Some(value.as_text()),
            _ => key
                .strip_prefix("node-role.kubernetes.io/")
                .map(str::to_owned),
        })
        .filter(|role| !role.is_empty())
        .collect();
    let roles: Vec<String> = roles.into_iter().collect();
    let address = |kind: &str| {
        let found = object
            .list("status.addresses")
            .find(|address| address.is("type", kind));
        json!(found.map_or("<none>".to_owned(), |address| address.text("address")))
    };
    let info = |field: &str| json!(object.at("status.nodeInfo").text_or(field, "<unknown>"));
    vec![
        object.name(),
        json!(status),
        json!(or_none(roles.join(","))),
        object.age(now),
        json!(object.text("status.nodeInfo.kubeletVersion")),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

/// An event of either API group: events.k8s.io has other names for the same fields.
fn event(object: Fields<'_>, now: i64) -> Vec<Value> {
    let either = |first: &str, second: &str| match object.exists(first) {
        true => object.at(first),
        false => object.at(second),
    };
    let since = |time: Fields<'_>| super::human_since(&time.as_text(), now);
    let first = either("firstTimestamp", "deprecatedFirstTimestamp");
    let first_seen = match first.as_text().is_empty() {
        true => object.since("eventTime", now),
        false => since(first),
    };
    let last = either("lastTimestamp", "deprecatedLastTimestamp");
    let mut last_seen = match last.as_text().is_empty() {
        true => first_seen.clone(),
        false => since(last),
    };
    let mut count = match object.exists("count") {
        true => object.int("count"),
        false => object.int("deprecatedCount"),
    };
    if object.exists("series") {
        last_seen = object.since("series.lastObservedTime", now);
        count = object.int("series.count");
    } else if count == 0 {
        count = 1;
    }
    let about = either("involvedObject", "regarding");
    let kind = about.text("kind").to_lowercase();
    let target = match about.text("name") {
        name if name.is_empty() => kind,
        name => format!("{kind}/{name}"),
    };
    let source = either("source", "deprecatedSource");
    let reporter = either("reportingComponent", "reportingController").as_text();
    let component = source.text_or("component", &reporter);
    let instance = source.text_or("host", &object.text("reportingInstance"));
    let source = match instance.is_empty() {
        true => component,
        false => format!("{component}, {instance}"),
    };
    vec![
        json!(last_seen),
        json!(object.text("type")),
        json!(object.text("reason")),
        json!(target),
        json!(about.text("fieldPath")),
        json!(source),
        json!(either("message", "note").as_text().trim()),
        json!(first_seen),
        json!(count),
        object.name(),
    ]
}

fn resource_quota(object: Fields<'_>, now: i64) -> Vec<Value> {
    let used = object.at("status.used");
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in object.entries("status.hard") {
        let used = match used.field(resource).as_text() {
            text if text.is_empty() => "0".to_owned(),
            text => text,
        };
        let shown = format!("{resource}: {used}/{}", hard.as_text());
        match resource.starts_with("limits.") {
            true => limits.push(shown),
            false => requests.push(shown),
        }
    }
    vec![
        object.name(),
        json!(requests.join(", ")),
        json!(limits.join(", ")),
        object.age(now),
    ]
}

fn component_status(object: Fields<'_>, _now: i64) -> Vec<Value> {
    let healthy = object
        .list("conditions")
        .find(|condition| condition.is("type", "Healthy"));
    let (status, message, error) = match healthy {
        None => ("Unknown", String::new(), String::new()),
        Some(condition) => (
            match condition.is("status", "True") {
                true => "Healthy",
                false => "Unhealthy",
            },
            condition.text("message"),
            condition.text("error"),
        ),
    };
    vec![object.name(), json!(status), json!(message), json!(error)]
}

fn certificate_signing_request(object: Fields<'_>, now: i64) -> Vec<Value> {
    let has = |kind: &str| object.condition(kind).is_some();
    let mut condition = if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if has("Failed") {
        condition.push_str(",Failed");
    }
    if !object.text("status.certificate").is_empty() {
        condition.push_str(",Issued");
    }
    let duration = match object.exists("spec.expirationSeconds") {
        true => human_duration(object.int("spec.expirationSeconds")),
        false => "<none>".to_owned(),
    };
    vec![
        object.name(),
        object.age(now),
        json!(object.text_or("spec.signerName", "<none>")),
        json!(object.text("spec.username")),
        json!(duration),
        json!(condition),
    ]
}

fn role_binding(object: Fields<'_>, now: i64) -> Vec<Value> {
    let subjects = |kind: &str| {
        let names: Vec<String> = object
            .list("subjects")
            .filter(|subject| subject.is("kind", kind))
            .map(|subject| match kind {
                "ServiceAccount" => {
                    format!("{}/{}", subject.text("namespace"), subject.text("name"))
                }
                _ => subject.text("name"),
            })
            .collect();
        json!(names.join(", "))
    };
    vec![
        object.name(),
        json!(format!(
            "{}/{}",
            object.text("roleRef.kind"),
            object.text("roleRef.name")
        )),
        object.age(now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

fn resource_claim(object: Fields<'_>, now: i64) -> Vec<Value> {
    let mut states = Vec::new();
    if object.is_being_deleted() {
        states.push("deleted");
    }
    if object.exists("status.allocation") {
        states.push("allocated");
        if object.count("status.reservedFor") > 0 {
            states.push("reserved");
        }
    } else if states.is_empty() {
        states.push("pending");
    }
    vec![object.name(), json!(states.join(",")), object.age(now)]
}
