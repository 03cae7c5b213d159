//! `serviceaccounts/NAME/token` without the cloud: the token that the cloud gave for the same request while that is good, then
//! one that the node signs itself. Only for the node's own components, and only for pods that are known to be on this node.

use super::{Offline, now, qualified, review::read};
use crate::{
    cache::Lookup,
    caller::Caller,
    tokens::{
        issued::{Wish, answer},
        jwt::{Bound, Reference},
    },
};
use bytes::Bytes;
use http::request::Parts;
use serde_json::Value;
use yurt_wire::{Gvr, Object, RequestInfo, Status};

/// Whether a pod may have a token that is asked for: what the node authorizer and the API server check, and nothing wider.
fn check(wish: &Wish, uid: &str, node: &str, pod: &Object) -> Result<(), String> {
    let field = |path: &str| pod.field(path).unwrap_or_default();
    let found = pod.meta().map(|meta| meta.uid).unwrap_or_default();
    if uid.is_empty() || found != uid {
        return Err(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record ({found})"
        ));
    }
    if field("spec.nodeName") != node {
        return Err("the pod is not on this node".into());
    }
    let account = field("spec.serviceAccountName");
    if account != wish.account {
        return Err(format!(
            "the pod runs with a different service account ({account})"
        ));
    }
    Ok(())
}

impl Offline {
    pub(super) async fn give_token(
        &self,
        caller: &Caller,
        info: &RequestInfo,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<Value, Box<Status>> {
        if *caller != Caller::Node {
            return Err(self.refused(info, "is not accepted while the cloud is away"));
        }
        let asked = read(parts, body, "TokenRequest")?;
        let wish = Wish::parse(&info.namespace, &info.name, &asked)?;
        let bound = self.bound(info, &wish)?;
        let time = now();
        if let Some(issued) = self.tokens.issued(&wish, time) {
            self.tokens.given_again();
            return Ok(issued.to_json(&wish, time));
        }
        let tokens = self.tokens.clone();
        // The first one makes a key and writes it to the disk.
        let signed = tokio::task::spawn_blocking(move || {
            let signed = tokens.sign(&wish, bound, time);
            (wish, signed)
        });
        let (wish, signed) = signed
            .await
            .map_err(|error| Box::new(Status::internal_error(error)))?;
        let (token, claims) = signed.map_err(|error| {
            tracing::error!(%error, "no token for a pod");
            Box::new(Status::service_unavailable(format!(
                "node {:?} is offline and cannot sign tokens: {error}",
                self.node_name
            )))
        })?;
        let seconds = claims.exp.saturating_sub(claims.iat.unwrap_or(time));
        Ok(answer(&wish, &claims.aud, seconds, &token, claims.exp))
    }

    /// What a token is to be bound to; a refusal when the pod is not known to be this node's.
    fn bound(&self, info: &RequestInfo, wish: &Wish) -> Result<Bound, Box<Status>> {
        let forbidden = |why: &str| {
            Box::new(Status::forbidden(
                "",
                "serviceaccounts/token",
                &info.name,
                &format!("node {:?} is offline: {why}", self.node_name),
            ))
        };
        let Some(("Pod", pod)) = wish.bound.as_ref().map(|(kind, of)| (kind.as_str(), of)) else {
            return Err(forbidden(
                "it gives tokens only for pods that are on this node",
            ));
        };
        let pods = Gvr::new("", "v1", "pods");
        let found = match self
            .cache
            .get(&Caller::Node, &pods, &wish.namespace, &pod.name)
        {
            Lookup::Found(found) => found,
            Lookup::KnownAbsent => return Err(forbidden("the pod does not exist")),
            Lookup::Unknown | Lookup::Forbidden => {
                return Err(Box::new(Status::service_unavailable(format!(
                    "node {:?} is offline, and {} {:?} in namespace {:?} was never cached on it: no token for it",
                    self.node_name,
                    qualified("", "pods"),
                    pod.name,
                    wish.namespace
                ))));
            }
        };
        check(wish, &pod.uid, &self.node_name, &found).map_err(|why| forbidden(&why))?;
        let uid_of = |resource: &str, namespace: &str, name: &str| {
            let object = self
                .cache
                .view(&Gvr::new("", "v1", resource), namespace, name);
            object
                .and_then(|object| object.meta().ok())
                .map(|meta| meta.uid)
                .unwrap_or_default()
        };
        Ok(Bound {
            namespace: wish.namespace.clone(),
            serviceaccount: Reference {
                name: wish.account.clone(),
                uid: uid_of("serviceaccounts", &wish.namespace, &wish.account),
            },
            pod: Some(pod.clone()),
            node: Some(Reference {
                name: self.node_name.to_string(),
                uid: uid_of("nodes", "", &self.node_name),
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use yurt_wire::Encoding;

    #[test]
    fn only_the_pods_own_account_on_its_own_node() {
        let wish = |account: &str| Wish::parse("a", account, &json!({})).unwrap();
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "a", "uid": "u"},
            "spec": {"nodeName": "here", "serviceAccountName": "sa", "containers": []}});
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            let pod = Object::from_json_value(&pod, encoding).unwrap();
            assert_eq!(check(&wish("sa"), "u", "here", &pod), Ok(()));
            assert!(check(&wish("sa"), "v", "here", &pod).is_err());
            assert!(check(&wish("sa"), "", "here", &pod).is_err());
            assert!(check(&wish("sa"), "u", "there", &pod).is_err());
            assert!(check(&wish("other"), "u", "here", &pod).is_err());
        }
    }
}
