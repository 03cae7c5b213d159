use super::*;
use crate::{Objects, Standing, collections::CONFIG_MAPS, kube::Call};
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use yurt_transport::{Body, channel, full};

/// What kind of server there is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Age {
    /// Refuses initial events, as 1.22 to 1.31 do, with this code.
    Refuses(u16),
    /// Does not know the parameter: tells what there is, and no end of it.
    Ignores,
    /// Ends every watch at once.
    Closes,
    /// Does not serve the resource, until it is said otherwise.
    Serves(bool),
}

/// A server of config maps that remembers what it was asked.
struct Server {
    age: Age,
    objects: BTreeMap<String, u64>,
    revision: u64,
    asked: Vec<String>,
    /// Pages that are refused with 410 once they are not the first.
    expires: u32,
    streams: Vec<tokio::sync::mpsc::Sender<Result<bytes::Bytes, yurt_transport::BoxError>>>,
}

type Shared = Arc<Mutex<Server>>;

fn object(name: &str, revision: u64) -> Value {
    json!({"metadata": {"namespace": "default", "name": name, "uid": name, "resourceVersion": revision.to_string()}})
}

fn refused(code: u16, message: &str) -> http::Response<Body> {
    let body = json!({"kind": "Status", "code": code, "message": message}).to_string();
    let response = http::Response::builder().status(code);
    response.body(full(body)).expect("a response")
}

fn line(kind: &str, object: &Value) -> Result<bytes::Bytes, yurt_transport::BoxError> {
    Ok(format!("{}\n", json!({"type": kind, "object": object})).into())
}

impl Server {
    fn list(&mut self, query: &str) -> http::Response<Body> {
        let parameter = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find_map(|(key, value)| (key == name).then(|| value.to_owned()))
        };
        let after = parameter("continue");
        if after.is_some() && self.expires > 0 {
            self.expires -= 1;
            return refused(410, "The provided continue parameter is too old");
        }
        let limit: usize = parameter("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
        let rest = self
            .objects
            .iter()
            .filter(|(name, _)| Some(*name) > after.as_ref());
        let page: Vec<(&String, &u64)> = rest.clone().take(limit).collect();
        let more = page.last().filter(|_| rest.count() > limit);
        let mut list = json!({"metadata": {"resourceVersion": self.revision.to_string()},
            "items": page.iter().map(|(name, at)| object(name, **at)).collect::<Value>()});
        if let Some((name, _)) = more {
            list["metadata"]["continue"] = name.as_str().into();
        }
        http::Response::new(full(list.to_string()))
    }

    fn answer(&mut self, query: &str) -> http::Response<Body> {
        self.asked.push(query.to_owned());
        if self.age == Age::Serves(false) {
            return refused(404, "404 page not found");
        }
        if !query.contains("watch=true") {
            return self.list(query);
        }
        if query.contains("sendInitialEvents") {
            match self.age {
                Age::Refuses(code) => {
                    return refused(
                        code,
                        "resourceVersionMatch: Forbidden: sendInitialEvents is forbidden for watch",
                    );
                }
                Age::Closes => return http::Response::new(full("")),
                Age::Ignores | Age::Serves(_) => {
                    let (sender, body) = channel(16);
                    for (name, at) in &self.objects {
                        let _ = sender.try_send(line("ADDED", &object(name, *at)));
                    }
                    if self.age == Age::Serves(true) {
                        let end = json!({"metadata": {"resourceVersion": self.revision.to_string(),
                            "annotations": {"k8s.io/initial-events-end": "true"}}});
                        let _ = sender.try_send(line("BOOKMARK", &end));
                    }
                    self.streams.push(sender);
                    return http::Response::new(body);
                }
            }
        }
        let (sender, body) = channel(16);
        self.streams.push(sender);
        http::Response::new(body)
    }
}

fn follow_all(age: Age, objects: usize) -> (Shared, Arc<Objects>, CancellationToken) {
    let named = |n: usize| (format!("{n:05}"), n as u64 + 1);
    let server = Arc::new(Mutex::new(Server {
        age,
        objects: (0..objects).map(named).collect(),
        revision: objects as u64 + 1,
        asked: Vec::new(),
        expires: 0,
        streams: Vec::new(),
    }));
    let known = server.clone();
    let call: Call = Arc::new(move |request| {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let answer = known.lock().unwrap().answer(&query);
        Box::pin(async move { answer })
    });
    let kube = Kube::in_process(call, "token", Duration::from_secs(30));
    let objects = Arc::new(Objects::new(CONFIG_MAPS, Scope::default()));
    let shutdown = CancellationToken::new();
    let (following, end) = (objects.clone(), shutdown.clone());
    tokio::spawn(async move { following.follow(&kube, end).await });
    (server, objects, shutdown)
}

/// The server tells a change at the newest watch.
fn tell(server: &Shared, kind: &str, object: &Value) {
    let server = server.lock().unwrap();
    let stream = server.streams.last().expect("a watch");
    stream.try_send(line(kind, object)).expect("told");
}

#[tokio::test(start_paused = true)]
async fn servers_that_refuse_initial_events_are_asked_for_pages() {
    for code in [400, 403, 422, 500] {
        let (server, objects, _) = follow_all(Age::Refuses(code), 1201);
        objects.synced().await;
        assert_eq!(objects.list("").len(), 1201);
        assert_eq!(objects.list("")[0]["kind"], "ConfigMap", "as in a watch");
        tokio::time::sleep(Duration::from_secs(1)).await;
        tell(&server, "ADDED", &object("new", 1300));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(objects.get(&Key::new("default", "new")).is_some());
        let asked = server.lock().unwrap().asked.clone();
        // Once by events, three pages, one watch: no more in a minute.
        assert_eq!(asked.len(), 5, "{asked:?}");
        assert!(
            asked[1..4]
                .iter()
                .all(|query| query.starts_with("limit=500"))
        );
        assert!(asked[4].contains("resourceVersion=1202"), "{}", asked[4]);
    }
}

#[tokio::test(start_paused = true)]
async fn servers_that_ignore_initial_events_are_not_waited_for_for_ever() {
    let began = tokio::time::Instant::now();
    let (server, objects, _) = follow_all(Age::Ignores, 3);
    objects.synced().await;
    assert!(began.elapsed() < SILENCE + Duration::from_secs(2));
    assert_eq!(objects.list("").len(), 3);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(server.lock().unwrap().asked.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_went_while_nobody_watched_is_gone() {
    let (server, objects, _) = follow_all(Age::Refuses(422), 3);
    objects.synced().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    {
        let mut server = server.lock().unwrap();
        server.objects.remove("00001");
        server.revision = 50;
    }
    let gone = json!({"code": 410, "reason": "Expired", "message": "too old resource version"});
    tell(&server, "ERROR", &gone);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let names: Vec<Key> = objects
        .list("")
        .iter()
        .map(|object| Key::of(object))
        .collect();
    assert_eq!(
        names,
        ["00000", "00002"].map(|name| Key::new("default", name))
    );
}

#[tokio::test(start_paused = true)]
async fn pages_that_expire_again_and_again_are_asked_for_as_one() {
    let (server, objects, _) = follow_all(Age::Refuses(422), 700);
    server.lock().unwrap().expires = 10;
    objects.synced().await;
    assert_eq!(objects.list("").len(), 700);
    let asked = server.lock().unwrap().asked.clone();
    assert!(asked.contains(&"resourceVersion=0".to_owned()), "{asked:?}");
    assert!(asked.len() < 10, "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_served_yet_is_waited_for() {
    let (server, objects, _) = follow_all(Age::Serves(false), 3);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(objects.standing(), Standing::Absent);
    let asked = server.lock().unwrap().asked.len();
    assert!(
        (60..=260).contains(&asked),
        "{asked} requests in ten minutes"
    );
    server.lock().unwrap().age = Age::Serves(true);
    objects.synced().await;
    assert_eq!(objects.standing(), Standing::Complete);
    assert_eq!(objects.list("").len(), 3);
    // It goes on from where it is when the server vanishes for a while.
    server.lock().unwrap().age = Age::Serves(false);
    server.lock().unwrap().streams.clear();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(objects.standing(), Standing::Complete);
    assert_eq!(objects.list("").len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_every_watch_is_not_flooded() {
    let (server, _, _) = follow_all(Age::Closes, 3);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let asked = server.lock().unwrap().asked.len();
    assert!(
        (60..=260).contains(&asked),
        "{asked} requests in ten minutes"
    );
}
