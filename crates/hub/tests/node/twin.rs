//! An API server in memory, for replays.

use super::fixture_json;
use bytes::Bytes;
use http::{Method, Request, Response};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Mutex, MutexGuard},
    time::Duration,
};
use yurt_hub::journal::Cloud;
use yurt_transport::ClientError;

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-1";

/// An API server in memory: objects by path, optimistic locking, and faults.
#[derive(Default)]
pub(crate) struct Twin {
    state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) objects: BTreeMap<String, Value>,
    pub(crate) revision: u64,
    pub(crate) log: Vec<String>,
    /// Given instead of the answer to the next request of the method.
    pub(crate) faults: Vec<(Method, u16)>,
    /// The link goes after this many requests.
    pub(crate) cut_after: Option<usize>,
}

impl Twin {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the state")
    }
    pub(crate) fn recorded() -> Self {
        let twin = Self::default();
        twin.state().revision = 1000;
        for (file, prefix) in [
            ("list-pods.json", "/api/v1/namespaces/default/pods/"),
            ("list-nodes.json", "/api/v1/nodes/"),
            ("list-events.json", "/api/v1/namespaces/default/events/"),
        ] {
            for item in fixture_json(file)["items"].as_array().expect("items") {
                let name = item["metadata"]["name"].as_str().expect("a name");
                twin.state()
                    .objects
                    .insert(format!("{prefix}{name}"), item.clone());
            }
        }
        let leases = fixture_json("list-leases.json");
        twin.state()
            .objects
            .insert(LEASE.to_owned(), leases["items"][0].clone());
        twin
    }
    pub(crate) fn object(&self, path: &str) -> Value {
        self.state().objects.get(path).cloned().unwrap_or_default()
    }
    pub(crate) fn change(&self, path: &str, edit: impl FnOnce(&mut Value)) {
        let mut state = self.state();
        state.revision += 1;
        let revision = state.revision.to_string();
        let object = state.objects.get_mut(path).expect("an object");
        edit(object);
        object["metadata"]["resourceVersion"] = revision.into();
    }

    fn answer(&self, request: &Request<Bytes>) -> (u16, Value) {
        let mut state = self.state();
        let path = request.uri().path().to_owned();
        let method = request.method().clone();
        state.log.push(format!("{method} {path}"));
        if state.faults.first().is_some_and(|(of, _)| *of == method) {
            return (state.faults.remove(0).1, json!({"message": "as told"}));
        }
        let at = path.strip_suffix("/status").unwrap_or(&path).to_owned();
        match method {
            Method::GET => match state.objects.get(&at) {
                Some(object) => (200, object.clone()),
                None => (404, json!({"message": "not found"})),
            },
            Method::PUT => {
                let sent: Value = serde_json::from_slice(request.body()).expect("JSON");
                let Some(known) = state.objects.get(&at).cloned() else {
                    return (404, json!({"message": "not found"}));
                };
                if known["metadata"]["resourceVersion"] != sent["metadata"]["resourceVersion"] {
                    return (409, json!({"message": "the object has been modified"}));
                }
                state.revision += 1;
                let mut next = if at == path {
                    sent.clone()
                } else {
                    let mut next = known;
                    next["status"] = sent["status"].clone();
                    next
                };
                next["metadata"]["resourceVersion"] = state.revision.to_string().into();
                state.objects.insert(at, next.clone());
                (200, next)
            }
            Method::POST => {
                let mut sent: Value = serde_json::from_slice(request.body()).expect("JSON");
                assert_eq!(sent["metadata"].get("uid"), None, "a server gives it");
                let key = format!(
                    "{path}/{}",
                    sent["metadata"]["name"].as_str().expect("a name")
                );
                if path.contains("/gone/") {
                    return (404, json!({"message": "namespaces \"gone\" not found"}));
                }
                if state.objects.contains_key(&key) {
                    return (409, json!({"message": "already exists"}));
                }
                state.revision += 1;
                sent["metadata"]["resourceVersion"] = state.revision.to_string().into();
                sent["metadata"]["uid"] = format!("uid-{}", state.revision).into();
                state.objects.insert(key, sent.clone());
                (201, sent)
            }
            Method::DELETE => {
                let sent: Value = serde_json::from_slice(request.body()).expect("JSON");
                let Some(known) = state.objects.get(&at) else {
                    return (404, json!({"message": "not found"}));
                };
                let uid = &sent["preconditions"]["uid"];
                if !uid.is_null() && *uid != known["metadata"]["uid"] {
                    return (
                        409,
                        json!({"message": "the UID in the precondition differs"}),
                    );
                }
                state.revision += 1;
                (200, state.objects.remove(&at).expect("looked up"))
            }
            _ => (405, json!({})),
        }
    }
}

impl Cloud for Twin {
    fn call(
        &self,
        request: Request<Bytes>,
        timeout: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, ClientError>> + Send + '_>> {
        Box::pin(async move {
            let cut = {
                let mut state = self.state();
                match &mut state.cut_after {
                    Some(0) => true,
                    Some(left) => {
                        *left -= 1;
                        false
                    }
                    None => false,
                }
            };
            if cut {
                return Err(ClientError::Timeout {
                    authority: "twin".into(),
                    after: timeout,
                });
            }
            let (code, body) = self.answer(&request);
            Ok(Response::builder()
                .status(code)
                .body(body.to_string().into())
                .expect("a response"))
        })
    }
}
