//! `certificatesigningrequest-approving-controller`: client certificates of kubelets, for those who may ask for them.

use super::{
    rules,
    signing_request::{is_open, parse, usages, with_condition},
};
use crate::{Context, Controller, Failure, Key, Next, Watch, collections::CSRS};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// Subresource that somebody must be allowed to create, and what is said when he is.
const SELF: (&str, &str) = (
    "selfnodeclient",
    "Auto approving self kubelet client certificate after SubjectAccessReview.",
);
const NODE: (&str, &str) = (
    "nodeclient",
    "Auto approving kubelet client certificate after SubjectAccessReview.",
);

/// When it is asked again whether somebody may.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// The controller.
#[derive(Debug, Default)]
pub(crate) struct Approving;

impl Controller for Approving {
    const NAME: &'static str = "certificatesigningrequest-approving-controller";

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        vec![Watch::own(CSRS)]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let Some(csr) = context.objects(&CSRS).get(key) else {
            return Ok(Next::Done);
        };
        if !is_open(&csr) || csr["spec"]["signerName"] != rules::KUBELET_CLIENT {
            return Ok(Next::Done);
        }
        let Some(request) = parse(&csr) else {
            return Ok(Next::Done);
        };
        if rules::kubelet_client(&request, &usages(&csr)).is_err() {
            return Ok(Next::Done);
        }
        let renews_own = csr["spec"]["username"] == *request.subject.user;
        for (subresource, message) in [SELF, NODE] {
            if subresource == SELF.0 && !renews_own {
                continue;
            }
            if !may(context, &csr, subresource).await? {
                continue;
            }
            let patch = with_condition(&csr, "Approved", "AutoApproved", message, Timestamp::now());
            context.merge(&CSRS, key, "approval", &patch).await?;
            return Ok(Next::Done);
        }
        // Somebody may give the right later.
        tracing::debug!(
            controller = Self::NAME,
            csr = key.name,
            "recognized, but who asks may not"
        );
        Ok(Next::After(ASK_AGAIN))
    }
}

/// Whether who asked may.
async fn may(context: &Context, csr: &Value, subresource: &str) -> Result<bool, Failure> {
    let spec = &csr["spec"];
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
        "user": spec["username"], "uid": spec["uid"], "groups": spec["groups"], "extra": spec["extra"],
        "resourceAttributes": {"group": "certificates.k8s.io", "resource": "certificatesigningrequests", "verb": "create",
            "version": "*", "subresource": subresource}}});
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let answer = context.kube().create(path, &review).await?;
    Ok(answer["status"]["allowed"] == true)
}
