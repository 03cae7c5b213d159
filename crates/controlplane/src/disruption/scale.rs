//! How many pods the controllers of some pods want: of the kinds known here by their objects, of others by their subresource
//! `scale`.

use super::{
    super::{
        Collection, Context, Key,
        collections::{DEPLOYMENTS, REPLICA_SETS, REPLICATION_CONTROLLERS, STATEFUL_SETS},
        controller_of,
    },
    Expected,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// In sum, each controller once. A pod whose controller cannot be asked makes the sum meaningless: an error, in words.
pub(super) async fn expected(context: &Context, pods: &[Arc<Value>]) -> Result<Expected, String> {
    let mut wants: BTreeMap<String, i64> = BTreeMap::new();
    let mut unmanaged = 0;
    let mut asked = BTreeSet::new();
    for p in pods {
        let namespace = p["metadata"]["namespace"].as_str().unwrap_or_default();
        let name = p["metadata"]["name"].as_str().unwrap_or_default();
        let Some(owner) = controller_of(p) else {
            unmanaged += 1;
            continue;
        };
        let uid = owner["uid"].as_str().unwrap_or_default();
        if !asked.insert(uid.to_owned()) {
            continue;
        }
        let found = match known(context, namespace, owner) {
            Some(found) => Some(found),
            None => scaled(context, namespace, owner).await?,
        };
        let (uid, count) =
            found.ok_or_else(|| format!("found no controllers for pod \"{name}\""))?;
        wants.insert(uid, count);
    }
    Ok(Expected {
        replicas: wants.values().sum(),
        unmanaged,
    })
}

fn wants(object: &Value) -> (String, i64) {
    let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
    (
        uid.to_owned(),
        object["spec"]["replicas"].as_i64().unwrap_or(1),
    )
}

fn owner_in(
    context: &Context,
    of: &Collection,
    namespace: &str,
    owner: &Value,
) -> Option<Arc<Value>> {
    if owner["kind"] != *of.kind || owner["apiVersion"] != *of.api_version {
        return None;
    }
    let key = Key::new(namespace, owner["name"].as_str()?);
    let found = context.objects(of).get(&key)?;
    (found["metadata"]["uid"] == owner["uid"]).then_some(found)
}

/// The UID and the wish of a controller of a known kind; of a deployment's replica set, the deployment's.
fn known(context: &Context, namespace: &str, owner: &Value) -> Option<(String, i64)> {
    if let Some(set) = owner_in(context, &REPLICA_SETS, namespace, owner) {
        return match controller_of(&set) {
            Some(above) if above["kind"] == "Deployment" => {
                let deployment = owner_in(context, &DEPLOYMENTS, namespace, above)?;
                Some(wants(&deployment))
            }
            _ => Some(wants(&set)),
        };
    }
    [&STATEFUL_SETS, &REPLICATION_CONTROLLERS]
        .iter()
        .find_map(|of| owner_in(context, of, namespace, owner))
        .map(|found| wants(&found))
}

/// The UID and the wish of a controller of any kind that can be scaled. `None` when it is gone.
async fn scaled(
    context: &Context,
    namespace: &str,
    owner: &Value,
) -> Result<Option<(String, i64)>, String> {
    let text = |field: &str| owner[field].as_str().unwrap_or_default();
    let (version, kind, name) = (text("apiVersion"), text("kind"), text("name"));
    let root = if version.contains('/') {
        "/apis"
    } else {
        "/api"
    };
    let discovery = context.kube().get(&format!("{root}/{version}")).await;
    let discovery = discovery.map_err(|error| error.message())?;
    let resources = discovery["resources"].as_array().into_iter().flatten();
    let mut plurals = resources
        .filter(|resource| resource["kind"] == kind)
        .filter_map(|resource| resource["name"].as_str())
        .filter(|plural| !plural.contains('/'));
    let Some(plural) = plurals.next() else {
        return Ok(None);
    };
    let path = format!("{root}/{version}/namespaces/{namespace}/{plural}/{name}");
    match context.kube().get(&format!("{path}/scale")).await {
        Ok(scale) => Ok((scale["metadata"]["uid"] == owner["uid"]).then(|| wants(&scale))),
        Err(error) if error.code() == Some(404) => match context.kube().get(&path).await {
            Ok(_) => {
                let group = version
                    .split_once('/')
                    .map(|(group, _)| format!(".{group}"));
                let group = group.unwrap_or_default();
                Err(format!(
                    "{plural}{group} does not implement the scale subresource"
                ))
            }
            Err(error) if error.code() == Some(404) => Ok(None),
            Err(error) => Err(error.message()),
        },
        Err(error) => Err(error.message()),
    }
}
