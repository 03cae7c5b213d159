//! Workloads and what scales or protects them.

use super::{
    AGE, BuiltIn, CONTAINERS, Fields, IMAGES, NAME, SELECTOR, Spec, age::human_between, boolean,
    built_in, integer, text,
};
use crate::gvk::split_api_version;
use serde_json::{Value, json};

const DESIRED: Spec = integer("Desired", "Pods that are wanted.");
const CURRENT: Spec = integer("Current", "Pods that exist.");
const READY: Spec = integer("Ready", "Pods that are ready.");
const READY_OF: Spec = text("Ready", "Pods that are ready, of those wanted.");

const REPLICAS: &[Spec] = &[
    NAME, DESIRED, CURRENT, READY, AGE, CONTAINERS, IMAGES, SELECTOR,
];

pub(super) const PRINTERS: &[BuiltIn] = &[
    built_in("apps", "ReplicaSet", REPLICAS, replica_set),
    built_in(
        "",
        "ReplicationController",
        REPLICAS,
        replication_controller,
    ),
    built_in(
        "apps",
        "Deployment",
        &[
            NAME,
            READY_OF,
            text("Up-to-date", "Pods made from the newest template."),
            text("Available", "Pods that have been ready for long enough."),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
        deployment,
    ),
    built_in(
        "apps",
        "StatefulSet",
        &[NAME, READY_OF, AGE, CONTAINERS, IMAGES],
        stateful_set,
    ),
    built_in(
        "apps",
        "DaemonSet",
        &[
            NAME,
            integer("Desired", "Nodes that should run the pod."),
            integer("Current", "Nodes that run the pod and should."),
            integer("Ready", "Nodes whose pod is ready."),
            integer("Up-to-date", "Nodes whose pod is of the newest template."),
            integer(
                "Available",
                "Nodes whose pod has been ready for long enough.",
            ),
            text("Node Selector", "Labels of the nodes that run the pod."),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
        daemon_set,
    ),
    built_in(
        "apps",
        "ControllerRevision",
        &[
            NAME,
            text("Controller", "The controller that owns the revision."),
            text("Revision", "Number of the revision."),
            AGE,
        ],
        controller_revision,
    ),
    built_in(
        "batch",
        "Job",
        &[
            NAME,
            text("Status", "State of the job."),
            text("Completions", "Pods that succeeded, of those needed."),
            text("Duration", "How long the job took, or has taken so far."),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
        job,
    ),
    built_in(
        "batch",
        "CronJob",
        &[
            NAME,
            text("Schedule", "When jobs start, in cron form."),
            text("Timezone", "Time zone of the schedule."),
            boolean("Suspend", "Whether no further jobs start."),
            integer("Active", "Jobs that run."),
            text("Last Schedule", "Time since a job was last started."),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
        cron_job,
    ),
    built_in(
        "",
        "PodTemplate",
        &[
            NAME,
            text("Containers", "Names of the containers."),
            text("Images", "Images of the containers."),
            text("Pod Labels", "Labels of the template."),
        ],
        pod_template,
    ),
    built_in(
        "policy",
        "PodDisruptionBudget",
        &[
            NAME,
            text("Min Available", "Pods that must stay available."),
            text("Max Unavailable", "Pods that may be unavailable."),
            integer("Allowed Disruptions", "Pods that may be evicted now."),
            AGE,
        ],
        pod_disruption_budget,
    ),
    built_in(
        "autoscaling",
        "HorizontalPodAutoscaler",
        &[
            NAME,
            text("Reference", "What is scaled."),
            text("Targets", "Metrics, present and wanted."),
            text("MinPods", "Lowest number of pods."),
            text("MaxPods", "Highest number of pods."),
            text("Replicas", "Present number of pods."),
            AGE,
        ],
        horizontal_pod_autoscaler,
    ),
    built_in(
        "autoscaling",
        "Scale",
        &[
            text("Name", "Name of the object."),
            DESIRED,
            integer("Available", "Pods that exist."),
            AGE,
        ],
        scale,
    ),
];

/// Names and images of the containers of a pod spec.
fn containers(object: Fields<'_>, pod_spec: &str) -> [Value; 2] {
    let path = format!("{pod_spec}.containers");
    ["name", "image"].map(|field| {
        let texts: Vec<String> = object.list(&path).map(|c| c.text(field)).collect();
        json!(texts.join(","))
    })
}

/// A number of replicas, 1 when the type defaults it.
fn replicas(object: Fields<'_>) -> i64 {
    match object.exists("spec.replicas") {
        true => object.int("spec.replicas"),
        false => 1,
    }
}

fn replicated(object: Fields<'_>, selector: String, now: i64) -> Vec<Value> {
    let [names, images] = containers(object, "spec.template.spec");
    vec![
        object.name(),
        json!(replicas(object)),
        json!(object.int("status.replicas")),
        json!(object.int("status.readyReplicas")),
        object.age(now),
        names,
        images,
        json!(selector),
    ]
}

fn replica_set(object: Fields<'_>, now: i64) -> Vec<Value> {
    replicated(object, object.selector("spec.selector"), now)
}

fn replication_controller(object: Fields<'_>, now: i64) -> Vec<Value> {
    replicated(object, object.labels("spec.selector"), now)
}

fn deployment(object: Fields<'_>, now: i64) -> Vec<Value> {
    let [names, images] = containers(object, "spec.template.spec");
    let ready = object.int("status.readyReplicas");
    let selector = match object.selector("spec.selector").as_str() {
        "<none>" => String::new(),
        "<error>" => "<invalid>".to_owned(),
        selector => selector.to_owned(),
    };
    vec![
        object.name(),
        json!(format!("{ready}/{}", replicas(object))),
        json!(object.int("status.updatedReplicas")),
        json!(object.int("status.availableReplicas")),
        object.age(now),
        names,
        images,
        json!(selector),
    ]
}

fn stateful_set(object: Fields<'_>, now: i64) -> Vec<Value> {
    let [names, images] = containers(object, "spec.template.spec");
    let ready = object.int("status.readyReplicas");
    vec![
        object.name(),
        json!(format!("{ready}/{}", replicas(object))),
        object.age(now),
        names,
        images,
    ]
}

fn daemon_set(object: Fields<'_>, now: i64) -> Vec<Value> {
    let [names, images] = containers(object, "spec.template.spec");
    vec![
        object.name(),
        json!(object.int("status.desiredNumberScheduled")),
        json!(object.int("status.currentNumberScheduled")),
        json!(object.int("status.numberReady")),
        json!(object.int("status.updatedNumberScheduled")),
        json!(object.int("status.numberAvailable")),
        json!(object.labels("spec.template.spec.nodeSelector")),
        object.age(now),
        names,
        images,
        json!(object.selector("spec.selector")),
    ]
}

fn controller_revision(object: Fields<'_>, now: i64) -> Vec<Value> {
    let owner = object
        .list("metadata.ownerReferences")
        .find(|owner| owner.bool_or("controller", false));
    let controller = owner.map_or("<none>".to_owned(), |owner| {
        let api_version = owner.text("apiVersion");
        let kind = owner.text("kind").to_lowercase();
        match split_api_version(&api_version) {
            ("", _) => format!("{kind}/{}", owner.text("name")),
            (group, _) => format!("{kind}.{}/{}", group.to_lowercase(), owner.text("name")),
        }
    });
    vec![
        object.name(),
        json!(controller),
        json!(object.int("revision")),
        object.age(now),
    ]
}

fn job(object: Fields<'_>, now: i64) -> Vec<Value> {
    let succeeded = object.int("status.succeeded");
    let completions = if object.exists("spec.completions") {
        format!("{succeeded}/{}", object.int("spec.completions"))
    } else if object.int("spec.parallelism") > 1 {
        format!("{succeeded}/1 of {}", object.int("spec.parallelism"))
    } else {
        format!("{succeeded}/1")
    };
    let duration = match (
        object.exists("status.startTime"),
        object.exists("status.completionTime"),
    ) {
        (false, _) => String::new(),
        (true, false) => object.since("status.startTime", now),
        (true, true) => human_between(
            &object.text("status.startTime"),
            &object.text("status.completionTime"),
        )
        .unwrap_or_default(),
    };
    let status = if object.condition_is_true("Complete") {
        "Complete"
    } else if object.condition_is_true("Failed") {
        "Failed"
    } else if object.is_being_deleted() {
        "Terminating"
    } else if object.condition_is_true("Suspended") {
        "Suspended"
    } else if object.condition_is_true("FailureTarget") {
        "FailureTarget"
    } else {
        "Running"
    };
    let [names, images] = containers(object, "spec.template.spec");
    vec![
        object.name(),
        json!(status),
        json!(completions),
        json!(duration),
        object.age(now),
        names,
        images,
        json!(object.selector("spec.selector")),
    ]
}

fn cron_job(object: Fields<'_>, now: i64) -> Vec<Value> {
    let [names, images] = containers(object, "spec.jobTemplate.spec.template.spec");
    let last = match object.exists("status.lastScheduleTime") {
        true => object.since("status.lastScheduleTime", now),
        false => "<none>".to_owned(),
    };
    let suspend = match (
        object.exists("spec.suspend"),
        object.bool_or("spec.suspend", false),
    ) {
        (false, _) => "<unset>",
        (true, true) => "True",
        (true, false) => "False",
    };
    vec![
        object.name(),
        json!(object.text("spec.schedule")),
        json!(object.text_or("spec.timeZone", "<none>")),
        json!(suspend),
        json!(object.count("status.active")),
        json!(last),
        object.age(now),
        names,
        images,
        json!(object.selector("spec.jobTemplate.spec.selector")),
    ]
}

fn pod_template(object: Fields<'_>, _now: i64) -> Vec<Value> {
    let [names, images] = containers(object, "template.spec");
    vec![
        object.name(),
        names,
        images,
        json!(object.labels("template.metadata.labels")),
    ]
}

fn pod_disruption_budget(object: Fields<'_>, now: i64) -> Vec<Value> {
    vec![
        object.name(),
        json!(object.text_or("spec.minAvailable", "N/A")),
        json!(object.text_or("spec.maxUnavailable", "N/A")),
        json!(object.int("status.disruptionsAllowed")),
        object.age(now),
    ]
}

fn horizontal_pod_autoscaler(object: Fields<'_>, now: i64) -> Vec<Value> {
    vec![
        object.name(),
        json!(format!(
            "{}/{}",
            object.text("spec.scaleTargetRef.kind"),
            object.text("spec.scaleTargetRef.name")
        )),
        json!(metrics(object)),
        json!(object.text_or("spec.minReplicas", "<unset>")),
        json!(object.int("spec.maxReplicas")),
        json!(object.int("status.currentReplicas")),
        object.age(now),
    ]
}

/// Present and wanted values of the metrics; the first two are shown.
fn metrics(object: Fields<'_>) -> String {
    const SHOWN: usize = 2;
    // autoscaling/v1 knows one metric only.
    if object.exists("spec.targetCPUUtilizationPercentage") {
        let current = match object.exists("status.currentCPUUtilizationPercentage") {
            true => format!("{}%", object.int("status.currentCPUUtilizationPercentage")),
            false => "<unknown>".to_owned(),
        };
        return format!(
            "cpu: {current}/{}%",
            object.int("spec.targetCPUUtilizationPercentage")
        );
    }
    let statuses: Vec<Fields<'_>> = object.list("status.currentMetrics").collect();
    let all: Vec<String> = object
        .list("spec.metrics")
        .enumerate()
        .map(|(at, spec)| metric(spec, statuses.get(at).copied()))
        .collect();
    match all.len() {
        0 => "<none>".to_owned(),
        n if n > SHOWN => format!("{} + {} more...", all[..SHOWN].join(", "), n - SHOWN),
        _ => all.join(", "),
    }
}

fn metric(spec: Fields<'_>, status: Option<Fields<'_>>) -> String {
    let kind = spec.text("type");
    let field = match kind.as_str() {
        "External" => "external",
        "Pods" => "pods",
        "Object" => "object",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => return "<unknown type>".to_owned(),
    };
    let source = spec.at(field);
    let current = |value: &str| {
        status
            .map(|status| status.at(field).at("current").text(value))
            .filter(|text| !text.is_empty())
    };
    let known = |value: Option<String>| value.unwrap_or_else(|| "<unknown>".to_owned());
    let target = |value: &str| source.at("target").text(value);
    let by_average = source.exists("target.averageValue");
    match field {
        "pods" => format!(
            "{}/{}",
            known(current("averageValue")),
            target("averageValue")
        ),
        "external" | "object" if by_average => format!(
            "{}/{} (avg)",
            known(current("averageValue")),
            target("averageValue")
        ),
        "external" | "object" => format!("{}/{}", known(current("value")), target("value")),
        _ if by_average => format!(
            "{}: {}/{}",
            source.text("name"),
            known(current("averageValue")),
            target("averageValue")
        ),
        _ => {
            let percent = |text: String| format!("{text}%");
            let wanted = match target("averageUtilization") {
                text if text.is_empty() => "<auto>".to_owned(),
                text => percent(text),
            };
            format!(
                "{}: {}/{wanted}",
                source.text("name"),
                known(current("averageUtilization").map(percent))
            )
        }
    }
}

fn scale(object: Fields<'_>, now: i64) -> Vec<Value> {
    vec![
        object.name(),
        json!(object.int("spec.replicas")),
        json!(object.int("status.replicas")),
        object.age(now),
    ]
}
