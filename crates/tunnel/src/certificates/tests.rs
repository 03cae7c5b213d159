//! Keepers against an API server and Kubernetes' signer; the test approves.

use super::*;
use crate::cluster::{Cluster, Way};
use jiff::Timestamp;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::timeout;
use yurt_controller::signing_request::{is_open, parse, usages, with_condition};
use yurt_controlplane::{Settings, stage::Stage};
use yurt_pki::{Ca, KeyPairPem, Profile};

const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const SOON: Duration = Duration::from_secs(20);

struct World {
    stage: Stage,
    ca: Ca,
    directory: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let ca = Ca::new("cluster", 3650).unwrap();
        let settings = Settings {
            signing: Some(ca.to_pem()),
            ..Settings::default()
        };
        Self {
            stage: Stage::start_with("certificatesigningrequest-signing-controller", settings)
                .await,
            ca,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn keeping(&self, identity: Identity, wanted: watch::Receiver<Option<Profile>>) -> Keeping {
        let way = Way::Given(self.stage.kube.clone(), self.ca.cert_pem());
        Keeping {
            identity,
            directory: self.directory.path().to_owned(),
            cluster: Cluster::new(way, CancellationToken::new()),
            wanted,
            ca: None,
            grace: Duration::from_millis(500),
            metrics: CertificateMetrics::default(),
            events: Some(Events::about_service(
                &self.stage.kube,
                &CancellationToken::new(),
                "test",
                "default",
                "tunnel",
            )),
        }
    }

    /// Messages of the Events of a reason, as soon as there are so many.
    async fn told(&self, reason: &str, count: usize) -> Vec<String> {
        let messages = |list: &Value| -> Vec<String> {
            let items = list["items"].as_array().cloned().unwrap_or_default();
            let items = items.iter().filter(|event| event["reason"] == reason);
            let messages = items.map(|event| event["message"].as_str().unwrap().to_owned());
            messages.collect()
        };
        let path = "/api/v1/namespaces/default/events";
        let list = self.stage.until(path, |list| messages(list).len() >= count);
        messages(&list.await)
    }

    /// The request that nobody has decided yet.
    async fn open_request(&self) -> Value {
        let open = |list: &Value| {
            list["items"]
                .as_array()
                .is_some_and(|all| all.iter().any(is_open))
        };
        let list = self.stage.until(CSRS, open).await;
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .find(|csr| is_open(csr))
            .unwrap()
            .clone()
    }

    async fn approve(&self, csr: &Value) {
        let name = csr["metadata"]["name"].as_str().unwrap();
        let patch = with_condition(csr, "Approved", "Test", "", Timestamp::now());
        self.stage
            .kube
            .merge(&format!("{CSRS}/{name}/approval"), &patch)
            .await
            .unwrap();
    }

    fn current(&self, identity: Identity) -> PathBuf {
        self.directory
            .path()
            .join(format!("{}-current.pem", identity.file_prefix()))
    }
}

fn serving(dns: &[&str]) -> Profile {
    shape::server(
        dns.iter().map(|name| (*name).to_owned()),
        ["127.0.0.1".parse().unwrap()],
    )
}

fn dns(kept: &Kept) -> Vec<String> {
    kept.current()
        .pair
        .as_ref()
        .map(|pair| pair.leaf.dns.clone())
        .unwrap_or_default()
}

async fn changed(kept: &mut Kept) {
    timeout(SOON, kept.changed())
        .await
        .expect("another certificate in time");
}

#[tokio::test]
async fn three_identities_ask_for_exactly_their_shapes_and_have_files_of_their_own() {
    let world = World::start().await;
    let agent = shape::agent("edge-1", ["10.0.0.7".parse().unwrap()]);
    for (identity, profile, signer) in [
        (
            Identity::Server,
            serving(&["tunnel"]),
            "kubernetes.io/kubelet-serving",
        ),
        (
            Identity::ProxyClient,
            shape::proxy_client(),
            "kubernetes.io/kube-apiserver-client",
        ),
        (
            Identity::Agent,
            agent,
            "kubernetes.io/kube-apiserver-client",
        ),
    ] {
        let stop = CancellationToken::new();
        let wanted = watch::channel(Some(profile.clone())).1;
        let mut kept = keep(world.keeping(identity, wanted), stop.clone());
        assert!(
            kept.current().client_config(&[]).is_err(),
            "nothing to show yet"
        );
        let csr = world.open_request().await;
        assert_eq!(csr["spec"]["signerName"], signer);
        let last = if identity == Identity::Server {
            "server auth"
        } else {
            "client auth"
        };
        assert_eq!(
            usages(&csr),
            ["digital signature", "key encipherment", last]
        );
        let asked = parse(&csr).expect("a request");
        assert_eq!(
            (&asked.subject.user, &asked.subject.groups),
            (&profile.common_name, &profile.organizations)
        );
        assert_eq!((&asked.dns, &asked.ips), (&profile.dns, &profile.ips));
        world.approve(&csr).await;
        let held = timeout(SOON, kept.ready())
            .await
            .expect("a certificate in time");
        held.client_config(&[b"h2"]).unwrap();
        held.server_config(&TlsPolicy::default(), &[b"h2"]).unwrap();
        assert!(world.current(identity).exists());
        stop.cancel();
    }
    let files: BTreeSet<PathBuf> = [Identity::Server, Identity::ProxyClient, Identity::Agent]
        .map(|i| world.current(i))
        .into();
    assert_eq!(files.len(), 3);
}

#[tokio::test]
async fn names_are_followed_and_the_old_certificate_serves_until_the_new_one_is_there() {
    let world = World::start().await;
    let (names, wanted) = watch::channel(None);
    let service = serde_json::json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "tunnel"}, "spec": {"ports": [{"port": 1}]}});
    let path = "/api/v1/namespaces/default/services";
    let service = world.stage.kube.create(path, &service).await.unwrap();
    let mut kept = keep(
        world.keeping(Identity::Server, wanted),
        CancellationToken::new(),
    );
    names.send_replace(Some(serving(&["a"])));
    world.approve(&world.open_request().await).await;
    timeout(SOON, kept.ready())
        .await
        .expect("a certificate in time");
    // The acceptance list has 10 s for it.
    let renewed = timeout(Duration::from_secs(10), async {
        names.send_replace(Some(serving(&["a", "b"])));
        let csr = world.open_request().await;
        assert_eq!(dns(&kept), ["a"], "until the new one is there");
        world.approve(&csr).await;
        kept.changed().await;
    });
    renewed.await.expect("within 10 s");
    assert_eq!(dns(&kept), ["a", "b"]);
    // What is beyond what is wanted is left out after a grace time.
    names.send_replace(Some(serving(&["b"])));
    world.approve(&world.open_request().await).await;
    changed(&mut kept).await;
    assert_eq!(dns(&kept), ["b"]);
    // People are told of each change once, where they describe the Service.
    let mut told = world.told("CertificateNamesChanged", 3).await;
    told.sort();
    assert_eq!(
        told,
        [
            "the certificate (server) is not any more for a",
            "the certificate (server) is now also for 127.0.0.1, a",
            "the certificate (server) is now also for b",
        ]
    );
    let events = world.stage.kube.get("/api/v1/namespaces/default/events");
    let events = events.await.unwrap();
    let mut about = events["items"].as_array().unwrap().iter();
    let uid = &service["metadata"]["uid"];
    assert!(about.all(|event| event["involvedObject"]["uid"] == *uid));
}

#[tokio::test]
async fn what_nobody_signs_is_told_once() {
    let world = World::start().await;
    let (names, wanted) = watch::channel(Some(serving(&["a"])));
    let keeping = world.keeping(Identity::Server, wanted);
    let metrics = keeping.metrics.clone();
    let stop = CancellationToken::new();
    let kept = keep(keeping, stop.clone());
    for round in 1..=2 {
        let csr = world.open_request().await;
        let name = csr["metadata"]["name"].as_str().unwrap();
        let patch = with_condition(&csr, "Denied", "Test", "not here", Timestamp::now());
        let path = format!("{CSRS}/{name}/approval");
        world.stage.kube.merge(&path, &patch).await.unwrap();
        timeout(SOON, async {
            while metrics.failures_of(Identity::Server) < round {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("noticed");
        // Only somebody's doing helps: another wish is asked for at once.
        names.send_replace(Some(serving(&["a", "b"])));
    }
    let told = world.told("CertificateNotIssued", 1).await;
    assert!(
        told.iter().all(|told| told.contains("not here")),
        "{told:?}"
    );
    let mut different = told.clone();
    different.dedup();
    assert_eq!(different.len(), told.len(), "{told:?}");
    assert!(kept.current().pair.is_none());
    stop.cancel();
}

#[tokio::test]
async fn most_of_its_time_over_it_is_renewed_and_not_before() {
    let world = World::start().await;
    let profile = serving(&["a"]);
    let day = Duration::from_secs(24 * 3600);
    // Issued so long ago that so many percent of its 100 days are over.
    let stored = |over: u32| {
        let made = yurt_pki::request(&profile).unwrap();
        let asked = yurt_pki::SigningRequest::from_pem(&made.request).unwrap();
        let usages = yurt_pki::Usages::from_names(Identity::Server.usages()).unwrap();
        let from = std::time::SystemTime::now() - day * over;
        let cert = world
            .ca
            .sign_request(&asked, &usages, from, from + day * 100);
        let pair = Pair::of(KeyPairPem {
            cert: cert.unwrap(),
            key: made.key,
        })
        .unwrap();
        let store =
            yurt_pki::store::PairStore::new(world.directory.path(), Identity::Server.file_prefix());
        store.save(&pair.pem, yurt_pki::renewal::now()).unwrap();
        pair.leaf
    };
    let shown = |kept: &Kept| kept.current().pair.as_ref().map(|pair| pair.leaf.clone());
    let young = stored(69);
    let (wish, wanted) = watch::channel(Some(profile.clone()));
    let stop = CancellationToken::new();
    let kept = keep(world.keeping(Identity::Server, wanted), stop.clone());
    assert_eq!(shown(&kept), Some(young));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let requests = world.stage.kube.get(CSRS).await.unwrap();
    assert_eq!(requests["items"].as_array().map(Vec::len), Some(0));
    stop.cancel();
    let old = stored(91);
    let mut kept = keep(
        world.keeping(Identity::Server, wish.subscribe()),
        CancellationToken::new(),
    );
    let csr = world.open_request().await;
    assert_eq!(
        shown(&kept),
        Some(old.clone()),
        "until the new one is there"
    );
    world.approve(&csr).await;
    changed(&mut kept).await;
    let new = shown(&kept).unwrap();
    assert!(new.not_after > old.not_after && new.dns == old.dns);
}

#[tokio::test]
async fn a_restart_shows_what_there_is_and_asks_anew_for_what_is_corrupted() {
    let world = World::start().await;
    let wanted = watch::channel(Some(serving(&["a"]))).1;
    let stop = CancellationToken::new();
    let mut kept = keep(
        world.keeping(Identity::Server, wanted.clone()),
        stop.clone(),
    );
    // A process that ends while it waits goes on with the same request.
    let csr = world.open_request().await;
    stop.cancel();
    drop(kept);
    let stop = CancellationToken::new();
    kept = keep(
        world.keeping(Identity::Server, wanted.clone()),
        stop.clone(),
    );
    world.approve(&csr).await;
    let first = timeout(SOON, kept.ready())
        .await
        .expect("a certificate in time");
    stop.cancel();
    let again = keep(
        world.keeping(Identity::Server, wanted.clone()),
        CancellationToken::new(),
    );
    assert_eq!(
        again.current().pair.as_ref().map(|p| &p.leaf),
        first.pair.as_ref().map(|p| &p.leaf)
    );
    std::fs::write(world.current(Identity::Server), "torn").unwrap();
    let mut torn = keep(
        world.keeping(Identity::Server, wanted),
        CancellationToken::new(),
    );
    assert!(torn.current().pair.is_none());
    world.approve(&world.open_request().await).await;
    timeout(SOON, torn.ready())
        .await
        .expect("a certificate in time");
}

fn write(directory: &Path, ca: &Ca, pair: &KeyPairPem) -> GivenFiles {
    let file = |name: &str, text: &str| {
        let path = directory.join(name);
        // Whole or not at all, as whoever rotates certificates does.
        let fresh = directory.join(format!("{name}.new"));
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(&fresh, &path).unwrap();
        path
    };
    GivenFiles {
        cert: file("cert", &pair.cert),
        key: file("key", &pair.key),
        ca: file("ca", &ca.cert_pem()),
    }
}

#[tokio::test]
async fn files_are_read_anew_and_rubbish_leaves_what_was() {
    let (ca, directory) = (Ca::new("test", 10).unwrap(), tempfile::tempdir().unwrap());
    let issue = |name: &str| {
        let profile = Profile {
            days: 1,
            ..serving(&[name])
        };
        ca.issue(&profile).unwrap()
    };
    let files = write(directory.path(), &ca, &issue("a"));
    let stop = CancellationToken::new();
    let follow = || {
        follow_files(
            files.clone(),
            Identity::Server,
            CertificateMetrics::default(),
            stop.clone(),
        )
    };
    let mut kept = follow().unwrap();
    assert_eq!(dns(&kept), ["a"]);
    let serving = kept.serving(&[b"h2"], stop.clone()).unwrap();
    let before = serving.load_full();
    write(directory.path(), &ca, &issue("b"));
    changed(&mut kept).await;
    assert_eq!(dns(&kept), ["b"]);
    timeout(SOON, async {
        while Arc::ptr_eq(&serving.load_full(), &before) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the listener shows it");
    std::fs::write(&files.cert, "rubbish").unwrap();
    assert!(follow().is_err(), "at the start it is said");
    assert_eq!(dns(&kept), ["b"]);
}
