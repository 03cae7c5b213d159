//! What extends and guards the API itself: CRDs, API services, admission, flow control.

use super::{AGE, BuiltIn, CREATED_AT, Fields, NAME, Spec, boolean, built_in, integer, text};
use serde_json::{Value, json};

const ADMISSION: &str = "admissionregistration.k8s.io";
const FLOW: &str = "flowcontrol.apiserver.k8s.io";

pub(super) const PRINTERS: &[BuiltIn] = &[
    built_in(
        ADMISSION,
        "MutatingWebhookConfiguration",
        WEBHOOKS,
        webhooks,
    ),
    built_in(
        ADMISSION,
        "ValidatingWebhookConfiguration",
        WEBHOOKS,
        webhooks,
    ),
    built_in(
        ADMISSION,
        "ValidatingAdmissionPolicy",
        &[
            NAME,
            integer("Validations", "Number of rules."),
            text("ParamKind", "Kind of the parameters."),
            AGE,
        ],
        |object, now| admission_policy(object, "spec.validations", now),
    ),
    built_in(
        ADMISSION,
        "MutatingAdmissionPolicy",
        &[
            NAME,
            integer("Mutations", "Number of rules."),
            text("ParamKind", "Kind of the parameters."),
            AGE,
        ],
        |object, now| admission_policy(object, "spec.mutations", now),
    ),
    built_in(
        ADMISSION,
        "ValidatingAdmissionPolicyBinding",
        POLICY_BINDING,
        policy_binding,
    ),
    built_in(
        ADMISSION,
        "MutatingAdmissionPolicyBinding",
        POLICY_BINDING,
        policy_binding,
    ),
    built_in(
        FLOW,
        "FlowSchema",
        &[
            NAME,
            text("PriorityLevel", "The level that requests go to."),
            text("MatchingPrecedence", "Schemas are tried from low to high."),
            text("DistinguisherMethod", "What tells flows apart."),
            AGE,
            text("MissingPL", "Whether the level does not exist."),
        ],
        flow_schema,
    ),
    built_in(
        FLOW,
        "PriorityLevelConfiguration",
        &[
            NAME,
            text("Type", "Whether the level is limited."),
            text(
                "NominalConcurrencyShares",
                "Share of the server's concurrency.",
            ),
            text("Queues", "Number of queues."),
            text("HandSize", "Queues that a flow may use."),
            text("QueueLengthLimit", "Requests that may wait in a queue."),
            AGE,
        ],
        priority_level,
    ),
    built_in(
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        &[
            NAME,
            text("Scope", "Whether objects are in namespaces."),
            text("Versions", "Versions that are served."),
            CREATED_AT,
            text("Group", "API group.").wide(),
            text("Kind", "Kind of the objects.").wide(),
            text("ShortNames", "Short names of the resource.").wide(),
            boolean("Established", "Whether the resource is served.").wide(),
        ],
        custom_resource_definition,
    ),
    built_in(
        "apiregistration.k8s.io",
        "APIService",
        &[
            NAME,
            text("Service", "The service behind the API."),
            text("Available", "Whether the API can be reached."),
            AGE,
        ],
        api_service,
    ),
];

const WEBHOOKS: &[Spec] = &[NAME, integer("Webhooks", "Number of webhooks."), AGE];

const POLICY_BINDING: &[Spec] = &[
    NAME,
    text("PolicyName", "The policy that is bound."),
    text("ParamRef", "The parameters."),
    AGE,
];

fn webhooks(object: Fields<'_>, now: i64) -> Vec<Value> {
    vec![
        object.name(),
        json!(object.count("webhooks")),
        object.age(now),
    ]
}

fn admission_policy(object: Fields<'_>, rules: &str, now: i64) -> Vec<Value> {
    let kind = object.at("spec.paramKind");
    let param_kind = match object.exists("spec.paramKind") {
        true => format!("{}/{}", kind.text("apiVersion"), kind.text("kind")),
        false => "<unset>".to_owned(),
    };
    vec![
        object.name(),
        json!(object.count(rules)),
        json!(param_kind),
        object.age(now),
    ]
}

fn policy_binding(object: Fields<'_>, now: i64) -> Vec<Value> {
    let reference = object.at("spec.paramRef");
    let name = reference.text("name");
    let shown = if !name.is_empty() {
        format!("{}/{name}", reference.text_or("namespace", "*"))
    } else if reference.exists("selector") {
        reference.selector("selector")
    } else {
        "<unset>".to_owned()
    };
    vec![
        object.name(),
        json!(object.text("spec.policyName")),
        json!(shown),
        object.age(now),
    ]
}

fn flow_schema(object: Fields<'_>, now: i64) -> Vec<Value> {
    let dangling = object
        .condition("Dangling")
        .map_or("?".to_owned(), |condition| condition.text("status"));
    vec![
        object.name(),
        json!(object.text("spec.priorityLevelConfiguration.name")),
        json!(object.int("spec.matchingPrecedence")),
        json!(object.text_or("spec.distinguisherMethod.type", "<none>")),
        object.age(now),
        json!(dangling),
    ]
}

fn priority_level(object: Fields<'_>, now: i64) -> Vec<Value> {
    let number = |path: &str| match object.exists(path) {
        true => json!(object.int(path)),
        false => json!("<none>"),
    };
    vec![
        object.name(),
        json!(object.text("spec.type")),
        number("spec.limited.nominalConcurrencyShares"),
        number("spec.limited.limitResponse.queuing.queues"),
        number("spec.limited.limitResponse.queuing.handSize"),
        number("spec.limited.limitResponse.queuing.queueLengthLimit"),
        object.age(now),
    ]
}

fn custom_resource_definition(object: Fields<'_>, _now: i64) -> Vec<Value> {
    let mut versions: Vec<String> = object
        .list("spec.versions")
        .filter(|version| version.bool_or("served", false))
        .map(|version| match version.bool_or("storage", false) {
            true => format!("{}(storage)", version.text("name")),
            false => version.text("name"),
        })
        .collect();
    versions.sort_unstable();
    vec![
        object.name(),
        json!(object.text("spec.scope")),
        json!(versions.join(",")),
        object.created_at(),
        json!(object.text("spec.group")),
        json!(object.text("spec.names.kind")),
        json!(object.joined("spec.names.shortNames", ",")),
        json!(object.condition_is_true("Established")),
    ]
}

fn api_service(object: Fields<'_>, now: i64) -> Vec<Value> {
    let service = match object.exists("spec.service") {
        true => format!(
            "{}/{}",
            object.text("spec.service.namespace"),
            object.text("spec.service.name")
        ),
        false => "Local".to_owned(),
    };
    let available = match object.condition("Available") {
        None => "Unknown".to_owned(),
        Some(condition) => {
            let (status, reason) = (condition.text("status"), condition.text("reason"));
            match status == "True" || reason.is_empty() {
                true => status,
                false => format!("{status} ({reason})"),
            }
        }
    };
    vec![
        object.name(),
        json!(service),
        json!(available),
        object.age(now),
    ]
}
