//! Any order of writes, cuts and deaths, held against what the cloud has in the end.

use super::event;
use crate::node::{JSON, Node, twin::Twin};
use http::Method;
use serde_json::json;
use std::collections::BTreeMap;

/// What one step of [`whatever_was_acknowledged_arrives`] does.
#[derive(Clone, Copy, Debug)]
enum Step {
    PodStatus {
        pod: usize,
        reason: u8,
    },
    Event {
        event: u8,
    },
    Kill,
    /// A replay that loses the link after some requests.
    Replay {
        requests: usize,
    },
    /// Somebody else touches a pod in the cloud.
    Touch {
        pod: usize,
    },
}

fn step() -> impl proptest::strategy::Strategy<Value = Step> {
    use proptest::prelude::*;
    prop_oneof![
        4 => (0usize..3, any::<u8>()).prop_map(|(pod, reason)| Step::PodStatus { pod, reason }),
        3 => (0u8..4).prop_map(|event| Step::Event { event }),
        1 => Just(Step::Kill),
        2 => (0usize..6).prop_map(|requests| Step::Replay { requests }),
        1 => (0usize..3).prop_map(|pod| Step::Touch { pod }),
    ]
}

async fn run(steps: &[Step]) {
    const PODS: [&str; 3] = [
        "/api/v1/namespaces/default/pods/web-65b97464c6-5t9tz",
        "/api/v1/namespaces/default/pods/web-65b97464c6-hbq56",
        "/api/v1/namespaces/default/pods/web-65b97464c6-pz569",
    ];
    const EVENTS: &str = "/api/v1/namespaces/default/events";
    let mut node = Node::recorded().await;
    let twin = Twin::recorded();
    let mut reasons: [Option<u8>; 3] = [None; 3];
    let mut touched = [false; 3];
    let mut counts: BTreeMap<u8, i64> = BTreeMap::new();
    for step in steps {
        match *step {
            Step::PodStatus { pod, reason } => {
                let patch = json!({"status": {"reason": format!("r{reason}")}});
                let got = node.patch(&format!("{}/status", PODS[pod]), &patch).await;
                assert_eq!(got.code, 200, "{}", got.message());
                reasons[pod] = Some(reason);
            }
            Step::Event { event: number } => {
                let count = counts.entry(number).or_insert(0);
                *count += 1;
                let name = format!("own{number}");
                let got = node
                    .patch(&format!("{EVENTS}/{name}"), &json!({"count": *count}))
                    .await;
                if got.code == 404 {
                    let mut created = event(&name, "default");
                    created["count"] = (*count).into();
                    let got = node.send(Method::POST, EVENTS, &created).await;
                    assert_eq!(got.code, 201, "{}", got.message());
                } else {
                    assert_eq!(got.code, 200, "{}", got.message());
                }
            }
            Step::Kill => node = node.killed(),
            Step::Replay { requests } => {
                twin.state().cut_after = Some(requests);
                let report = node.journal.replay(&twin).await;
                assert!(report.dropped.is_empty(), "{report:?}");
            }
            Step::Touch { pod } => {
                twin.change(PODS[pod], |pod| {
                    pod["metadata"]["labels"]["touched"] = "1".into();
                });
                touched[pod] = true;
            }
        }
    }
    twin.state().cut_after = None;
    let report = node.journal.replay(&twin).await;
    assert_eq!((report.kept, report.dropped.len()), (0, 0), "{report:?}");
    for (i, path) in PODS.iter().enumerate() {
        let cloud = twin.object(path);
        if let Some(reason) = reasons[i] {
            assert_eq!(cloud["status"]["reason"], format!("r{reason}"));
            let seen = node.get(path, JSON).await.json();
            assert_eq!(seen["status"], cloud["status"]);
        }
        if touched[i] {
            assert_eq!(cloud["metadata"]["labels"]["touched"], "1");
        }
    }
    for (number, count) in counts {
        let cloud = twin.object(&format!("{EVENTS}/own{number}"));
        assert_eq!(cloud["count"], count, "event {number}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 24, ..Default::default() })]
    /// Whatever is acknowledged is in the cloud in the end, once and in its last state, wherever the link is cut and the hub
    /// killed, and nothing of what others wrote meanwhile is undone.
    #[test]
    fn whatever_was_acknowledged_arrives(steps in proptest::collection::vec(step(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(run(&steps));
    }
}
