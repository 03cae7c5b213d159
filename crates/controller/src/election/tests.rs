use super::*;
use crate::kube::Call;
use proptest::prelude::*;
use std::sync::{Arc, Mutex};

const ME: &str = "me_1";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("a time")
}

fn held(holder: &str) -> Value {
    json!({"metadata": {"resourceVersion": "1"}, "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15,
        "acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "2026-01-01T00:00:00.000000Z",
        "leaseTransitions": 3, "strategy": "OldestEmulationVersion"}})
}

fn claimed(lease: Option<&Value>, unchanged: u64) -> Option<Value> {
    let timing = Timing::default();
    claim(ME, lease, Duration::from_secs(unchanged), at(0), &timing)
}

#[test]
fn times_must_fit_together() {
    let of = |lease, renew, retry| {
        let [lease, renew, retry] = [lease, renew, retry].map(Duration::from_millis);
        let timing = Timing {
            lease,
            renew,
            retry,
        };
        timing.checked().map(drop)
    };
    assert!(Timing::default().checked().is_ok());
    assert_eq!(of(15_000, 10_000, 0), Err(TimingError::Zero));
    assert_eq!(of(900, 500, 100), Err(TimingError::Lease));
    assert_eq!(of(15_000, 15_000, 2_000), Err(TimingError::Renew));
    assert_eq!(of(15_000, 2_000, 2_000), Err(TimingError::Retry));
    assert_eq!(of(15_000, 2_401, 2_000), Ok(()));
}

#[test]
fn a_lease_is_claimed_when_nobody_has_it() {
    let first = claimed(None, 0).expect("free");
    assert_eq!(first["holderIdentity"], ME);
    assert_eq!(first["leaseTransitions"], 0);
    assert_eq!(first["leaseDurationSeconds"], 15);
    assert_eq!(first["acquireTime"], "2027-01-15T08:00:00.000000Z");
    assert_eq!(first["acquireTime"], first["renewTime"]);

    assert_eq!(claimed(Some(&held("other")), 14), None);
    for (lease, unchanged) in [(held("other"), 15), (held(""), 0)] {
        let taken = claimed(Some(&lease), unchanged).expect("free");
        assert_eq!(taken["leaseTransitions"], 4);
        assert_eq!(taken["acquireTime"], taken["renewTime"]);
        assert_eq!(
            taken["strategy"], "OldestEmulationVersion",
            "what is not ours stays"
        );
    }
    let kept = claimed(Some(&held(ME)), 100).expect("ours");
    assert_eq!(kept["leaseTransitions"], 3);
    assert_eq!(kept["acquireTime"], held(ME)["spec"]["acquireTime"]);
    assert_eq!(kept["renewTime"], "2027-01-15T08:00:00.000000Z");
}

proptest! {
    /// Whatever is written in a lease: while it is another's and fresh nobody claims it, and what is claimed is whole.
    #[test]
    fn a_fresh_lease_of_another_is_never_claimed(
        holder in "[a-z]{0,3}", seconds in proptest::option::of(-5i64..100), transitions in any::<i64>(), unchanged in 0u64..200,
    ) {
        let lease = json!({"spec": {"holderIdentity": holder, "leaseDurationSeconds": seconds, "leaseTransitions": transitions}});
        let valid = seconds.filter(|s| *s > 0).unwrap_or(15) as u64;
        match claimed(Some(&lease), unchanged) {
            None => prop_assert!(!holder.is_empty() && unchanged < valid),
            Some(spec) => {
                prop_assert!(holder.is_empty() || unchanged >= valid);
                prop_assert_eq!(&spec["holderIdentity"], ME);
                prop_assert!(spec["leaseTransitions"].as_i64().is_some_and(|n| n >= transitions));
            }
        }
    }
}

/// An API server that knows one lease, and can be switched off.
#[derive(Default)]
struct Server {
    lease: Option<Value>,
    revision: u64,
    down: bool,
    writes: u64,
}

type Shared = Arc<Mutex<Server>>;

fn answer(server: &mut Server, method: &http::Method, body: &[u8]) -> (u16, Value) {
    if server.down {
        return (503, json!({"message": "down"}));
    }
    let refused = |code: u16| (code, json!({"reason": "Refused", "message": "refused"}));
    let mut object: Value = serde_json::from_slice(body).unwrap_or_default();
    match (method.as_str(), &server.lease) {
        ("GET", Some(lease)) => return (200, lease.clone()),
        ("GET" | "PUT", None) => return refused(404),
        ("POST", Some(_)) => return refused(409),
        ("PUT", Some(lease))
            if lease["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] =>
        {
            return refused(409);
        }
        _ => {}
    }
    server.revision += 1;
    server.writes += 1;
    object["metadata"]["resourceVersion"] = server.revision.to_string().into();
    server.lease = Some(object.clone());
    (200, object)
}

fn server() -> (Shared, Kube) {
    use http_body_util::BodyExt;
    let server = Shared::default();
    let known = server.clone();
    let call: Call = Arc::new(move |request| {
        let server = known.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.expect("a body").to_bytes();
            let (code, value) = answer(&mut server.lock().unwrap(), &head.method, &body);
            let response = http::Response::builder().status(code);
            response
                .body(yurt_transport::full(value.to_string()))
                .expect("a response")
        })
    });
    let kube = Kube::in_process(call, "token", Duration::from_secs(30));
    (server, kube)
}

fn candidate(kube: &Kube, identity: &str) -> Candidate {
    let key = Key::new("kube-system", "yurt-manager");
    Candidate::new(kube.clone(), key, identity.into(), Timing::default())
}

#[tokio::test(start_paused = true)]
async fn who_goes_hands_over_at_once() {
    let (server, kube) = server();
    let never = CancellationToken::new();
    let mut first = candidate(&kube, "a");
    assert!(first.acquire(&never).await);
    let mut second = candidate(&kube, "b");
    let end = CancellationToken::new();
    let waiting = tokio::spawn({
        let never = never.clone();
        async move {
            assert!(second.acquire(&never).await);
            second
        }
    });
    let keeping = tokio::spawn({
        let end = end.clone();
        async move {
            first.keep(&end).await.expect("kept");
            first
        }
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!waiting.is_finished(), "it is renewed");
    end.cancel();
    keeping.await.expect("ended").release().await;
    let began = Instant::now();
    let second = waiting.await.expect("elected");
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "within one try, not one lease"
    );
    assert_eq!(second.holder(), "b");
    let lease = server.lock().unwrap().lease.clone().expect("a lease");
    assert_eq!(lease["spec"]["leaseTransitions"], 1);
}

#[tokio::test(start_paused = true)]
async fn who_cannot_renew_stops_before_another_begins() {
    let (server, kube) = server();
    let never = CancellationToken::new();
    let mut first = candidate(&kube, "a");
    assert!(first.acquire(&never).await);
    let mut second = candidate(&kube, "b");
    // It has seen the lease as it is now.
    assert!(!second.claim_once().await.expect("an answer"));
    let began = Instant::now();
    server.lock().unwrap().down = true;
    let lost = first.keep(&never).await.expect_err("lost");
    let stopped = began.elapsed();
    assert!(matches!(lost, Lost::Silence { .. }), "{lost}");
    assert!(lost.to_string().contains("down"), "{lost}");
    assert!(stopped <= Timing::default().renew, "{stopped:?}");
    server.lock().unwrap().down = false;
    assert!(second.acquire(&never).await);
    assert!(
        began.elapsed() >= Timing::default().lease,
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_another_took_is_lost() {
    let (server, kube) = server();
    let never = CancellationToken::new();
    let mut first = candidate(&kube, "a");
    assert!(first.acquire(&never).await);
    {
        let mut server = server.lock().unwrap();
        let mut lease = held("other");
        lease["metadata"]["resourceVersion"] = "99".into();
        server.lease = Some(lease);
    }
    let lost = first.keep(&never).await.expect_err("lost");
    assert!(
        matches!(&lost, Lost::Taken { holder, .. } if holder == "other"),
        "{lost}"
    );
    let writes = server.lock().unwrap().writes;
    first.release().await;
    assert_eq!(
        server.lock().unwrap().writes,
        writes,
        "what is another's is not given up"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_deleted_is_made_again() {
    let (server, kube) = server();
    let end = CancellationToken::new();
    let mut first = candidate(&kube, "a");
    assert!(first.acquire(&end).await);
    server.lock().unwrap().lease = None;
    let keeping = tokio::spawn({
        let end = end.clone();
        async move { first.keep(&end).await }
    });
    tokio::time::sleep(Duration::from_secs(30)).await;
    let lease = server.lock().unwrap().lease.clone().expect("made again");
    assert_eq!(lease["spec"]["holderIdentity"], "a");
    end.cancel();
    keeping.await.expect("no panic").expect("kept");
}

#[test]
fn identities_are_a_host_and_a_uuid() {
    let known = identity("unnamed");
    let (host, uuid) = known.rsplit_once('_').expect("two parts");
    assert!(!host.is_empty());
    assert_eq!(uuid.len(), 36, "{uuid}");
    assert_eq!(uuid.as_bytes()[14], b'4', "{uuid}");
    assert!(b"89ab".contains(&uuid.as_bytes()[19]), "{uuid}");
    assert_ne!(known, identity("unnamed"));
}
