use super::*;
use crate::stage::Stage;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn cron(spec: Value) -> Value {
    let mut cron = json!({"metadata": {"name": "c", "namespace": "default", "uid": "cron", "creationTimestamp": "2026-01-01T00:00:30Z"},
        "spec": {"schedule": "*/10 * * * *", "concurrencyPolicy": "Allow",
            "jobTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {"template": {}}}}, "status": {}});
    for (field, value) in spec.as_object().unwrap() {
        cron["spec"][field] = value.clone();
    }
    cron
}

fn decided(cron: &Value, now: &str) -> Decision {
    let schedule = cron["spec"]["schedule"].as_str().unwrap();
    let schedule = Schedule::parse(schedule, TimeZone::UTC).unwrap();
    decide(cron, &schedule, at(now))
}

fn reasons(decision: &Decision) -> Vec<&str> {
    decision.told.iter().map(|(_, reason, _)| *reason).collect()
}

fn start(time: &str) -> Due {
    Due::Start {
        at: at(time),
        replace: false,
    }
}

#[test]
fn a_job_is_due_once() {
    let mut cron = cron(json!({}));
    let early = decided(&cron, "2026-01-01T00:09:00Z");
    assert_eq!(early.due, Due::Nothing);
    assert_eq!(early.next, Some(Duration::from_secs(60) + DELTA));
    assert_eq!(
        decided(&cron, "2026-01-01T00:10:00.1Z").due,
        start("2026-01-01T00:10:00Z")
    );
    // Of several that were missed, the last.
    assert_eq!(
        decided(&cron, "2026-01-01T00:35:00Z").due,
        start("2026-01-01T00:30:00Z")
    );
    cron["status"]["lastScheduleTime"] = "2026-01-01T00:30:00Z".into();
    assert_eq!(decided(&cron, "2026-01-01T00:35:00Z").due, Due::Nothing);
    assert_eq!(
        decided(&cron, "2026-01-01T00:40:00Z").due,
        start("2026-01-01T00:40:00Z")
    );
}

#[test]
fn long_absences_are_told_and_caught_up_with() {
    let cron = cron(json!({}));
    let late = decided(&cron, "2027-06-01T12:05:00Z");
    assert_eq!(late.due, start("2027-06-01T12:00:00Z"));
    assert_eq!(reasons(&late), ["TooManyMissedTimes"]);
}

#[test]
fn what_is_too_late_is_missed() {
    let mut cron = cron(json!({"startingDeadlineSeconds": 60}));
    assert_eq!(
        decided(&cron, "2026-01-01T00:10:30Z").due,
        start("2026-01-01T00:10:00Z")
    );
    assert_eq!(decided(&cron, "2026-01-01T00:15:00Z").due, Due::Nothing);
    cron["spec"]["startingDeadlineSeconds"] = 100_000.into();
    assert_eq!(
        decided(&cron, "2026-01-01T00:15:00Z").due,
        start("2026-01-01T00:10:00Z")
    );
}

#[test]
fn jobs_that_still_run_are_minded() {
    let mut cron = cron(json!({"concurrencyPolicy": "Forbid"}));
    cron["status"]["active"] = json!([{"name": "c-1", "uid": "1"}]);
    let forbidden = decided(&cron, "2026-01-01T00:10:00Z");
    assert_eq!(forbidden.due, Due::Nothing);
    assert_eq!(reasons(&forbidden), ["JobAlreadyActive"]);
    cron["spec"]["concurrencyPolicy"] = "Replace".into();
    let replaced = decided(&cron, "2026-01-01T00:10:00Z");
    assert_eq!(
        replaced.due,
        Due::Start {
            at: at("2026-01-01T00:10:00Z"),
            replace: true
        }
    );
    cron["spec"]["concurrencyPolicy"] = "Allow".into();
    assert_eq!(
        decided(&cron, "2026-01-01T00:10:00Z").due,
        start("2026-01-01T00:10:00Z")
    );
}

#[test]
fn a_job_is_named_after_its_minute() {
    let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
    let job = new_job(&cron(json!({})), at("2026-01-01T00:10:00Z"), &zone);
    assert_eq!(job["metadata"]["name"], "c-29453770");
    assert_eq!(job["metadata"]["labels"], json!({"a": "b"}));
    assert_eq!(
        job["metadata"]["annotations"][SCHEDULED],
        "2026-01-01T01:10:00+01:00"
    );
    let job = new_job(&cron(json!({})), at("2026-01-01T00:10:00Z"), &TimeZone::UTC);
    assert_eq!(
        job["metadata"]["annotations"][SCHEDULED],
        "2026-01-01T00:10:00Z"
    );
}

fn job(name: &str, condition: &str, started: &str) -> Arc<Value> {
    Arc::new(
        json!({"metadata": {"name": name, "uid": name}, "status": {"startTime": started, "completionTime": started,
        "conditions": [{"type": condition, "status": "True"}]}}),
    )
}

#[test]
fn the_status_follows_the_jobs() {
    let mut cron = cron(json!({}));
    cron["status"] = json!({"active": [{"name": "done", "uid": "done"}, {"name": "gone", "uid": "gone"}, {"name": "runs", "uid": "runs"}],
        "lastScheduleTime": "2026-01-01T00:00:00Z"});
    let runs = Arc::new(json!({"metadata": {"name": "runs", "uid": "runs"}, "status": {}}));
    let odd = Arc::new(json!({"metadata": {"name": "odd", "uid": "odd"}, "status": {}}));
    let jobs = [job("done", "Complete", "2026-01-01T00:05:00Z"), runs, odd];
    let (status, told) = status(&cron, &jobs);
    assert_eq!(
        status,
        json!({"active": [{"name": "runs", "uid": "runs"}], "lastScheduleTime": "2026-01-01T00:00:00Z",
            "lastSuccessfulTime": "2026-01-01T00:05:00Z"})
    );
    let reasons: Vec<_> = told.iter().map(|(_, reason, _)| *reason).collect();
    assert_eq!(reasons, ["SawCompletedJob", "MissingJob", "UnexpectedJob"]);
}

#[test]
fn the_oldest_finished_jobs_go() {
    let cron = cron(json!({"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0}));
    let jobs = [
        job("b", "Complete", "2026-01-01T00:20:00Z"),
        job("a", "Complete", "2026-01-01T00:10:00Z"),
        job("f", "Failed", "2026-01-01T00:15:00Z"),
    ];
    let beyond = history::beyond(&cron, &jobs);
    let names: Vec<_> = beyond.iter().map(|job| name(job)).collect();
    assert_eq!(names, ["a", "f"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_are_started_noted_and_cleared_away() {
    let stage = Stage::start("cronjob-controller,job-controller").await;
    let crons = "/apis/batch/v1/namespaces/default/cronjobs";
    let manifest = json!({"metadata": {"name": "c"}, "spec": {"schedule": "@every 1s", "successfulJobsHistoryLimit": 1,
        "jobTemplate": {"spec": {"completions": 0, "parallelism": 1, "template": {"spec": {"restartPolicy": "Never",
            "containers": [{"name": "c", "image": "i"}]}}}}}});
    stage.create(crons, manifest).await;
    let path = format!("{crons}/c");
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    let list = stage
        .until(jobs, |list| {
            list["items"].as_array().is_some_and(|i| !i.is_empty())
        })
        .await;
    assert_eq!(controller_of(&list["items"][0]).unwrap()["kind"], "CronJob");
    stage
        .until(&path, |c| {
            c["status"]["lastScheduleTime"].is_string()
                && c["status"]["lastSuccessfulTime"].is_string()
        })
        .await;
    let suspend = json!({"spec": {"suspend": true}});
    stage.kube.merge(&path, &suspend).await.unwrap();
    stage
        .until(&path, |c| c["status"]["active"].is_null())
        .await;
    stage.quiet(&path).await;
}
