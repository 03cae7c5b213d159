//! How an entry shows in the cache's view.

use super::entry::{Entry, Write};
use crate::cache::{
    Cache,
    overlay::{Layer, Overlay},
};
use std::sync::Arc;
use yurt_wire::{Encoding, Object};

/// What an entry puts on top of the cloud's state.
pub(super) fn overlay_of(cache: &Cache, entry: &Entry) -> Option<Overlay> {
    match &entry.write {
        Write::Create { object, uid, .. } => {
            let mut object = object.clone();
            fill_created(&mut object, uid, cache.high_revision(), entry.at);
            let encoded = Object::from_json_value(&object, Encoding::Protobuf)
                .or_else(|_| Object::from_json_value(&object, Encoding::Json))
                .ok()?;
            Some(Overlay {
                object: encoded,
                layer: Layer::Created,
            })
        }
        Write::Change { change, .. } => {
            let stored = cache.view(&entry.gvr(), &entry.namespace, &entry.name)?;
            Some(Overlay {
                object: change.rebase(&stored)?,
                layer: Layer::Changed(Arc::new(change.clone())),
            })
        }
        Write::Delete { uid, .. } => {
            let object = cache.view(&entry.gvr(), &entry.namespace, &entry.name)?;
            let same = object.meta().is_ok_and(|meta| meta.uid == *uid);
            same.then(|| Overlay {
                object,
                layer: Layer::Deleted { uid: uid.clone() },
            })
        }
    }
}

/// The uid of an object that was created here: follows from its name and the moment, so that it is the same after a restart.
fn local_uid(name: &str, at: i64, order: u64) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    hash.update(name);
    hash.update(at.to_le_bytes());
    hash.update(order.to_le_bytes());
    let digest = hash.finalize();
    let hex: String = digest[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!(
        "{}-{}-8{}-a{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[13..16],
        &hex[17..20],
        &hex[20..32]
    )
}

/// Gives an entry that creates something a uid for it, unless it has one.
pub(crate) fn name_uid(entry: &mut Entry) {
    if let Write::Create { uid, .. } = &mut entry.write
        && uid.is_empty()
    {
        *uid = local_uid(&entry.name, entry.at, entry.order);
    }
}

/// Gives an object that was created here what a server fills in. The revision is one that the cloud knows.
pub(crate) fn fill_created(object: &mut serde_json::Value, uid: &str, high: u64, at: i64) {
    if let Some(metadata) = object
        .get_mut("metadata")
        .and_then(serde_json::Value::as_object_mut)
    {
        metadata.insert("uid".into(), uid.into());
        metadata.insert("resourceVersion".into(), high.max(1).to_string().into());
        let created = jiff::Timestamp::from_second(at).unwrap_or_default();
        metadata.insert("creationTimestamp".into(), created.to_string().into());
    }
}
