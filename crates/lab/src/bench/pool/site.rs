//! A pool of hubs before one API server: each a process of its own, each behind a link that counts.

use crate::{
    bench::{
        BenchError, PATIENCE,
        exposition::Exposition,
        load::{Target, call},
        processes::{Ended, Scratch, Server, TOKEN, direct, io_error, plain},
    },
    cluster::{self, ADMIN_PORT, LabError, PROXY_PORT},
    credentials,
    directory::Directory,
    kube::Kube,
    link::{Link, LinkState},
    plan::{self, NodePlan, Pools},
    pools,
};
use serde_json::{Value, json};
use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::time::sleep;
use yurt_pki::Ca;
use yurt_telemetry::process_usage;

const POOL: &str = "bench";
/// Of what the pool shares, as its `pool-scoped-metadata` and as metrics name it.
const SHARED: &str = "/v1/services,discovery.k8s.io/v1/endpointslices";
const SHARED_RESOURCES: [&str; 2] = ["services", "endpointslices.discovery.k8s.io"];
/// As kubelets do it.
const HEARTBEAT_SECONDS: u32 = 10;
const MAPS: &str = "/api/v1/namespaces/kube-system/configmaps";

/// A hub of the pool.
pub(super) struct Hub {
    pub(super) plan: NodePlan,
    pub(super) link: Link,
    server: Server,
    arguments: Vec<OsString>,
    dir: PathBuf,
}

impl Hub {
    /// The hub's proxy, as the administrator.
    pub(super) fn target(&self) -> Target {
        plain((self.plan.address, PROXY_PORT).into())
    }

    /// What it says of itself.
    pub(super) async fn status(&self) -> Result<Value, BenchError> {
        let body = plain((self.plan.address, ADMIN_PORT).into())
            .call(http::Method::GET, "/v1/status", None)
            .await?;
        serde_json::from_slice(&body).map_err(|error| call("/v1/status", error))
    }

    /// Resident memory, bytes.
    pub(super) fn memory(&self) -> u64 {
        let pid = self.server.pid();
        pid.and_then(|pid| process_usage(Some(pid)))
            .map_or(0, |usage| usage.resident_bytes)
    }

    /// Kills it with -9.
    pub(super) async fn kill(&mut self) {
        self.server.end(Ended::Killed).await;
    }

    /// Starts it again.
    pub(super) async fn start(&mut self) -> Result<(), BenchError> {
        self.server = Server::start("hub", &self.arguments, &self.dir)?;
        self.ready().await
    }

    async fn ready(&mut self) -> Result<(), BenchError> {
        let admin = plain((self.plan.address, ADMIN_PORT).into());
        self.server.ready(&admin, "/v1/readyz").await
    }
}

/// API server and hubs.
pub(super) struct Site {
    pub(super) hubs: Vec<Hub>,
    api: Server,
    address: SocketAddr,
    ca: Ca,
    kube: Kube,
    _claim: TcpListener,
    _directory: Directory,
    // Last: the servers end first.
    _scratch: Scratch,
}

impl Site {
    /// Starts so many hubs, and waits until they answer.
    pub(super) async fn start(size: u32, shared: bool) -> Result<Self, BenchError> {
        let scratch = Scratch::new()?;
        let directory = Directory::lock(&scratch.0).map_err(LabError::from)?;
        let (claim, subnet) = cluster::claim_subnet(None)?;
        let one_pool: Pools = format!("{POOL}={size}")
            .parse()
            .map_err(|error| call("the pool", error))?;
        let plans = plan::nodes(&one_pool, subnet);
        let ca = Ca::new("yurt-bench", 7)?;
        let free =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let address = free.map_err(io_error("a free port"))?;
        let mut addresses = vec![address.ip()];
        addresses.extend(plans.iter().map(|plan| IpAddr::V4(plan.address)));
        let serving = credentials::serving(&ca, "kube-apiserver", &[], &["localhost"], &addresses)?;
        for (name, content) in [
            ("ca.crt", &ca.cert_pem()),
            ("api.crt", &serving.cert),
            ("api.key", &serving.key),
        ] {
            directory.write(name, content).map_err(LabError::from)?;
        }
        let arguments = [
            "bench".into(),
            "hub".into(),
            "--serve-api".into(),
            scratch.0.clone().into(),
            "--listen".into(),
            address.to_string().into(),
        ];
        let mut api = Server::start("API server", &arguments, &scratch.0)?;
        api.ready(&direct(address, &ca.cert_pem())?, "/readyz")
            .await?;
        let tls = yurt_pki::client_config(&ca.cert_pem(), None, &["http/1.1"])?;
        let kube = Kube::new(
            &address.to_string(),
            Some(tls),
            Some(TOKEN),
            Duration::from_secs(10),
        );
        pools::define(&kube).await.map_err(LabError::from)?;
        pools::install(&kube, &ca, &[POOL].into()).await?;
        announce(&kube, &plans, shared).await?;

        let mut hubs = Vec::with_capacity(plans.len());
        for plan in plans {
            let dir = cluster::identity(&directory, &ca, &plan)?.dir;
            let listen = SocketAddr::from((plan.address, address.port()));
            let link = Link::start(listen, address)
                .await
                .map_err(io_error(listen))?;
            let arguments = cluster::hub_arguments(&plan, HEARTBEAT_SECONDS, &dir, listen);
            let server = Server::start("hub", &arguments, &dir)?;
            hubs.push(Hub {
                plan,
                link,
                server,
                arguments,
                dir,
            });
        }
        for hub in &mut hubs {
            hub.ready().await?;
        }
        Ok(Self {
            hubs,
            api,
            address,
            ca,
            kube,
            _claim: claim,
            _directory: directory,
            _scratch: scratch,
        })
    }

    /// The API server, as its administrator.
    pub(super) fn direct(&self) -> Result<Target, BenchError> {
        direct(self.address, &self.ca.cert_pem())
    }

    /// Its administrator's client.
    pub(super) fn kube(&self) -> &Kube {
        &self.kube
    }

    /// Bytes of what the pool shares that the API server has sent since it was started.
    pub(super) async fn shared_bytes(&self) -> Result<f64, BenchError> {
        let told = Exposition::read(&self.direct()?).await?;
        Ok(told.sent(&SHARED_RESOURCES))
    }

    /// Bytes that came from the cloud, over all links, whatever they were.
    pub(super) fn cloud_bytes(&self) -> u64 {
        self.hubs
            .iter()
            .map(|hub| hub.link.counters().from_target)
            .sum()
    }

    /// Waits until every hub is what it should be to its pool: one leads, the others follow it (or nobody does either).
    pub(super) async fn settled(&self, shared: bool) -> Result<(), BenchError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut roles = Vec::with_capacity(self.hubs.len());
            for hub in &self.hubs {
                roles.push(role(&hub.status().await?));
            }
            let leaders = roles.iter().filter(|role| *role == "leader").count();
            let followers = roles.iter().filter(|role| *role == "follower").count();
            let wanted = if shared {
                (1, self.hubs.len() - 1)
            } else {
                (0, 0)
            };
            if (leaders, followers) == wanted {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(BenchError::Patience {
                    what: format!("one hub led: {roles:?}"),
                });
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Which hub leads.
    pub(super) async fn leader(&self) -> Result<usize, BenchError> {
        for (at, hub) in self.hubs.iter().enumerate() {
            if role(&hub.status().await?) == "leader" {
                return Ok(at);
            }
        }
        Err(call("/v1/status", "no hub leads"))
    }

    /// Cuts a hub from the cloud, or heals its link.
    pub(super) fn cut(&self, at: usize, cut: bool) {
        self.hubs[at]
            .link
            .set(if cut { LinkState::Cut } else { LinkState::Up });
    }

    /// Ends everything.
    pub(super) async fn stop(mut self) {
        for hub in &mut self.hubs {
            // They keep nothing that anybody will read.
            hub.kill().await;
        }
        self.api.end(Ended::Drained).await;
    }
}

/// What a hub is to its pool, by its own word.
fn role(status: &Value) -> String {
    status["pool"]["role"]
        .as_str()
        .unwrap_or("alone")
        .to_owned()
}

/// Tells the hubs who is in the pool and, where it is shared, who leads: as the controllers do, but all at once.
async fn announce(kube: &Kube, plans: &[NodePlan], shared: bool) -> Result<(), BenchError> {
    let entries: Vec<String> = plans
        .iter()
        .map(|plan| format!("{}/{}", plan.name, plan.address))
        .collect();
    let names: Vec<&str> = plans.iter().map(|plan| plan.name.as_str()).collect();
    let status =
        json!({"status": {"nodes": names, "readyNodeNum": names.len(), "unreadyNodeNum": 0}});
    let pool = format!("/apis/apps.openyurt.io/v1beta2/nodepools/{POOL}/status");
    kube.merge(&pool, &status).await.map_err(LabError::from)?;
    let name = format!("leader-hub-{POOL}");
    let map = json!({
        "metadata": {"name": name, "labels": {"openyurt.io/configmap-name": name}},
        "data": {
            "leaders": if shared { entries.first() } else { None },
            "candidates": entries.join(","),
            "pool-scoped-metadata": SHARED,
            "interconnectivity": shared.to_string(),
            "enable-leader-election": shared.to_string(),
        },
    });
    kube.create(MAPS, &map).await.map_err(LabError::from)?;
    Ok(())
}
