use super::*;
use crate::directory::Known;
use std::collections::BTreeMap;
use tokio_util::sync::DropGuard;
use yurt_controlplane::stage::Stage;

fn node(name: &str, internal: &[&str], external: &[&str], edge: bool) -> NodeFacts {
    let parsed = |addresses: &[&str]| addresses.iter().map(|a| a.parse().unwrap()).collect();
    NodeFacts {
        name: name.into(),
        internal: parsed(internal),
        external: parsed(external),
        edge,
        ..NodeFacts::default()
    }
}

fn config(settings: watch::Receiver<Arc<Settings>>) -> NamesConfig {
    NamesConfig {
        settings,
        secure_port: 10263,
        insecure_port: 10264,
        period: Duration::from_secs(1800),
        timing: Timing::default(),
        metrics: Metrics::default(),
    }
}

fn with_ports(ports: &[(u16, Scheme)]) -> Settings {
    Settings {
        ports: ports.iter().copied().collect::<BTreeMap<_, _>>(),
        ..Settings::default()
    }
}

#[test]
fn records_are_a_hosts_file() {
    let nodes = [
        node("edge-node1", &["192.168.0.1"], &[], true),
        node("node1", &["10.0.0.2", "10.0.0.3"], &["1.1.1.1"], false),
        node("public", &[], &["1.2.3.4"], false),
        node("nowhere", &[], &[], false),
    ]
    .map(Arc::new);
    let service = Some("10.96.0.10".parse().unwrap());
    assert_eq!(
        records(&nodes, service).join("\n"),
        "1.2.3.4\tpublic\n10.0.0.2\tnode1\n10.96.0.10\tedge-node1"
    );
    assert_eq!(
        records(&nodes, None),
        ["1.2.3.4\tpublic", "10.0.0.2\tnode1"]
    );
}

#[test]
fn ports_of_the_service_follow_the_settings_and_foreign_ones_stay() {
    let (_sender, receiver) = watch::channel(Arc::default());
    let config = config(receiver);
    let own = |port: u16, target: u16| json!({"name": format!("dnat-{port}"), "protocol": "TCP", "port": port, "targetPort": target});
    let https = json!({"name": "https", "port": 10250, "protocol": "TCP", "targetPort": 10263});
    let foreign = json!({"name": "metrics", "port": 9445, "protocol": "TCP", "targetPort": 1});
    let udp = json!({"name": "dns", "port": 9100, "protocol": "UDP", "targetPort": 53});
    let mut kept = own(9443, 10264);
    kept["nodePort"] = 31000.into();
    let current = [
        https.clone(),
        foreign.clone(),
        udp.clone(),
        own(9999, 10264),
        kept.clone(),
    ];
    let settings = with_ports(&[
        (9100, Scheme::Http),
        (9443, Scheme::Https),
        (9445, Scheme::Http),
    ]);
    let (wanted, taken) = service_ports(&current, &config, &settings);
    kept["targetPort"] = 10263.into();
    let wanted = wanted.unwrap();
    assert_eq!(wanted, [https, foreign, udp, kept, own(9100, 10264)]);
    assert_eq!(taken, [9445]);
    assert_eq!(
        service_ports(&wanted, &config, &settings),
        (None, vec![9445])
    );
    let named_so = [json!({"name": "dnat-x", "port": 1, "protocol": "TCP"})];
    assert_eq!(service_ports(&named_so, &config, &with_ports(&[])).0, None);
}

const MAP: &str = "/api/v1/namespaces/kube-system/configmaps/yurt-tunnel-nodes";
const SERVICES_PATH: &str = "/api/v1/namespaces/kube-system/services";

struct Kept {
    stage: Stage,
    known: Arc<Known>,
    settings: watch::Sender<Arc<Settings>>,
    _guard: DropGuard,
}

impl Kept {
    async fn start(timing: Timing) -> Self {
        let stage = Box::pin(Stage::of(|_| {})).await;
        let known = Arc::new(Known::default());
        let (settings, receiver) = watch::channel(Arc::default());
        let shutdown = CancellationToken::new();
        let config = NamesConfig {
            timing,
            ..config(receiver)
        };
        let keeping = keep_names(
            config,
            stage.context.clone(),
            known.clone(),
            shutdown.clone(),
        );
        tokio::spawn(keeping);
        Self {
            stage,
            known,
            settings,
            _guard: shutdown.drop_guard(),
        }
    }

    fn put(&self, facts: NodeFacts) {
        self.known.put_node(&facts.name.clone(), Some(facts));
    }

    async fn records(&self, wanted: &str) {
        let is = |map: &Value| map["data"]["tunnel-nodes"] == wanted;
        self.stage.until(MAP, is).await;
    }

    async fn define_service(&self) -> String {
        let service = json!({"metadata": {"name": SERVICE}, "spec": {"selector": {"k8s-app": "yurt-tunnel-server"},
            "ports": [{"name": "https", "port": 10250, "targetPort": 10263}, {"name": "http", "port": 10255, "targetPort": 10264}]}});
        let created = self.stage.create(SERVICES_PATH, service).await;
        created["spec"]["clusterIP"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn names_follow_nodes_service_and_settings() {
    let kept = Kept::start(Timing::default()).await;
    kept.put(node("node1", &["10.0.0.1"], &[], false));
    kept.put(node("edge-node1", &["192.168.0.1"], &[], true));
    kept.records("10.0.0.1\tnode1").await;
    let ip = kept.define_service().await;
    let edge = format!("{ip}\tedge-node1");
    let mut lines = [edge.as_str(), "10.0.0.1\tnode1"];
    lines.sort_unstable();
    kept.records(&lines.join("\n")).await;
    // Only the node of this name, and at once.
    kept.put(node("node1", &["10.0.0.7"], &[], false));
    let mut lines = [edge.as_str(), "10.0.0.7\tnode1"];
    lines.sort_unstable();
    kept.records(&lines.join("\n")).await;
    kept.known.put_node("node1", None);
    kept.records(&edge).await;
    // Somebody else's hand is put right.
    let wrong = json!({"data": {"tunnel-nodes": "1.1.1.1\tedge-node1"}});
    kept.stage.kube.merge(MAP, &wrong).await.unwrap();
    kept.records(&edge).await;
    kept.settings
        .send_replace(Arc::new(with_ports(&[(9100, Scheme::Http)])));
    let service = format!("{SERVICES_PATH}/{SERVICE}");
    let has = |wanted: usize| {
        move |service: &Value| {
            service["spec"]["ports"]
                .as_array()
                .is_some_and(|p| p.len() == wanted)
        }
    };
    let shown = kept.stage.until(&service, has(3)).await;
    assert_eq!(shown["spec"]["ports"][2]["name"], "dnat-9100");
    assert_eq!(shown["spec"]["ports"][2]["targetPort"], 10264);
    kept.settings.send_replace(Arc::default());
    kept.stage.until(&service, has(2)).await;
    kept.stage.quiet(MAP).await;
}

#[tokio::test]
async fn one_keeps_the_names_and_another_goes_on() {
    let timing = Timing {
        lease: Duration::from_secs(2),
        renew: Duration::from_secs(1),
        retry: Duration::from_millis(100),
    };
    let kept = Kept::start(timing).await;
    kept.put(node("node1", &["10.0.0.1"], &[], false));
    kept.records("10.0.0.1\tnode1").await;
    // Another takes the lease: this one stops writing and stands by, and the process goes on.
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/tunnel-dns-controller";
    let other = json!({"spec": {"holderIdentity": "other", "leaseDurationSeconds": 3}});
    kept.stage.kube.merge(lease, &other).await.unwrap();
    let ours = |lease: &Value| {
        let holder = lease["spec"]["holderIdentity"].as_str();
        holder.is_some_and(|holder| holder != "other")
    };
    kept.put(node("node1", &["10.0.0.2"], &[], false));
    // When the other goes silent, the names are kept again.
    kept.stage.until(lease, ours).await;
    kept.records("10.0.0.2\tnode1").await;
}
