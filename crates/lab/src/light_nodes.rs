//! Light nodes: thousands of nodes in one process, without hubs, links and kubelets of their own.
//!
//! They register, renew their leases, report their status and take pods through the same life as the simulated kubelets do
//! ([`crate::kubelet::pod`]), but share everything: the caches of the native controllers (one watch of pods and one of nodes for all)
//! and a few tasks that take turns. They tell no events, and nothing answers at their addresses: no logs, no exec.

use crate::{
    kube::KubeError,
    kubelet::{
        KubeletConfig,
        address::{Addresses, PodAddress},
        clock::micro_time,
        node,
        pod::{Run, Step, adopted, next_step, uid, uses_host_network},
    },
    plan::LightNode,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use yurt_api::names::labels;
use yurt_controller::{Change, Context, Controller, Failure, Key, Next, Watch, collections, run};
use yurt_wire::{Gvk, patch::strategic_merge_patch};

/// Tasks that keep nodes alive.
const KEEPERS: usize = 8;
/// A kubelet's interval between renewals of its lease.
const LEASE_INTERVAL: Duration = Duration::from_secs(10);
/// More renewals per second than this would load a small machine; the interval grows instead, ...
const RENEWALS_PER_SECOND: u32 = 250;
/// ... up to this, well within the 40 seconds for which a lease is valid.
const LONGEST_LEASE_INTERVAL: Duration = Duration::from_secs(25);
/// A kubelet's interval between reports of a status that did not change.
const REPORT_INTERVAL: Duration = Duration::from_secs(300);
/// Steps of a pod in one go; a status that does not stay must not be written for ever.
const STEPS: usize = 8;
const PAUSE: Duration = Duration::from_secs(1);

/// Light nodes at work; they end with the context.
#[derive(Debug)]
pub(crate) struct LightNodes {
    registered: watch::Receiver<usize>,
    wanted: usize,
}

struct Light {
    plan: LightNode,
    addresses: Arc<Addresses>,
}

impl LightNodes {
    /// Starts them.
    pub(crate) fn start(plans: Vec<LightNode>, context: &Arc<Context>) -> Self {
        let wanted = plans.len();
        let lights: Vec<Arc<Light>> = plans
            .into_iter()
            .map(|plan| {
                let addresses = Arc::new(Addresses::new(plan.pod_network));
                Arc::new(Light { plan, addresses })
            })
            .collect();
        let by_name = lights
            .iter()
            .map(|light| (light.plan.name.clone(), light.clone()))
            .collect();
        run(
            context,
            Pods {
                lights: by_name,
                held: Mutex::default(),
            },
        );
        let (count, registered) = watch::channel(0);
        let interval = lease_interval(wanted);
        for keeper in 0..KEEPERS.min(wanted) {
            let keeper = Keeper {
                context: context.clone(),
                lights: lights
                    .iter()
                    .skip(keeper)
                    .step_by(KEEPERS)
                    .cloned()
                    .collect(),
                interval,
                // Keepers do not march in step.
                offset: interval.mul_f64(keeper as f64 / (KEEPERS * wanted.max(1)) as f64),
            };
            let (count, shutdown) = (count.clone(), context.shutdown().clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = keeper.keep(&count) => {}
                }
            });
        }
        Self { registered, wanted }
    }

    /// Waits until all are registered; how many are when that takes longer than `patience`.
    pub(crate) async fn registered(&self, patience: Duration) -> Result<(), usize> {
        let mut registered = self.registered.clone();
        let all = registered.wait_for(|count| *count >= self.wanted);
        let in_time = matches!(tokio::time::timeout(patience, all).await, Ok(Ok(_)));
        if in_time {
            Ok(())
        } else {
            Err(*self.registered.borrow())
        }
    }
}

/// Between two renewals of one lease.
fn lease_interval(nodes: usize) -> Duration {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    let bearable = Duration::from_secs((nodes / RENEWALS_PER_SECOND).into());
    bearable.clamp(LEASE_INTERVAL, LONGEST_LEASE_INTERVAL)
}

/// Keeps some of the nodes alive, one after the other, their turns spread over the interval.
struct Keeper {
    context: Arc<Context>,
    lights: Vec<Arc<Light>>,
    interval: Duration,
    offset: Duration,
}

impl Keeper {
    async fn keep(self, registered: &watch::Sender<usize>) {
        for light in &self.lights {
            while let Err(error) = self.register(light).await {
                tracing::debug!(node = %light.plan.name, %error, "cannot register");
                sleep(PAUSE).await;
            }
            registered.send_modify(|count| *count += 1);
        }
        let nodes = self.context.objects(&collections::NODES);
        nodes.synced().await;
        let turn = self.interval / u32::try_from(self.lights.len().max(1)).unwrap_or(u32::MAX);
        // Reports begin anywhere in their interval, so that they are spread too.
        let mut reported: Vec<Instant> = self
            .lights
            .iter()
            .map(|_| Instant::now() + REPORT_INTERVAL.mul_f64(fastrand::f64()))
            .collect();
        let mut next = Instant::now() + self.offset;
        loop {
            for (light, report_due) in self.lights.iter().zip(&mut reported) {
                sleep_until(next).await;
                // What was missed while the server was slow is not made up for.
                next = (next + turn).max(Instant::now());
                let node = nodes.get(&Key::new("", &light.plan.name));
                if let Err(error) = self.turn(light, node.as_deref(), report_due).await {
                    tracing::debug!(node = %light.plan.name, %error, "turn");
                }
            }
        }
    }

    fn config(light: &Light) -> KubeletConfig {
        let mut config = KubeletConfig::new(&light.plan.name, "");
        config.address = light.plan.address.into();
        if !light.plan.passes_for_ordinary {
            config
                .labels
                .push(("lab.yurt.dev/light".into(), "true".into()));
        }
        if let Some(pool) = &light.plan.pool {
            config.labels.push((labels::NODE_POOL.into(), pool.clone()));
            config
                .labels
                .push((labels::EDGE_WORKER.into(), "true".into()));
        }
        config
    }

    /// Creates node and lease, unless they are there from an earlier time.
    async fn register(&self, light: &Light) -> Result<(), KubeError> {
        let now = Timestamp::now();
        let mut object = node::registration(&Self::config(light), now);
        // A kubelet registers first and is ready then; here that is one write.
        let (ready, _) = node::status_patch(&object, now);
        let kind = Gvk::from_api_version("v1", "Node");
        if let Err(error) = strategic_merge_patch(&kind, &mut object, &ready) {
            tracing::warn!(%error, "a light node's status");
        }
        let known = match self.context.create(&collections::NODES, object).await {
            Err(error) if error.code() == Some(409) => None,
            created => Some(created?),
        };
        let uid = known
            .as_ref()
            .and_then(|node| node["metadata"]["uid"].as_str());
        self.create_lease(light, uid).await
    }

    async fn create_lease(&self, light: &Light, uid: Option<&str>) -> Result<(), KubeError> {
        let lease = node::lease(&light.plan.name, uid, Timestamp::now());
        self.context.kube().ensure(LEASES, &lease).await
    }

    async fn turn(
        &self,
        light: &Light,
        node: Option<&Value>,
        report_due: &mut Instant,
    ) -> Result<(), KubeError> {
        let Some(node) = node else {
            return self.register(light).await;
        };
        let path = format!("{LEASES}/{}", light.plan.name);
        let now = Timestamp::now();
        let renewal = json!({"spec": {"renewTime": micro_time(now)}});
        match self.context.kube().merge(&path, &renewal).await {
            Err(error) if error.code() == Some(404) => {
                self.create_lease(light, node["metadata"]["uid"].as_str())
                    .await?;
            }
            renewed => drop(renewed?),
        }
        let (patch, changed) = node::status_patch(node, now);
        if changed || Instant::now() >= *report_due {
            let key = Key::of(node);
            self.context
                .patch(&collections::NODES, &key, "status", &patch)
                .await?;
            *report_due = Instant::now() + REPORT_INTERVAL;
        }
        Ok(())
    }
}

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

/// What the runtime of a light node has of a pod.
struct Held {
    uid: String,
    run: Run,
    _address: Option<PodAddress>,
}

/// The pods of all light nodes.
struct Pods {
    lights: HashMap<String, Arc<Light>>,
    held: Mutex<HashMap<Key, Held>>,
}

impl Pods {
    fn light(&self, pod: &Value) -> Option<&Arc<Light>> {
        self.lights.get(pod["spec"]["nodeName"].as_str()?)
    }

    /// Lets time do its work on a pod and decides what is next; when to look again.
    fn step(&self, key: &Key, pod: &Value, light: &Light) -> (Step, Option<Timestamp>) {
        let now = Timestamp::now();
        let mut all = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(key).is_none_or(|held| held.uid != uid(pod)) {
            all.remove(key);
            if let Some(run) = adopted(pod, now) {
                let address = run.ip().map(|ip| light.addresses.adopt(ip));
                let held = Held {
                    uid: uid(pod).to_owned(),
                    run,
                    _address: address,
                };
                all.insert(key.clone(), held);
            }
        }
        let host = light.plan.address.into();
        let Some(held) = all.get_mut(key) else {
            return (next_step(pod, None, host, 0, now), None);
        };
        let due = held.run.advance(pod, now, &(), &mut Vec::new());
        let mut step = next_step(pod, Some(&held.run), host, 0, now);
        if step == Step::Stop {
            // Nothing takes its time here.
            held.run.stop(now, 0, None);
            step = next_step(pod, Some(&held.run), host, 0, now);
        }
        (step, due)
    }

    fn start(&self, key: &Key, pod: &Value, light: &Light) -> Result<(), Failure> {
        let address = match uses_host_network(pod) {
            true => light.addresses.adopt(IpAddr::V4(light.plan.address)),
            false => light.addresses.take().ok_or_else(|| {
                Failure::Object(format!("{}: all pod addresses are taken", light.plan.name))
            })?,
        };
        let run = Run::new(pod, address.ip, Timestamp::now(), SignedDuration::ZERO);
        let held = Held {
            uid: uid(pod).to_owned(),
            run,
            _address: Some(address),
        };
        let mut all = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(key.clone(), held);
        Ok(())
    }

    fn forget(&self, key: &Key) {
        let mut all = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(key);
    }
}

impl Controller for Pods {
    const NAME: &'static str = "light-nodes";
    const WORKERS: usize = 8;

    fn watches(&self, _: &Arc<Context>) -> Vec<Watch> {
        let ours: Vec<String> = self.lights.keys().cloned().collect();
        let ours: std::collections::HashSet<String> = ours.into_iter().collect();
        vec![Watch::of(collections::PODS, move |change: &Change| {
            let mut versions = [&change.old, &change.new].into_iter().flatten();
            let here = versions.any(|pod| {
                pod["spec"]["nodeName"]
                    .as_str()
                    .is_some_and(|node| ours.contains(node))
            });
            if here { vec![change.key()] } else { Vec::new() }
        })]
    }

    async fn reconcile(&self, key: &Key, context: &Context) -> Result<Next, Failure> {
        let known = context.objects(&collections::PODS).get(key);
        let Some(mut pod) = known else {
            self.forget(key);
            return Ok(Next::Done);
        };
        let Some(light) = self.light(&pod) else {
            self.forget(key);
            return Ok(Next::Done);
        };
        for _ in 0..STEPS {
            let (step, due) = self.step(key, &pod, light);
            match step {
                Step::Start => self.start(key, &pod, light)?,
                Step::Report(patch) => {
                    match context
                        .patch(&collections::PODS, key, "status", &patch)
                        .await
                    {
                        Ok(written) => pod = written,
                        // Gone, or another of that name: the watch will tell.
                        Err(error) if matches!(error.code(), Some(404 | 409)) => {
                            return Ok(Next::Done);
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                Step::Delete => {
                    let now = json!({"gracePeriodSeconds": 0});
                    context.delete_with(&collections::PODS, &pod, &now).await?;
                    return Ok(Next::Done);
                }
                Step::Rest | Step::Stop => {
                    return Ok(due.map_or(Next::Done, |due| Next::After(until(due))));
                }
            }
        }
        Err(Failure::Object("the status does not stay".into()))
    }
}

fn until(due: Timestamp) -> Duration {
    let left = due.duration_since(Timestamp::now());
    Duration::try_from(left).unwrap_or(Duration::ZERO) + Duration::from_millis(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::light_nodes;
    use yurt_controlplane::stage::Stage;

    #[test]
    fn many_leases_are_renewed_less_often_but_in_time() {
        assert_eq!(lease_interval(1), LEASE_INTERVAL);
        assert_eq!(lease_interval(5_000), Duration::from_secs(20));
        assert_eq!(lease_interval(20_000), LONGEST_LEASE_INTERVAL);
    }

    const PODS: &str = "/api/v1/namespaces/default/pods";

    #[tokio::test]
    async fn light_nodes_register_and_run_what_the_scheduler_gives_them() {
        let stage = Stage::start("kube-scheduler").await;
        let plans = light_nodes(20, &["hangzhou=3".parse().unwrap()]);
        let lights = LightNodes::start(plans, &stage.context);
        lights
            .registered(Duration::from_secs(30))
            .await
            .expect("all of them");
        let nodes = stage.kube.get("/api/v1/nodes").await.unwrap();
        let nodes = nodes["items"].as_array().unwrap();
        assert_eq!(nodes.len(), 23);
        let pooled = nodes
            .iter()
            .filter(|node| node["metadata"]["labels"][labels::NODE_POOL] == "hangzhou");
        assert_eq!(pooled.count(), 3);
        assert!(
            nodes
                .iter()
                .all(|node| node["status"]["conditions"][3]["status"] == "True")
        );
        let leases = stage.kube.get(LEASES).await.unwrap();
        assert_eq!(leases["items"].as_array().unwrap().len(), 23);

        for (name, policy) in [("web", "Always"), ("job", "Never")] {
            let pod = json!({"metadata": {"name": name}, "spec": {"restartPolicy": policy,
                "containers": [{"name": "main", "image": "registry.lab/app:1"}]}});
            stage.create(PODS, pod).await;
        }
        let web = stage
            .until(&format!("{PODS}/web"), |pod| {
                pod["status"]["phase"] == "Running"
            })
            .await;
        assert!(
            web["status"]["podIP"]
                .as_str()
                .unwrap()
                .starts_with("10.128.")
        );
        stage
            .until(&format!("{PODS}/job"), |pod| {
                pod["status"]["phase"] == "Succeeded"
            })
            .await;
        stage
            .kube
            .delete(&format!("{PODS}/web"))
            .await
            .expect("deleted");
        stage
            .until(&format!("{PODS}/web"), |gone| gone["code"] == 404)
            .await;
    }
}
