//! An API server that has trouble.

use super::*;
use crate::{Settings, names, start_in};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use yurt_controller::{kube::Call, selection::Selection};
use yurt_controlplane as native;

/// Answers writes of workloads by `answer` (the number of the write and its path), or lets them through.
fn troubled(
    stage: &Stage,
    answer: impl Fn(usize, &str) -> Option<u16> + Send + Sync + 'static,
) -> (Kube, Arc<AtomicUsize>) {
    let through = stage.api().in_process().into_call();
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let answer = Arc::new(answer);
    let call: Call = Arc::new(move |mut request| {
        let (through, answer, count) = (through.clone(), answer.clone(), count.clone());
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let is_write = request.method().as_str() == "PATCH" && path.contains("/deployments/");
            let code = is_write
                .then(|| answer(count.fetch_add(1, Ordering::SeqCst), &path))
                .flatten();
            if code.is_some() {
                *request.method_mut() = "GET".parse().expect("a method");
            }
            let mut response = through(request).await;
            if let Some(code) = code {
                *response.status_mut() = code.try_into().expect("a code");
            }
            response
        })
    });
    (
        Kube::in_process(call, "admin", Duration::from_secs(30)),
        written,
    )
}

fn start(stage: &mut Stage, kube: Kube) {
    let native: native::Selection = "deployment-controller,replicaset-controller"
        .parse()
        .expect("known");
    let ours = Selection::parse("yurtappset", names()).expect("known");
    stage.restart_with(|context| {
        native::start_in(&native, &native::Settings::default(), context);
        start_in(&ours, &Settings::default(), |_| {
            context.writing_as(kube.clone())
        });
    });
}

#[tokio::test]
async fn what_the_server_cannot_do_now_is_done_later_without_haste() {
    let mut stage = Stage::start("").await;
    stage.define_pools(&["a", "b", "c"]).await;
    let codes = [429, 500, 409, 503, 429, 500];
    let (kube, written) = troubled(&stage, move |write, _| codes.get(write).copied());
    stage.create(&sets(""), set(&json!({}), &json!([]))).await;
    start(&mut stage, kube);
    let _kubelet = kubelet(&stage);
    let told = ready(&stage, 3).await;
    assert!(condition::holds(&told["status"], "AppDispatched"));
    assert!(written.load(Ordering::SeqCst) < 30, "{written:?}");
}

#[tokio::test]
async fn what_fails_for_ever_in_one_pool_keeps_no_other() {
    let mut stage = Stage::start("").await;
    stage.define_pools(&["a", "b", "c"]).await;
    let (kube, written) = troubled(&stage, |_, path| path.contains("web-a-").then_some(500));
    stage.create(&sets(""), set(&json!({}), &json!([]))).await;
    start(&mut stage, kube);
    let told = stage
        .until(&sets("web"), |set| {
            set["status"]["totalWorkloads"] == 2 && phase(set, "a") == "Failed"
        })
        .await;
    assert_eq!(reason(&told, "AppDispatched"), "CreateWorkloadError");
    stage
        .until("/api/v1/namespaces/default/events", |list| {
            let mut events = list["items"].as_array().into_iter().flatten();
            events.any(|event| event["reason"] == "Failed CreateWorkload")
        })
        .await;
    assert!(written.load(Ordering::SeqCst) < 40, "{written:?}");
}
