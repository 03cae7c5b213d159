//! What the chapters of the demo are told with.

use super::{DemoError, PATIENCE, report::Report};
use crate::{
    cluster::{Cluster, Node},
    control::{Answer, Command, NodeStatus},
    kube::{Kube, KubeError, Lines},
};
use serde_json::Value;
use std::{
    ops::{Deref, DerefMut},
    time::{Duration, Instant},
};

/// The app's pods.
pub(super) const PODS: &str = "/api/v1/namespaces/shop/pods";

/// The cluster, and what is told of it.
pub(super) struct Scene<'s> {
    pub(super) cluster: &'s Cluster,
    pub(super) report: &'s mut Report,
}

impl Deref for Scene<'_> {
    type Target = Report;

    fn deref(&self) -> &Report {
        self.report
    }
}

impl DerefMut for Scene<'_> {
    fn deref_mut(&mut self) -> &mut Report {
        self.report
    }
}

impl<'s> Scene<'s> {
    /// The administrator's client.
    pub(super) fn cloud(&self) -> &'s Kube {
        self.cluster.kube()
    }

    pub(super) fn node(&self, name: &str) -> Result<&'s Node, DemoError> {
        let node = self.cluster.nodes().iter().find(|n| n.plan.name == name);
        node.ok_or_else(|| DemoError::Refused(format!("no node {name}")))
    }

    /// An administrator's client through a node's hub.
    pub(super) fn through(&self, node: &str) -> Result<Kube, DemoError> {
        self.cluster
            .through(node, Duration::from_secs(5))
            .ok_or_else(|| DemoError::Refused(format!("no node {node}")))
    }

    /// Carries out a command of the lab.
    pub(super) async fn command(&self, command: Command) -> Result<(), DemoError> {
        match self.cluster.command(command).await {
            Answer::Nodes(_) => Ok(()),
            Answer::Refused(why) => Err(DemoError::Refused(why)),
        }
    }

    /// Cuts a node or a pool off the cloud: packets vanish.
    pub(super) async fn cut(&self, target: &str) -> Result<Instant, DemoError> {
        let at = Instant::now();
        self.command(Command::Cut {
            target: target.to_owned(),
            reset: false,
        })
        .await?;
        Ok(at)
    }

    /// Lets the links work again, and waits until the hubs say so.
    pub(super) async fn heal(&self, target: &str) -> Result<Instant, DemoError> {
        let at = Instant::now();
        let target = target.to_owned();
        self.command(Command::Heal { target }).await?;
        Ok(at)
    }

    /// The nodes of a pool as they are now.
    pub(super) async fn statuses(&self, pool: &str) -> Vec<NodeStatus> {
        let mut statuses = Vec::new();
        for node in self.cluster.nodes() {
            if node.plan.pool == pool {
                statuses.push(self.cluster.status(node).await);
            }
        }
        statuses
    }

    /// A node as it is now.
    pub(super) async fn status(&self, node: &str) -> Result<NodeStatus, DemoError> {
        Ok(self.cluster.status(self.node(node)?).await)
    }

    /// `online`, `offline`, `down`.
    pub(super) async fn hub_state(&self, node: &str) -> Option<String> {
        Some(self.status(node).await.ok()?.hub)
    }

    pub(super) async fn hub_memory(&self) -> u64 {
        let mut largest = 0;
        for node in self.cluster.nodes() {
            largest = largest.max(self.cluster.status(node).await.hub_memory);
        }
        largest
    }

    /// Asks again and again until there is an answer, at most [`PATIENCE`].
    pub(super) async fn within<T>(
        &self,
        what: &'static str,
        mut ask: impl AsyncFnMut() -> Option<T>,
    ) -> Result<T, DemoError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = ask().await {
                return Ok(answer);
            }
            if Instant::now() >= deadline {
                return Err(DemoError::InVain {
                    what,
                    patience: PATIENCE,
                });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Reads a watch until an event fits.
pub(super) async fn next(
    watch: &mut Lines,
    what: &'static str,
    mut fits: impl FnMut(&Value) -> bool,
) -> Result<Value, DemoError> {
    let read = async {
        while let Some(event) = watch.next().await {
            if fits(&event) {
                return Some(event);
            }
        }
        None
    };
    match tokio::time::timeout(PATIENCE, read).await {
        Ok(Some(event)) => Ok(event),
        Ok(None) => Err(DemoError::Refused(format!("the watch ended before {what}"))),
        Err(_) => Err(DemoError::InVain {
            what,
            patience: PATIENCE,
        }),
    }
}

/// The median time of 50 GETs.
pub(super) async fn median(kube: &Kube, path: &str) -> Result<Duration, KubeError> {
    let mut times = Vec::with_capacity(50);
    for _ in 0..50 {
        let asked = Instant::now();
        kube.get(path).await?;
        times.push(asked.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2])
}

pub(super) fn items(list: &Value) -> &[Value] {
    list["items"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
}

pub(super) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

pub(super) fn names(list: &Value) -> Vec<&str> {
    items(list).iter().map(name).collect()
}

/// The app's pod on a node.
pub(super) fn pod_on(pods: &Value, node: &str) -> Result<Value, DemoError> {
    let mut pods = items(pods).iter();
    let pod = pods.find(|pod| {
        pod["spec"]["nodeName"] == node && pod["metadata"]["deletionTimestamp"].is_null()
    });
    let missing = || DemoError::Refused(format!("no pod on {node}"));
    pod.cloned().ok_or_else(missing)
}
