//! Random cuts, restarts, reports of a kubelet and changes of the cloud, with clients that come and go. Whatever happens, every
//! client ends with the cloud's state of a slice, told by its stream alone; and while the link is down it sees the pods as they are.

use super::{correction::Corrector, cursor::Cursor, cursor::Resume};
use crate::{
    cache::{Asked, Cache, CacheConfig, WatchLearner},
    caller::Caller,
    endpoints::Endpoints,
    journal::{Cloud as Replayed, Journal, JournalConfig},
    offline::{LocalWatch, Offline},
    query::Query,
};
use bytes::Bytes;
use http::{Method, Request, Response};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{
    future::Future,
    path::Path,
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use yurt_transport::ClientError;
use yurt_wire::{
    Encoding, Gvr, Object, RequestInfo,
    list::SplitList,
    watch::{Event, EventType, FrameDecoder},
};

const GRACE: Duration = Duration::from_secs(60);
const PODS: [&str; 2] = ["a", "b"];
const CLIENTS: usize = 2;
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

/// What a pod looks like to services.
type Shown = (u8, bool);

#[derive(Default)]
struct Truth {
    revision: u64,
    pods: Vec<Value>,
    /// Every state of the slice.
    slices: Vec<(u64, Value)>,
    other: u8,
}

/// The cloud.
#[derive(Default)]
struct Cloud(Mutex<Truth>);

fn pod(name: &str, (ip, ready): Shown, revision: u64) -> Value {
    let ip = format!("10.0.0.{ip}");
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "d", "uid": format!("u-{name}"), "resourceVersion": revision.to_string()},
        "spec": {"nodeName": "edge-1", "containers": [{"name": "c"}]}, "status": status((ip, ready))})
}

fn status((ip, ready): (String, bool)) -> Value {
    json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]})
}

fn endpoint(name: &str, ip: &Value, ready: bool, node: &str) -> Value {
    json!({"addresses": [ip], "conditions": {"ready": ready, "serving": ready, "terminating": false}, "nodeName": node,
        "targetRef": {"kind": "Pod", "namespace": "d", "name": name, "uid": format!("u-{name}")}})
}

fn object(value: &Value) -> Object {
    Object::from_json_value(value, Encoding::Protobuf).expect("protobuf")
}

impl Cloud {
    fn truth(&self) -> MutexGuard<'_, Truth> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The controller looks at the pods; or another node's endpoint changes.
    fn control(&self, other: bool) {
        let mut truth = self.truth();
        truth.other += u8::from(other);
        let pods = truth.pods.iter();
        let mut endpoints: Vec<Value> = pods
            .map(|pod| {
                let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                let ready = pod["status"]["conditions"][0]["status"] == "True";
                endpoint(name, &pod["status"]["podIP"], ready, "edge-1")
            })
            .collect();
        let ip = format!("10.0.1.{}", truth.other);
        endpoints.push(endpoint("far", &ip.into(), true, "edge-2"));
        let endpoints = Value::from(endpoints);
        if truth
            .slices
            .last()
            .is_some_and(|(_, slice)| slice["endpoints"] == endpoints)
        {
            return;
        }
        truth.revision += 1;
        let revision = truth.revision;
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "s", "namespace": "d", "uid": "s", "resourceVersion": revision.to_string(),
                "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "", "port": 80, "protocol": "TCP"}]});
        truth.slices.push((revision, slice));
    }

    fn set_status(&self, name: &str, status: &Value) -> Option<Value> {
        let mut truth = self.truth();
        truth.revision += 1;
        let revision = truth.revision.to_string();
        let pod = truth
            .pods
            .iter_mut()
            .find(|pod| pod["metadata"]["name"] == name)?;
        pod["status"] = status.clone();
        pod["metadata"]["resourceVersion"] = revision.into();
        Some(pod.clone())
    }
}

impl Replayed for Cloud {
    fn call(
        &self,
        request: Request<Bytes>,
        _timeout: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, ClientError>> + Send + '_>> {
        let path = request.uri().path().trim_end_matches("/status").to_owned();
        let name = path.rsplit('/').next().unwrap_or_default();
        let found = if request.method() == Method::GET {
            let pods = &self.truth().pods;
            pods.iter()
                .find(|pod| pod["metadata"]["name"] == name)
                .cloned()
        } else {
            let sent: Value = serde_json::from_slice(request.body()).unwrap_or_default();
            self.set_status(name, &sent["status"])
        };
        let (code, body) = found.map_or((404, json!({})), |pod| (200, pod));
        let response = Response::builder()
            .status(code)
            .body(body.to_string().into());
        Box::pin(async move { Ok(response.expect("a response")) })
    }
}

#[derive(Clone, Debug)]
enum Step {
    Cut,
    Heal,
    /// The kubelet reports a pod.
    Report(usize, Shown),
    Control,
    ChangeElsewhere,
    /// Time passes.
    Wait,
    /// Stop and start.
    Restart,
    /// A client's connection breaks.
    Reconnect(usize),
}

enum Source {
    Cloud { corrector: Corrector, at: u64 },
    Node(Box<LocalWatch>),
}

/// An informer behind the hub, with what a relay knows of its stream.
struct Client {
    view: Value,
    /// Of the last event, where it goes on when its connection breaks.
    revision: String,
    cursor: Cursor,
    opened_locally: bool,
    source: Source,
}

struct World {
    cloud: Cloud,
    online: bool,
    cache: Cache,
    journal: Journal,
    offline: Offline,
    endpoints: Endpoints,
    learner: Option<WatchLearner>,
    /// The revision up to which the hub learned slices.
    learned: u64,
    clients: Vec<Client>,
    /// What the kubelet knows.
    pods: Vec<Shown>,
}

fn slices() -> Gvr {
    Gvr::new("discovery.k8s.io", "v1", "endpointslices")
}

fn open(dir: &Path) -> (Cache, Journal, Offline, Endpoints) {
    let (cache, _) = Cache::open(dir, CacheConfig::default()).expect("a cache");
    let journal = Journal::open(&cache, JournalConfig::default()).expect("a journal");
    let offline = Offline::new(cache.clone(), journal.clone(), "edge-1");
    let endpoints = Endpoints::open(&cache, &journal, "edge-1", GRACE);
    (cache, journal, offline, endpoints)
}

fn watch_request(revision: &str) -> (RequestInfo, http::request::Parts) {
    let query = format!("watch=true&resourceVersion={revision}");
    let request = Request::builder()
        .uri(format!("{SLICES}?{query}"))
        .header("accept", "application/vnd.kubernetes.protobuf");
    let (parts, ()) = request.body(()).expect("a request").into_parts();
    (
        RequestInfo::parse(&Method::GET, SLICES, Some(&query)),
        parts,
    )
}

impl World {
    fn new(dir: &Path) -> Self {
        let cloud = Cloud::default();
        let pods: Vec<Shown> = vec![(1, true), (2, true)];
        {
            let mut truth = cloud.truth();
            truth.revision = 10;
            let made = PODS
                .iter()
                .zip(&pods)
                .map(|(name, shown)| pod(name, *shown, 5));
            truth.pods = made.collect();
        }
        cloud.control(false);
        let (cache, journal, offline, endpoints) = open(dir);
        let (first_pods, first_slice) = {
            let truth = cloud.truth();
            (truth.pods.clone(), truth.slices[0].1.clone())
        };
        for (gvr, kind, api_version, items) in [
            (Gvr::new("", "v1", "pods"), "Pod", "v1", first_pods),
            (
                slices(),
                "EndpointSlice",
                "discovery.k8s.io/v1",
                vec![first_slice.clone()],
            ),
        ] {
            let mut learner = cache.list_learner(&Caller::Node, &Query::all(gvr, ""));
            learner.page(SplitList {
                gvk: yurt_wire::Gvk::from_api_version(api_version, &format!("{kind}List")),
                resource_version: "11".into(),
                continue_token: String::new(),
                remaining: None,
                items: items.iter().map(object).collect(),
            });
            learner.finish();
        }
        let mut world = Self {
            cloud,
            online: true,
            cache,
            journal,
            offline,
            endpoints,
            learner: None,
            learned: 11,
            clients: Vec::new(),
            pods,
        };
        for _ in 0..CLIENTS {
            let cursor = Cursor::at("11");
            world.clients.push(Client {
                view: first_slice.clone(),
                revision: "11".into(),
                source: world.stream_of_cloud(&cursor),
                cursor,
                opened_locally: false,
            });
        }
        world
    }

    fn stream_of_cloud(&self, cursor: &Cursor) -> Source {
        let mut corrector = Corrector::new(slices());
        corrector.begin(cursor);
        let at = match cursor.resume() {
            Resume::At(revision) => revision.parse().expect("a number"),
            other => panic!("{other:?}"),
        };
        Source::Cloud { corrector, at }
    }

    /// `None` when the node does not know all that happened since.
    fn stream_of_node(&self, revision: &str) -> Option<Source> {
        let (info, parts) = watch_request(revision);
        let watch = self.offline.watch(&Caller::Node, &info, &parts).ok()?;
        Some(Source::Node(Box::new(watch)))
    }

    /// Where a stream that is open goes on.
    fn source(&self, client: &Client) -> Source {
        match (self.online, client.cursor.resume()) {
            (true, _) => self.stream_of_cloud(&client.cursor),
            (false, Resume::At(revision)) => self.stream_of_node(&revision).unwrap_or_else(|| {
                let (info, parts) = watch_request(&revision);
                let follow = LocalWatch::follow(&self.offline, &Caller::Node, &info, &parts);
                Source::Node(Box::new(follow.expect("a watch").with_what_shows()))
            }),
            (false, other) => panic!("{other:?}"),
        }
    }

    async fn step(&mut self, step: &Step, dir: &Path) {
        match step {
            Step::Cut => self.online = false,
            Step::Heal if !self.online => {
                let _report = self.journal.replay(&self.cloud).await;
                self.online = true;
            }
            Step::Heal => {}
            Step::Report(which, shown) => {
                self.pods[*which] = *shown;
                self.report(PODS[*which], *shown).await;
            }
            Step::Control => self.cloud.control(false),
            Step::ChangeElsewhere => self.cloud.control(true),
            Step::Wait => {
                let with_link = if self.online { GRACE } else { Duration::ZERO };
                self.endpoints.reconcile(with_link);
            }
            Step::Restart => self.restart(dir).await,
            Step::Reconnect(which) => self.reconnect(*which),
        }
        self.learn();
        self.endpoints.reconcile(Duration::ZERO);
        for which in 0..CLIENTS {
            self.follow(which).await;
        }
    }

    async fn report(&mut self, name: &str, (ip, ready): Shown) {
        let status = status((format!("10.0.0.{ip}"), ready));
        if self.online {
            let pod = self.cloud.set_status(name, &status).expect("the pod");
            self.cache.learn_object(
                &Caller::Node,
                &Gvr::new("", "v1", "pods"),
                &object(&pod),
                Asked::default(),
            );
            return;
        }
        let path = format!("/api/v1/namespaces/d/pods/{name}/status");
        let request = Request::patch(&path)
            .header("accept", "application/json")
            .header("content-type", "application/merge-patch+json");
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        let info = RequestInfo::parse(&Method::PATCH, &path, None);
        let body = json!({"status": status}).to_string().into();
        let answer = self
            .offline
            .answer(&Caller::Node, &info, &parts, body)
            .await;
        assert_eq!(answer.status(), 200);
    }

    async fn restart(&mut self, dir: &Path) {
        self.learner = None;
        // Streams end with the hub.
        for which in 0..CLIENTS {
            self.follow(which).await;
        }
        self.cache.flush().await.expect("flush");
        let unused = dir.join("unused");
        let (cache, journal, offline, endpoints) = open(&unused);
        drop((
            std::mem::replace(&mut self.endpoints, endpoints),
            std::mem::replace(&mut self.offline, offline),
            std::mem::replace(&mut self.journal, journal),
            std::mem::replace(&mut self.cache, cache),
        ));
        for client in &mut self.clients {
            // Lets go of the store.
            let mut corrector = Corrector::new(slices());
            corrector.begin(&client.cursor);
            client.source = Source::Cloud { corrector, at: 0 };
        }
        let (cache, journal, offline, endpoints) = open(&dir.join("cache"));
        (self.cache, self.journal, self.offline, self.endpoints) =
            (cache, journal, offline, endpoints);
        for which in 0..CLIENTS {
            self.reconnect(which);
        }
    }

    /// The client comes back with the revision of the last event that it saw; it lists anew when that is too old.
    fn reconnect(&mut self, which: usize) {
        let mut revision = self.clients[which].revision.clone();
        let source = if self.online {
            self.stream_of_cloud(&Cursor::at(&revision))
        } else {
            self.stream_of_node(&revision).unwrap_or_else(|| {
                let query = Query::all(slices(), "");
                let listing = self.cache.list(&Caller::Node, &query).expect("a list");
                revision = listing.resource_version;
                let slice = listing.items[0].to_json_value().expect("a slice");
                self.clients[which].view = slice;
                self.stream_of_node(&revision).expect("a watch")
            })
        };
        let client = &mut self.clients[which];
        client.cursor = Cursor::at(&revision);
        client.revision = revision;
        client.opened_locally = !self.online;
        client.source = source;
    }

    /// The hub follows the cloud's slices while it can.
    fn learn(&mut self) {
        if !self.online {
            self.learner = None;
            return;
        }
        let (cache, learned) = (&self.cache, self.learned);
        let query = Query::all(slices(), "");
        let learner = self.learner.get_or_insert_with(|| {
            cache.watch_learner(&Caller::Node, &query, &learned.to_string(), false)
        });
        for (revision, slice) in &self.cloud.truth().slices {
            if *revision > self.learned {
                let (kind, object) = (EventType::Modified, object(slice));
                learner.event(&Event { kind, object });
                self.learned = *revision;
            }
        }
    }

    /// A client is told what there is to tell, as its relay does it.
    async fn follow(&mut self, which: usize) {
        let switched = match (&self.clients[which].source, self.online) {
            (Source::Cloud { .. }, false) => true,
            (Source::Node(_), true) => {
                self.drain(which).await;
                true
            }
            _ => false,
        };
        if switched {
            let client = &mut self.clients[which];
            if let Source::Node(watch) = &client.source
                && client.opened_locally
            {
                client.opened_locally = false;
                client.cursor = Cursor::at(&watch.last_revision());
            }
            self.clients[which].source = self.source(&self.clients[which]);
        }
        self.drain(which).await;
    }

    async fn drain(&mut self, which: usize) {
        let client = &mut self.clients[which];
        match &mut client.source {
            Source::Node(watch) => {
                while let Ok(Some(frame)) = tokio::time::timeout(Duration::ZERO, watch.next()).await
                {
                    let mut frames = FrameDecoder::new(Encoding::Protobuf, 1 << 20);
                    frames.push(frame.bytes);
                    let frame = frames.next_frame().expect("frames").expect("a frame");
                    let event = frame.event.expect("an event");
                    assert_eq!(event.kind, EventType::Modified);
                    client.view = event.object.to_json_value().expect("a slice");
                    client.revision = event
                        .object
                        .key()
                        .expect("a key")
                        .resource_version
                        .into_owned();
                }
            }
            Source::Cloud { corrector, at } => {
                for (revision, slice) in &self.cloud.truth().slices {
                    if revision > at {
                        *at = *revision;
                        corrector.told("d", "s");
                        client
                            .cursor
                            .saw(EventType::Modified, &revision.to_string(), false);
                        client.view = slice.clone();
                        client.revision = revision.to_string();
                    }
                }
                let (due, last) = self.cache.corrections(&slices(), corrector.after);
                corrector.after = last;
                for correction in due {
                    if corrector.concerns(&correction.key, correction.revision) {
                        let told = &correction.change.object;
                        client.view = told.to_json_value().expect("a slice");
                        client.revision = correction.revision.to_string();
                    }
                }
            }
        }
    }

    /// Endpoints by name: address and whether it is ready.
    fn seen(view: &Value, name: &str) -> Option<(Value, Value)> {
        let endpoints = view["endpoints"].as_array()?;
        let of = endpoints
            .iter()
            .find(|endpoint| endpoint["targetRef"]["name"] == name)?;
        Some((
            of["addresses"][0].clone(),
            of["conditions"]["ready"].clone(),
        ))
    }

    async fn run(steps: &[Step]) -> Result<(), TestCaseError> {
        let dir = tempfile::tempdir().map_err(|error| TestCaseError::fail(error.to_string()))?;
        let mut world = Self::new(&dir.path().join("cache"));
        for step in steps {
            world.step(step, dir.path()).await;
            let written = world.journal.waiting_keys(&Gvr::new("", "v1", "pods"));
            for (name, (ip, ready)) in PODS.iter().zip(&world.pods) {
                let waits = written.contains(&format!("d/{name}").into_boxed_str());
                if world.online || !waits {
                    continue;
                }
                let cloud = world.cloud.truth().pods.clone();
                let known = cloud.iter().find(|pod| pod["metadata"]["name"] == *name);
                let status = status((format!("10.0.0.{ip}"), *ready));
                if known.is_some_and(|pod| pod["status"] == status) {
                    continue;
                }
                let want = Some((json!(format!("10.0.0.{ip}")), json!(*ready)));
                for client in &world.clients {
                    prop_assert_eq!(
                        Self::seen(&client.view, name),
                        want.clone(),
                        "while cut, after {:?}",
                        step
                    );
                }
            }
        }
        for step in [Step::Heal, Step::Wait, Step::Wait, Step::Wait] {
            world.step(&step, dir.path()).await;
        }
        prop_assert_eq!(world.journal.pending(), 0);
        let (_, want) = world
            .cloud
            .truth()
            .slices
            .last()
            .cloned()
            .unwrap_or_default();
        for client in &world.clients {
            prop_assert_eq!(&client.view["endpoints"], &want["endpoints"]);
        }
        Ok(())
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Cut),
        2 => Just(Step::Heal),
        4 => (0..PODS.len(), (1..5u8, any::<bool>())).prop_map(|(pod, shown)| Step::Report(pod, shown)),
        2 => Just(Step::Control),
        1 => Just(Step::ChangeElsewhere),
        1 => Just(Step::Wait),
        1 => Just(Step::Restart),
        2 => (0..CLIENTS).prop_map(Step::Reconnect),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn w4_clients_end_with_the_clouds_state(steps in proptest::collection::vec(step(), 1..20)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|error| TestCaseError::fail(error.to_string()))?;
        runtime.block_on(World::run(&steps))?;
    }
}
