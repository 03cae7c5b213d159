//! Figures of simulated pods: what their requests would let one expect.

use super::Node;
use crate::kubelet::{clock::time, fingerprint, logs, pod};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{fmt::Write, sync::Arc};

/// Of Prometheus' text.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a running container uses.
struct Use<'a> {
    pod: &'a Value,
    name: &'a str,
    since: Timestamp,
    /// Of a core.
    cpu: f64,
    /// CPU seconds since it began.
    seconds: f64,
    memory: u64,
}

/// The running containers of the pods.
fn uses<'a>(pods: &'a [Arc<Value>], now: Timestamp) -> Vec<Use<'a>> {
    let running = |pod: &'a Arc<Value>| {
        logs::statuses(pod).filter_map(move |status| {
            let since: Timestamp = status["state"]["running"]["startedAt"]
                .as_str()?
                .parse()
                .ok()?;
            let name = status["name"].as_str()?;
            // Some of each, steady for a container and different between them.
            let share = fingerprint(&[pod::uid(pod), name]);
            let cpu = (1 + share % 20) as f64 / 1000.0;
            let age = now.duration_since(since).as_secs_f64().max(0.0);
            Some(Use {
                pod,
                name,
                since,
                cpu,
                seconds: cpu * age,
                memory: (8 << 20) + (share as u64 % 32) * (1 << 20),
            })
        })
    };
    pods.iter().flat_map(running).collect()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn cpu(now: &str, cpu: f64, seconds: f64) -> Value {
    json!({"time": now, "usageNanoCores": (cpu * 1e9) as u64, "usageCoreNanoSeconds": (seconds * 1e9) as u64})
}

fn memory(now: &str, bytes: u64) -> Value {
    json!({"time": now, "usageBytes": bytes, "workingSetBytes": bytes, "rssBytes": bytes})
}

/// `/stats/summary`.
pub(super) fn summary(node: &Node, pods: &[Arc<Value>], now: Timestamp) -> Value {
    let (uses, stamp) = (uses(pods, now), time(now));
    let total = |of: &[&Use<'_>]| {
        let sums = of.iter().fold((0.0, 0.0, 0), |(c, s, m), u| {
            (c + u.cpu, s + u.seconds, m + u.memory)
        });
        (cpu(&stamp, sums.0, sums.1), memory(&stamp, sums.2))
    };
    let all: Vec<&Use<'_>> = uses.iter().collect();
    let of_pods: Vec<Value> = pods
        .iter()
        .map(|pod| {
            let own: Vec<&Use<'_>> = uses.iter().filter(|u| std::ptr::eq(u.pod, &**pod)).collect();
            let (cpu_sum, memory_sum) = total(&own);
            let containers: Vec<Value> = own
                .iter()
                .map(|u| {
                    json!({"name": u.name, "startTime": time(u.since),
                        "cpu": cpu(&stamp, u.cpu, u.seconds), "memory": memory(&stamp, u.memory)})
                })
                .collect();
            let meta = &pod["metadata"];
            json!({
                "podRef": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
                "startTime": pod["status"]["startTime"],
                "containers": containers, "cpu": cpu_sum, "memory": memory_sum,
            })
        })
        .collect();
    let (cpu, memory) = total(&all);
    json!({"node": {"nodeName": node.name, "cpu": cpu, "memory": memory}, "pods": of_pods})
}

/// `/metrics/resource`.
pub(super) fn resource(pods: &[Arc<Value>], now: Timestamp) -> String {
    let uses = uses(pods, now);
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, samples: Vec<(String, f64)>| {
        // Writing into a string does not fail.
        let _ = writeln!(out, "# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(out, "{name}{labels} {value}");
        }
    };
    let each = |value: &dyn Fn(&Use<'_>) -> f64| -> Vec<(String, f64)> {
        let labels = |u: &Use<'_>| {
            let meta = &u.pod["metadata"];
            let (namespace, pod) = (text(meta, "namespace"), text(meta, "name"));
            format!(
                "{{container=\"{}\",namespace=\"{namespace}\",pod=\"{pod}\"}}",
                u.name
            )
        };
        uses.iter().map(|u| (labels(u), value(u))).collect()
    };
    let sum = |value: &dyn Fn(&Use<'_>) -> f64| vec![(String::new(), uses.iter().map(value).sum())];
    family(
        "node_cpu_usage_seconds_total",
        "counter",
        sum(&|u| u.seconds),
    );
    family(
        "node_memory_working_set_bytes",
        "gauge",
        sum(&|u| u.memory as f64),
    );
    family(
        "container_cpu_usage_seconds_total",
        "counter",
        each(&|u| u.seconds),
    );
    family(
        "container_memory_working_set_bytes",
        "gauge",
        each(&|u| u.memory as f64),
    );
    family(
        "container_start_time_seconds",
        "gauge",
        each(&|u| u.since.as_millisecond() as f64 / 1000.0),
    );
    let per_pod = |value: &dyn Fn(&Use<'_>) -> f64| -> Vec<(String, f64)> {
        let of = |pod: &Arc<Value>| {
            let own = uses.iter().filter(|u| std::ptr::eq(u.pod, &**pod));
            let meta = &pod["metadata"];
            let (namespace, name) = (text(meta, "namespace"), text(meta, "name"));
            let labels = format!("{{namespace=\"{namespace}\",pod=\"{name}\"}}");
            (labels, own.map(value).sum())
        };
        pods.iter().map(of).collect()
    };
    family(
        "pod_cpu_usage_seconds_total",
        "counter",
        per_pod(&|u| u.seconds),
    );
    family(
        "pod_memory_working_set_bytes",
        "gauge",
        per_pod(&|u| u.memory as f64),
    );
    family("resource_scrape_error", "gauge", vec![(String::new(), 0.0)]);
    out
}

/// `/metrics`.
pub(super) fn metrics(node: &Node, pods: &[Arc<Value>]) -> String {
    let running = pods.iter().filter(|pod| pod::is_running(pod)).count();
    let containers: usize = pods
        .iter()
        .map(|pod| {
            logs::statuses(pod)
                .filter(|s| s["state"]["running"].is_object())
                .count()
        })
        .sum();
    format!(
        "# TYPE kubelet_node_name gauge\nkubelet_node_name{{node=\"{}\"}} 1\n# TYPE kubelet_running_pods gauge\nkubelet_running_pods {running}\n# TYPE kubelet_running_containers gauge\nkubelet_running_containers{{container_state=\"running\"}} {containers}\n",
        node.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods() -> Vec<Arc<Value>> {
        vec![Arc::new(json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "status": {"phase": "Running", "startTime": "2026-11-22T00:00:00Z", "containerStatuses": [
                {"name": "a", "state": {"running": {"startedAt": "2026-11-22T00:00:00Z"}}},
                {"name": "b", "state": {"waiting": {}}},
            ]},
        }))]
    }

    #[test]
    fn running_containers_use_something() {
        let node = Node { name: "n".into() };
        let now: Timestamp = "2026-11-22T00:01:00Z".parse().unwrap();
        let summary = summary(&node, &pods(), now);
        assert_eq!(
            summary["pods"][0]["containers"].as_array().unwrap().len(),
            1
        );
        assert_eq!(summary["node"]["memory"], summary["pods"][0]["memory"]);
        assert!(summary["node"]["cpu"]["usageNanoCores"].as_u64() > Some(0));
        let text = resource(&pods(), now);
        assert!(text.contains(
            "container_memory_working_set_bytes{container=\"a\",namespace=\"d\",pod=\"p\"} "
        ));
        assert!(metrics(&node, &pods()).contains("kubelet_running_pods 1\n"));
    }
}
