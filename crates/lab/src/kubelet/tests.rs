mod cloud;

use super::*;
use crate::link::{Link, LinkState};
use cloud::{Cloud, pod};
use http::Method;
use std::collections::BTreeSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::DropGuard;
use yurt_wire::Status;

const LONG: Duration = Duration::from_secs(30);

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < LONG, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

struct Running {
    handle: KubeletHandle,
    task: JoinHandle<()>,
    stop: DropGuard,
}

fn start(server: impl fmt::Display) -> Running {
    let mut config = KubeletConfig::new("edge-1", &format!("http://{server}"));
    config.address = "127.10.1.7".parse().unwrap();
    config.lease_interval = Duration::from_millis(30);
    config.status_interval = Duration::from_millis(30);
    config.start_time = Duration::from_millis(1);
    config.stop_time = Duration::from_millis(1);
    config.max_pause = Duration::from_millis(100);
    let stop = CancellationToken::new();
    let (handle, task) = SimulatedKubelet::start(config, stop.clone());
    Running {
        handle,
        task,
        stop: stop.drop_guard(),
    }
}

fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.and_then(|all| all.iter().find(|c| c["type"] == kind));
    found.cloned().unwrap_or_default()
}

fn is_pod_running(cloud: &Cloud, name: &str) -> bool {
    cloud
        .get("pods", "default", name)
        .is_some_and(|pod| pod["status"]["phase"] == "Running")
}

#[tokio::test]
async fn a_node_joins_and_keeps_its_lease() {
    let cloud = Cloud::start().await;
    let kubelet = start(cloud.address);
    let handle = &kubelet.handle;
    eventually("ready", || {
        handle.state().ready && handle.state().renewals > 3
    })
    .await;
    let node = cloud.get("nodes", "", "edge-1").unwrap();
    assert_eq!(condition(&node, "Ready")["status"], "True");
    assert_eq!(node["status"]["addresses"][0]["address"], "127.10.1.7");
    eventually("the lease's owner", || {
        let lease = cloud.get("leases", "kube-node-lease", "edge-1").unwrap();
        lease["metadata"]["ownerReferences"][0]["uid"] == node["metadata"]["uid"]
    })
    .await;
    eventually("watches", || handle.state().watches == 5).await;
    // Nothing changes, so nothing is reported again.
    let reports = || cloud.count(|a| a.method == Method::PATCH && a.path.contains("/nodes/"));
    let before = reports();
    let renewals = handle.state().renewals;
    eventually("more renewals", || handle.state().renewals > renewals + 3).await;
    assert_eq!(reports(), before);
    // Somebody says that the node is not ready: the kubelet knows better.
    let mut node = cloud.get("nodes", "", "edge-1").unwrap();
    let conditions = node["status"]["conditions"].as_array_mut().unwrap();
    conditions
        .iter_mut()
        .for_each(|c| c["status"] = "Unknown".into());
    cloud.put("nodes", node);
    eventually("ready again", || {
        let node = cloud.get("nodes", "", "edge-1").unwrap();
        condition(&node, "Ready")["status"] == "True"
    })
    .await;
}

#[tokio::test]
async fn a_pod_lives_and_dies() {
    let cloud = Cloud::start().await;
    let kubelet = start(cloud.address);
    let mut elsewhere = pod("elsewhere");
    elsewhere["spec"]["nodeName"] = "edge-2".into();
    cloud.put("pods", elsewhere);
    cloud.put("pods", pod("web"));
    eventually("running", || kubelet.handle.state().running == 1).await;
    let shown = cloud.get("pods", "default", "web").unwrap();
    assert_eq!(shown["status"]["podIP"], "10.1.7.2");
    assert_eq!(condition(&shown, "Ready")["status"], "True");
    assert!(!is_pod_running(&cloud, "elsewhere"));
    eventually("a watch per ConfigMap", || {
        kubelet.handle.state().watches == 7
    })
    .await;
    let reasons = || -> BTreeSet<String> {
        let events = cloud
            .asked()
            .into_iter()
            .filter(|a| a.path.ends_with("/events"));
        events
            .map(|a| a.body["reason"].as_str().unwrap().to_owned())
            .collect()
    };
    eventually("events", || reasons().len() == 4).await;
    assert_eq!(
        reasons().into_iter().collect::<Vec<_>>(),
        ["Created", "Pulled", "Started", "Starting"]
    );

    assert!(!kubelet.handle.touch_pod("default", "nobody"));
    assert!(kubelet.handle.touch_pod("default", "web"));
    eventually("touched", || {
        let pod = cloud.get("pods", "default", "web").unwrap();
        condition(&pod, super::pod::TOUCHED)["message"] == "touched 1 times"
    })
    .await;

    let mut leaving = cloud.get("pods", "default", "web").unwrap();
    leaving["metadata"]["deletionTimestamp"] = "2026-11-21T19:06:22Z".into();
    leaving["metadata"]["deletionGracePeriodSeconds"] = 30.into();
    cloud.put("pods", leaving);
    eventually("gone", || cloud.get("pods", "default", "web").is_none()).await;
    eventually("forgotten", || kubelet.handle.state().pods == 0).await;
    eventually("its watches closed", || kubelet.handle.state().watches == 5).await;
    let last_status = cloud
        .asked()
        .into_iter()
        .rfind(|a| a.path.ends_with("/web/status"))
        .unwrap();
    assert_eq!(last_status.body["status"]["phase"], "Succeeded");
    // Its address is free again.
    cloud.put("pods", pod("next"));
    eventually("the next", || is_pod_running(&cloud, "next")).await;
    assert_eq!(
        cloud.get("pods", "default", "next").unwrap()["status"]["podIP"],
        "10.1.7.2"
    );
}

#[tokio::test]
async fn another_pod_of_the_same_name_is_another_pod() {
    let cloud = Cloud::start().await;
    let kubelet = start(cloud.address);
    cloud.put("pods", pod("web"));
    eventually("running", || is_pod_running(&cloud, "web")).await;
    cloud.remove("pods", "default", "web");
    cloud.put("pods", pod("web"));
    eventually("running again", || is_pod_running(&cloud, "web")).await;
    assert_eq!(kubelet.handle.state().pods, 1);
}

#[tokio::test]
async fn a_restarted_kubelet_finds_its_pods() {
    let cloud = Cloud::start().await;
    let first = start(cloud.address);
    cloud.put("pods", pod("web"));
    eventually("running", || first.handle.state().running == 1).await;
    drop(first.stop);
    tokio::time::timeout(LONG, first.task)
        .await
        .expect("stops")
        .unwrap();
    assert_eq!(first.handle.state().pods, 0);
    let before = cloud.get("pods", "default", "web").unwrap();
    let second = start(cloud.address);
    eventually("found", || {
        second.handle.state().running == 1 && second.handle.state().ready
    })
    .await;
    assert_eq!(
        cloud.get("pods", "default", "web").unwrap()["status"],
        before["status"]
    );
    assert!(second.handle.state().registered);
}

#[tokio::test]
async fn a_broken_link_ends_nothing() {
    let cloud = Cloud::start().await;
    let link = Link::start("127.0.0.1:0".parse().unwrap(), cloud.address)
        .await
        .unwrap();
    let kubelet = start(link.address());
    cloud.put("pods", pod("early"));
    cloud.put("pods", pod("doomed"));
    eventually("running", || kubelet.handle.state().running == 2).await;
    eventually("watches", || kubelet.handle.state().watches == 7).await;
    link.set(LinkState::Reset);
    eventually("no watches", || kubelet.handle.state().watches == 0).await;
    cloud.remove("pods", "default", "doomed");
    cloud.put("pods", pod("late"));
    assert!(kubelet.handle.touch_pod("default", "early"));
    link.set(LinkState::Up);
    eventually("the late pod", || is_pod_running(&cloud, "late")).await;
    eventually("the touch", || {
        let pod = cloud.get("pods", "default", "early").unwrap();
        condition(&pod, super::pod::TOUCHED)["status"] == "True"
    })
    .await;
    eventually("two pods", || kubelet.handle.state().pods == 2).await;
    let resumed =
        |a: &cloud::Asked| a.path.contains("/pods?") && a.path.contains("&resourceVersion=");
    assert!(
        cloud.count(resumed) > 0,
        "a broken watch goes on where it was"
    );
}

#[tokio::test]
async fn refusals_are_outlasted() {
    let cloud = Cloud::start().await;
    cloud.refuse(Some(Status::forbidden("", "nodes", "edge-1", "not now")));
    let kubelet = start(cloud.address);
    eventually("attempts", || cloud.asked().len() > 30).await;
    assert_eq!(kubelet.handle.state(), KubeletState::default());
    cloud.refuse(None);
    cloud.put("pods", pod("web"));
    eventually("running", || kubelet.handle.state().running == 1).await;
    // A delete that is refused is asked again.
    let mut leaving = cloud.get("pods", "default", "web").unwrap();
    leaving["metadata"]["deletionTimestamp"] = "2026-11-21T19:06:22Z".into();
    cloud.put("pods", leaving);
    cloud.refuse(Some(Status::forbidden(
        "",
        "pods",
        "web",
        "the node is offline",
    )));
    let asked = cloud.asked().len();
    eventually("attempts", || cloud.asked().len() > asked + 20).await;
    cloud.refuse(None);
    eventually("gone", || cloud.get("pods", "default", "web").is_none()).await;
}

#[tokio::test]
async fn an_expired_watch_begins_anew() {
    let cloud = Cloud::start().await;
    let kubelet = start(cloud.address);
    cloud.put("pods", pod("web"));
    cloud.put("pods", pod("lost"));
    eventually("running", || kubelet.handle.state().running == 2).await;
    cloud.forget("pods", "default", "lost");
    cloud.expire_watches();
    eventually("the lost pod forgotten", || {
        kubelet.handle.state().pods == 1
    })
    .await;
    assert_eq!(kubelet.handle.state().running, 1);
}

#[tokio::test]
async fn a_server_whose_watches_begin_with_nothing_is_asked_for_lists() {
    let cloud = Cloud::start().await;
    cloud.refuse_initial_events();
    cloud.put("pods", pod("web"));
    cloud.put("pods", pod("lost"));
    let kubelet = start(cloud.address);
    eventually("running", || kubelet.handle.state().running == 2).await;
    cloud.forget("pods", "default", "lost");
    cloud.put("pods", pod("late"));
    // By its status: the lost pod may be missed earlier, when its own is refused.
    eventually("the late pod, by a watch", || {
        let late = cloud.get("pods", "default", "late");
        late.is_some_and(|pod| pod["status"]["phase"] == "Running")
    })
    .await;
    cloud.expire_watches();
    eventually("the lost pod forgotten, by a list", || {
        kubelet.handle.state().pods == 2
    })
    .await;
    let listed = |a: &cloud::Asked| a.path.contains("/pods?") && !a.path.contains("watch=true");
    let begun = |a: &cloud::Asked| a.path.contains("/pods?") && a.path.contains("sendInitial");
    assert!(
        cloud.count(listed) >= 2 && cloud.count(begun) >= 2,
        "each time it has another chance"
    );
}

/// Digits of time-outs differ from run to run, and pods have other names.
fn normal(path: &str) -> String {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let path = path.replace("web-65b97464c6-hbq56", "web");
    let query: Vec<String> = query
        .split('&')
        .map(|parameter| match parameter.split_once('=') {
            Some(("timeoutSeconds", _)) => "timeoutSeconds=N".to_owned(),
            Some(("timeout", value)) if value.contains('m') => "timeout=N".to_owned(),
            _ => parameter.to_owned(),
        })
        .collect();
    format!("{path}?{}", query.join("&"))
}

#[tokio::test]
async fn asks_everything_that_the_recorded_kubelet_asked() {
    let cloud = Cloud::start().await;
    let kubelet = start(cloud.address);
    cloud.put("pods", pod("web"));
    eventually("running", || kubelet.handle.state().running == 1).await;
    eventually("watches", || kubelet.handle.state().watches == 7).await;
    eventually("renewals", || kubelet.handle.state().renewals > 3).await;
    let describe = |method: &str, path: &str, header: &dyn Fn(&str) -> Option<String>| {
        format!(
            "{method} {} accept={:?} content-type={:?} agent={:?} encoding={:?}",
            normal(path),
            header("accept"),
            header("content-type"),
            header("user-agent"),
            header("accept-encoding"),
        )
    };
    let recorded: BTreeSet<String> = include_str!("tests/recorded-requests.jsonl")
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            let header = |name: &str| {
                let field = match name {
                    "content-type" => "contentType",
                    "user-agent" => "userAgent",
                    "accept-encoding" => "acceptEncoding",
                    other => other,
                };
                line[field].as_str().map(str::to_owned)
            };
            let text = |field: &str| line[field].as_str().unwrap().to_owned();
            describe(&text("method"), &text("path"), &header)
        })
        .collect();
    assert_eq!(recorded.len(), 19);
    let missing = || -> Vec<String> {
        let asked: BTreeSet<String> = cloud
            .asked()
            .iter()
            .map(|asked| {
                let header = |name: &str| asked.header(name).map(str::to_owned);
                describe(asked.method.as_str(), &asked.path, &header)
            })
            .collect();
        recorded.difference(&asked).cloned().collect()
    };
    let begin = Instant::now();
    while !missing().is_empty() {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "never asked: {:#?}",
            missing()
        );
        sleep(Duration::from_millis(10)).await;
    }
}
