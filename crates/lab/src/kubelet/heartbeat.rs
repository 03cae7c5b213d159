//! What a kubelet tells of its node: that it is there, how it is, and that it lives.

use super::{Kubelet, NODES, api::CallError, node};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use tokio::time::{Instant, sleep};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

impl Kubelet {
    /// What a kubelet asks once when it starts; the answers do not matter here.
    pub(super) async fn introduce(&self) {
        let name = &self.config.node_name;
        let csi_node = format!("/apis/storage.k8s.io/v1/csinodes/{name}");
        let slices =
            format!("/apis/resource.k8s.io/v1/resourceslices?fieldSelector=spec.nodeName%3D{name}");
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
        for asked in [
            self.api.get(&format!("{csi_node}?resourceVersion=0")).await,
            self.api.get(&csi_node).await,
            self.api.delete(&slices, &options).await,
        ] {
            if let Err(error) = asked {
                tracing::debug!(node = %name, %error, "at the start");
            }
        }
    }

    /// Registers the node, or finds that it is.
    async fn register(&self) {
        let mut backoff = self.backoff();
        loop {
            let node = node::registration(&self.config, Timestamp::now());
            let registered = match self.api.create(NODES, &node).await {
                Err(error) if error.code() == Some(409) => self.api.get(&self.node_path()).await,
                // Nothing can be created while the link is cut; a node that is known needs not be.
                Err(error) => self.api.get(&self.node_path()).await.map_err(|_| error),
                created => created,
            };
            match registered {
                Ok(node) => {
                    tracing::info!(node = %self.config.node_name, "registered");
                    self.node.send_replace(Some(node));
                    self.registered.store(true, Ordering::Relaxed);
                    return;
                }
                Err(error) => {
                    tracing::debug!(node = %self.config.node_name, %error, "cannot register");
                    sleep(backoff.pause()).await;
                }
            }
        }
    }

    fn node_path(&self) -> String {
        format!("{NODES}/{}", self.config.node_name)
    }

    /// Reports the node's status when it changed, and from time to time.
    pub(super) async fn keep_status(&self) {
        self.register().await;
        let mut backoff = self.backoff();
        let mut reported: Option<Instant> = None;
        loop {
            let node = self.node.borrow().clone().unwrap_or_default();
            let (mut patch, mut changed) = node::status_patch(&node, Timestamp::now());
            if let Some(boot) = self.boot_id()
                && node["status"]["nodeInfo"]["bootID"] != boot.as_str()
            {
                patch["status"]["nodeInfo"] = json!({"bootID": boot});
                changed = true;
            }
            let due = reported.is_none_or(|at| at.elapsed() >= self.config.report_interval);
            if changed || due {
                let path = format!("{}/status?timeout=5s", self.node_path());
                match self.api.patch(&path, &patch).await {
                    Ok(node) => {
                        reported = Some(Instant::now());
                        self.node.send_replace(Some(node));
                        self.ready.store(true, Ordering::Relaxed);
                        backoff.reset();
                    }
                    Err(error) => {
                        tracing::debug!(node = %self.config.node_name, %error, "status not taken");
                        sleep(backoff.pause()).await;
                        if error.code() == Some(404) {
                            self.register().await;
                        }
                        continue;
                    }
                }
            }
            sleep(self.config.status_interval).await;
        }
    }

    async fn node_uid(&self) -> Option<String> {
        let node = self.api.get(&self.node_path()).await.ok()?;
        node["metadata"]["uid"].as_str().map(str::to_owned)
    }

    pub(super) async fn keep_lease(&self) {
        let mut backoff = self.backoff();
        let mut lease = None;
        loop {
            match self.renew(lease.take()).await {
                Ok(renewed) => {
                    lease = Some(renewed);
                    self.renewals.fetch_add(1, Ordering::Relaxed);
                    backoff.reset();
                    sleep(self.config.lease_interval).await;
                }
                // Begin with the lease as it is now.
                Err(error) => {
                    tracing::debug!(node = %self.config.node_name, %error, "lease not renewed");
                    sleep(backoff.pause()).await;
                }
            }
        }
    }

    /// Renews the lease as we know it, else as the server knows it, else creates it.
    async fn renew(&self, known: Option<Value>) -> Result<Value, CallError> {
        let name = &self.config.node_name;
        let one = format!("{LEASES}/{name}?timeout=5s");
        let known = match known {
            Some(lease) => Some(lease),
            None => match self.api.get(&one).await {
                Ok(lease) => Some(lease),
                Err(error) if error.code() == Some(404) => None,
                Err(error) => return Err(error),
            },
        };
        // A kubelet asks for its node until the lease belongs to it.
        let owned = known.as_ref().is_some_and(node::is_owned);
        let uid = match owned {
            true => None,
            false => self.node_uid().await,
        };
        let (uid, now) = (uid.as_deref(), Timestamp::now());
        match known {
            Some(lease) => {
                let renewed = node::renewed(lease, name, uid, now);
                self.api.replace(&one, &renewed).await
            }
            None => {
                let path = format!("{LEASES}?timeout=5s");
                self.api.create(&path, &node::lease(name, uid, now)).await
            }
        }
    }
}
