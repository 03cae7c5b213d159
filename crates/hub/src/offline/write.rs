//! Writes without the cloud: validated, applied to the node's view, journalled, acknowledged. What is taken and what is refused is
//! the table of `docs/offline.md`; `rules` is that table.

mod removal;
mod rules;

use super::{
    Offline, now,
    represent::{Wanted, malformed},
};
use crate::{
    cache::{
        Lookup,
        overlay::{Layer, Overlay},
        record::index_key,
    },
    caller::Caller,
    journal::{
        AppendError,
        change::Change,
        entry::{Entry, MIRROR, Write},
        fill_created, name_uid,
    },
};
use bytes::Bytes;
use http::{Response, StatusCode, request::Parts};
pub(super) use rules::decode_object;
use rules::{
    Kind, Refusal, bad_request, bare, check_identity, decide, media_type, metadata, only_metadata,
    patched, take,
};
use serde_json::{Value, json};
use std::sync::Arc;
use yurt_transport::Body;
use yurt_wire::{Encoding, Gvk, Object, RequestInfo, Status, Verb};

fn encode_like(value: &Value, encoding: Encoding) -> Result<Object, Box<Status>> {
    Object::from_json_value(value, encoding)
        .or_else(|_| Object::from_json_value(value, Encoding::Json))
        .map_err(|error| malformed(&error))
}

fn not_kept(error: &AppendError) -> Box<Status> {
    Box::new(match error {
        AppendError::Store(_) => Status::internal_error(format!(
            "the write could not be made durable on the node and was not taken: {error}"
        )),
        AppendError::Full(_) => Status::service_unavailable(error.to_string()),
        AppendError::Encode(_) => Status::internal_error(error),
    })
}

impl Offline {
    pub(super) async fn write(
        &self,
        caller: &Caller,
        info: &RequestInfo,
        parts: &Parts,
        body: Bytes,
    ) -> Result<Response<Body>, Box<Status>> {
        let wanted = Wanted::of(&parts.headers, info)?;
        let kind = match decide(caller, &self.node_name, info) {
            Ok(kind) => kind,
            Err(refusal) => {
                self.known_already(caller, info, parts, &body)?;
                return Err(self.refused(info, refusal.why()));
            }
        };
        let (offline, caller, info) = (self.clone(), caller.clone(), info.clone());
        let parts = parts.clone();
        // In a task: a client that goes meanwhile must not leave a write that is on the disk and nowhere else.
        let kept = tokio::spawn(async move {
            let _write = offline.journal.begin_write().await;
            match (kind, info.verb) {
                (Kind::PodRemoval, _) => offline.remove(&caller, &info, &parts, &body).await,
                (_, Verb::Create) => offline.create(kind, &caller, &info, &parts, &body).await,
                _ => offline.modify(kind, &caller, &info, &parts, &body).await,
            }
        });
        let kept = kept.await;
        let (code, object) = kept.map_err(|error| Box::new(Status::internal_error(error)))??;
        let gvk = super::gvk_of(&object)?;
        wanted
            .single(code, &object, &gvk, now())
            .map_err(|error| malformed(&error))
    }

    /// Creating what exists fails the same way with and without the cloud. A kubelet that starts anew relies on it: it takes
    /// AlreadyExists for its Node (and its mirror pods) as done.
    fn known_already(
        &self,
        caller: &Caller,
        info: &RequestInfo,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<(), Box<Status>> {
        if info.verb != Verb::Create || !info.subresource.is_empty() {
            return Ok(());
        }
        let Ok(object) = decode_object(parts, body) else {
            return Ok(());
        };
        let name = metadata(&object, "name");
        if name.is_empty() {
            return Ok(());
        }
        match self.cache.get(caller, &info.gvr(), &info.namespace, name) {
            Lookup::Found(_) => Err(Box::new(Status::already_exists(
                &info.group,
                &info.resource,
                name,
            ))),
            _ => Ok(()),
        }
    }

    async fn create(
        &self,
        kind: Kind,
        caller: &Caller,
        info: &RequestInfo,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<(StatusCode, Object), Box<Status>> {
        let mut object = decode_object(parts, body)?;
        if kind == Kind::MirrorPod && !self.is_own_mirror(&object) {
            self.known_already(caller, info, parts, body)?;
            return Err(self.refused(info, Refusal::NotWhileAway.why()));
        }
        let gvk = Gvk {
            group: info.group.clone(),
            version: info.version.clone(),
            kind: match kind {
                Kind::NodeLease => "Lease".into(),
                Kind::MirrorPod => "Pod".into(),
                _ => "Event".into(),
            },
        };
        let sent_kind = object
            .get("kind")
            .and_then(Value::as_str)
            .unwrap_or(&gvk.kind);
        if sent_kind != gvk.kind {
            return Err(bad_request(format!(
                "the object provided is a {sent_kind}, not a {}",
                gvk.kind
            )));
        }
        let map = object
            .as_object_mut()
            .ok_or_else(|| bad_request("the object provided is not an object"))?;
        map.insert("apiVersion".into(), gvk.api_version().into());
        map.insert("kind".into(), gvk.kind.clone().into());
        let meta = map.entry("metadata").or_insert_with(|| json!({}));
        let meta = meta
            .as_object_mut()
            .ok_or_else(|| bad_request("metadata is not an object"))?;
        let namespace = meta
            .entry("namespace")
            .or_insert_with(|| info.namespace.as_str().into());
        if namespace.as_str() == Some("") {
            *namespace = info.namespace.as_str().into();
        }
        if namespace.as_str() != Some(info.namespace.as_str()) {
            return Err(bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        if meta
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .is_empty()
        {
            let prefix = meta
                .get("generateName")
                .and_then(Value::as_str)
                .unwrap_or_default();
            if prefix.is_empty() {
                return Err(bad_request("name or generateName is required"));
            }
            let name = format!("{prefix}{}", suffix());
            meta.insert("name".into(), name.into());
        }
        let name = metadata(&object, "name").to_owned();
        if name.len() > 253 || name.contains(['/', '%', '?', '#', '\0']) {
            return Err(bad_request(format!("{name:?} is not a valid name")));
        }
        if kind == Kind::NodeLease && name != *self.node_name {
            return Err(self.refused(info, Refusal::NotOurs.why()));
        }
        if let Lookup::Found(_) | Lookup::Forbidden =
            self.cache.get(caller, &info.gvr(), &info.namespace, &name)
        {
            return Err(Box::new(Status::already_exists(
                &info.group,
                &info.resource,
                &name,
            )));
        }
        let mut object = bare(&object);
        if kind == Kind::MirrorPod {
            object["status"] = json!({"phase": "Pending"});
        }
        // What cannot be sent later must not be taken now.
        let encoding = Encoding::from_content_type(&media_type(parts)).unwrap_or(Encoding::Json);
        encode_like(&object, encoding)?;
        let entry = Entry {
            write: Write::create(object.clone()),
            ..self.entry(info, &gvk, &name)
        };
        let high = self.cache.high_revision();
        let show = |entry: &Entry| {
            let mut shown = object.clone();
            if let Write::Create { uid, .. } = &entry.write {
                fill_created(&mut shown, uid, high, entry.at);
            }
            shown
        };
        if is_dry_run(info) {
            return Ok((StatusCode::CREATED, encode_like(&show(&entry), encoding)?));
        }
        let mut answer = None;
        self.keep(kind, entry, |entry| {
            let shown = encode_like(&show(entry), encoding).ok()?;
            answer = Some(shown.clone());
            Some(Overlay {
                object: shown,
                layer: Layer::Created,
            })
        })
        .await?;
        let object =
            answer.ok_or_else(|| Box::new(Status::internal_error("the object cannot be shown")))?;
        Ok((StatusCode::CREATED, object))
    }

    async fn modify(
        &self,
        kind: Kind,
        caller: &Caller,
        info: &RequestInfo,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<(StatusCode, Object), Box<Status>> {
        let current_object = match self.lookup(caller, info) {
            Ok(object) => object,
            // client-go creates an event whose patch finds nothing; so the count starts anew rather than being lost.
            Err(_) if kind == Kind::Event => {
                return Err(Box::new(Status::not_found(
                    &info.group,
                    &info.resource,
                    &info.name,
                )));
            }
            Err(status) => return Err(status),
        };
        let gvk = super::gvk_of(&current_object)?;
        let current = current_object
            .to_json_value()
            .map_err(|error| malformed(&error))?;
        if kind == Kind::PodStatus && !self.is_bound_here(&current) {
            return Err(self.refused(info, Refusal::NotOurs.why()));
        }
        let sent = match info.verb {
            Verb::Patch => patched(&gvk, &current, parts, body)?,
            _ => decode_object(parts, body)?,
        };
        // The hub renews the lease beside the kubelet, which writes it on whatever it read last.
        if kind != Kind::NodeLease {
            check_identity(info, &current, &sent)?;
        }
        if kind == Kind::NodeMetadata && !only_metadata(&current, &sent) {
            return Err(self.refused(
                info,
                "beyond labels and annotations is not accepted while the cloud is away",
            ));
        }
        let next = take(kind, &current, &sent);
        if next == current {
            return Ok((StatusCode::OK, current_object));
        }
        let object = encode_like(&next, current_object.encoding)?;
        if is_dry_run(info) {
            return Ok((StatusCode::OK, object));
        }
        let only_here = || {
            self.journal
                .creates(&info.gvr(), &info.namespace, &info.name)
        };
        let recreate =
            (matches!(kind, Kind::Event | Kind::NodeLease) || only_here()).then(|| bare(&next));
        let change = Change::between(&current, &next);
        let entry = Entry {
            write: Write::Change { change, recreate },
            ..self.entry(info, &gvk, &info.name)
        };
        let shown = object.clone();
        self.keep(kind, entry, |entry| {
            let layer = match &entry.write {
                Write::Change { change, .. } => Layer::Changed(Arc::new(change.clone())),
                Write::Create { .. } | Write::Delete { .. } => Layer::Created,
            };
            Some(Overlay {
                object: shown,
                layer,
            })
        })
        .await?;
        Ok((StatusCode::OK, object))
    }

    /// Keeps a write: until the cloud has it, or, for a heartbeat, which is worth nothing later, until the hub renewed the lease.
    async fn keep(
        &self,
        kind: Kind,
        mut entry: Entry,
        view: impl FnOnce(&Entry) -> Option<Overlay>,
    ) -> Result<(), Box<Status>> {
        if kind != Kind::NodeLease {
            let kept = self.journal.append(entry, view).await;
            return kept.map_err(|error| not_kept(&error));
        }
        name_uid(&mut entry);
        if let Some(mut overlay) = view(&entry) {
            let (gvr, key) = (entry.gvr(), index_key(&entry.namespace, &entry.name));
            if self.cache.shared().read_stored(&gvr, &key).is_none() {
                // The cloud has none to put a change on.
                overlay.layer = Layer::Created;
            }
            self.cache.set_overlay(&gvr, &key, overlay, true);
        }
        Ok(())
    }

    /// An entry about an object; its write is to be filled in.
    fn entry(&self, info: &RequestInfo, gvk: &Gvk, name: &str) -> Entry {
        let namespace = if info.resource == "nodes" {
            String::new()
        } else {
            info.namespace.clone()
        };
        Entry {
            order: 0,
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            kind: gvk.kind.clone(),
            namespace,
            name: name.to_owned(),
            at: now(),
            write: Write::create(Value::Null),
        }
    }

    /// Whether a pod is the image of a static pod of this node.
    fn is_own_mirror(&self, pod: &Value) -> bool {
        pod.pointer("/metadata/annotations")
            .is_some_and(|annotations| annotations.get(MIRROR).is_some())
            && self.is_bound_here(pod)
    }

    fn is_bound_here(&self, pod: &Value) -> bool {
        let node = pod.pointer("/spec/nodeName").and_then(Value::as_str);
        node == Some(&*self.node_name)
    }
}

/// Whether the table has a place for the write, and it is meant.
pub(super) fn keeps(caller: &Caller, node_name: &str, info: &RequestInfo) -> bool {
    !is_dry_run(info) && decide(caller, node_name, info).is_ok()
}

pub(super) fn is_dry_run(info: &RequestInfo) -> bool {
    info.query_value("dryRun")
        .is_some_and(|value| value == "All")
}

/// Five characters as a server appends them to `generateName`.
fn suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..5)
        .map(|_| char::from(ALPHABET[fastrand::usize(..ALPHABET.len())]))
        .collect()
}
