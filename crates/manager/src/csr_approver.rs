//! `csr-approver-controller` of OpenYurt: client and serving certificates of hubs, and those of the tunnel's agents and servers.
//!
//! OpenYurt's controller compares shapes only, so that whoever may create requests becomes any node, and a server under any name.
//! Here who asks must be entitled: to a client certificate a bootstrap token or the node itself, to a serving certificate the node
//! itself, for names and addresses that are the node's. Nodes that ask for what is another's are denied it; what might be right
//! is left to an administrator.

mod rules;

use crate::{
    Context, Controller, Entry, Failure, Key, Next, Watch,
    collections::{CSRS, NODES, SERVICES},
};
use jiff::Timestamp;
use rules::{
    Objection, SERVER_NAMES_SERVICE, Shape, USER, entitled, foreign_name, others_name, shape,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use yurt_controller::{
    policy::Rule,
    run_with,
    signing_request::{CLIENT, KUBELET_SERVING, is_open, parse, usages, with_condition},
};

pub(crate) const ENTRY: Entry = Entry::new(
    CsrApprover::NAME,
    "csrapprover",
    &[
        Rule::new(
            "certificates.k8s.io",
            &["certificatesigningrequests/approval"],
            &["patch"],
        ),
        Rule::new("certificates.k8s.io", &["signers"], &["approve"])
            .named(&[CLIENT, KUBELET_SERVING]),
        Rule::new("", &["services"], &["get"]).named(&[SERVER_NAMES_SERVICE]),
        Rule::EVENTS,
    ],
    |context, settings| {
        let controller = CsrApprover {
            namespace: settings.namespace.clone(),
            open: Arc::default(),
        };
        let workers = settings.workers(CsrApprover::NAME, CsrApprover::WORKERS);
        run_with(context, controller, workers);
    },
);

/// `csr-approver-controller`.
#[derive(Debug)]
struct CsrApprover {
    /// Where the components of OpenYurt are.
    namespace: String,
    open: Arc<Mutex<Open>>,
}

/// Requests that are not decided. They are told of once, and cleaned up by Kubernetes after a day.
#[derive(Debug, Default)]
struct Open {
    told: BTreeSet<Key>,
    /// Those that wait for addresses of a node.
    waiting: BTreeMap<String, BTreeSet<Key>>,
}

impl Open {
    fn wait(&mut self, node: &str, request: &Key) {
        let waiting = self.waiting.entry(node.into()).or_default();
        waiting.insert(request.clone());
    }

    fn forget(&mut self, request: &Key) {
        self.told.remove(request);
        self.waiting.retain(|_, requests| {
            requests.remove(request);
            !requests.is_empty()
        });
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CsrApprover {
    /// Leaves a request to an administrator, and says why.
    fn leave(&self, csr: &Value, why: &str, context: &Context) -> Next {
        let key = Key::of(csr);
        if lock(&self.open).told.insert(key.clone()) {
            let who = csr["spec"]["username"].as_str().unwrap_or_default();
            tracing::warn!(
                controller = Self::NAME,
                csr = key.name,
                who,
                why,
                "left to an administrator"
            );
            let message = format!("not approved, left to an administrator: {why}");
            context.event(Self::NAME, csr, "Warning", "CSRNotApproved", &message);
        }
        Next::Done
    }
}

impl Controller for CsrApprover {
    const NAME: &'static str = "csr-approver-controller";
    const WORKERS: usize = 3;

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        let open = self.open.clone();
        let requests = Watch::of(CSRS, move |change| {
            let key = change.key();
            match &change.new {
                Some(csr) if is_open(csr) => vec![key],
                _ => {
                    lock(&open).forget(&key);
                    Vec::new()
                }
            }
        });
        // Hubs ask before their kubelets have registered the addresses.
        let open = self.open.clone();
        let nodes = Watch::of(NODES, move |change| {
            let addresses = |node: &Option<Arc<Value>>| {
                node.as_ref()
                    .map(|node| node["status"]["addresses"].clone())
            };
            if addresses(&change.old) == addresses(&change.new) {
                return Vec::new();
            }
            let waiting = lock(&open).waiting.get(&change.key().name).cloned();
            waiting.into_iter().flatten().collect()
        });
        vec![requests, nodes]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(csr) = context.objects(&CSRS).get(key).filter(|csr| is_open(csr)) else {
            return Ok(Next::Done);
        };
        // What no second look changes.
        let Some(request) = parse(&csr) else {
            return Ok(Next::Done);
        };
        let signer = csr["spec"]["signerName"].as_str().unwrap_or_default();
        let Some(shape) = shape(signer, &request, &usages(&csr)) else {
            return Ok(Next::Done);
        };
        let decide = async |kind: &str, reason: &str, message: &str| {
            let patch = with_condition(&csr, kind, reason, message, Timestamp::now());
            context.merge(&CSRS, key, "approval", &patch).await?;
            Ok(Next::Done)
        };
        match entitled(shape, &csr["spec"], &request, &self.namespace) {
            Ok(()) => {}
            Err(Objection::Doubt(why)) => return Ok(self.leave(&csr, &why, context)),
            Err(Objection::Sure(why)) => {
                let who = csr["spec"]["username"].as_str().unwrap_or_default();
                tracing::warn!(controller = Self::NAME, csr = key.name, who, why, "denied");
                context.event(Self::NAME, &csr, "Warning", "CSRDenied", &why);
                return decide("Denied", "NotEntitled", &why).await;
            }
        }
        let node_named = match shape {
            Shape::Serving => request.subject.user.strip_prefix(USER),
            Shape::TunnelAgent => request.dns.first().map(String::as_str),
            Shape::Client | Shape::TunnelServer | Shape::TunnelServing => None,
        };
        if let Some(name) = node_named {
            // Noted before it is looked, so that no change falls between.
            lock(&self.open).wait(name, key);
            let node = context.objects(&NODES).get(&Key::new("", name));
            let service = match shape {
                Shape::Serving => api_service(context).await?,
                _ => Value::Null,
            };
            let node = node.as_deref().unwrap_or(&Value::Null);
            if let Some(foreign) = foreign_name(&request, name, node, &service) {
                let why = format!(
                    "{foreign} is no name or address of node {name}, as far as its status says"
                );
                return Ok(self.leave(&csr, &why, context));
            }
        }
        if shape == Shape::TunnelServing {
            let nodes = context.objects(&NODES).list("");
            let service = api_service(context).await?;
            if let Some(taken) = others_name(&request, &nodes, &service) {
                let why = format!("{taken} is no name or address of the tunnel's servers");
                return Ok(self.leave(&csr, &why, context));
            }
        }
        decide("Approved", "AutoApproved", shape.message()).await
    }
}

/// The Service of the API server; null when there is none.
async fn api_service(context: &Context) -> Result<Value, Failure> {
    let key = Key::new("default", SERVER_NAMES_SERVICE);
    match context.kube().get(&SERVICES.object_path(&key)).await {
        Err(error) if error.is_not_found() => Ok(Value::Null),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests;
