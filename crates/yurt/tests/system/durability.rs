//! `yurt apiserver` is killed while it is written to, again and again, and its disk fills up: what it acknowledged stays.

use crate::{
    faults::{Disk, noise},
    fixture::{PATIENCE, Scratch, signal, yurt},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use yurt_controller::{
    kube::{Kube, KubeError},
    kubeconfig::Access,
};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// The server as a process.
struct Server {
    child: Child,
    kube: Kube,
}

impl Server {
    /// Starts it, its log going to `server.log` beside its data, and waits until it answers.
    async fn start(dir: &Path) -> Self {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.with_extension("log"))
            .unwrap();
        let mut child = yurt()
            .args(["apiserver", "--port", "0", "--data-dir"])
            .arg(dir)
            .env("YURT_EXIT_WITH_PARENT", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n", "{}", said(dir));
        let access = Access::read(&dir.join("admin.kubeconfig")).unwrap();
        let ca = access.ca.unwrap();
        let tls = yurt_pki::client_config(&ca, access.certificate.as_ref(), &["h2"]).unwrap();
        let kube = Kube::new(&access.authority, Some(tls), None, Duration::from_secs(20));
        Self { child, kube }
    }

    fn kill(&mut self) {
        signal(self.child.id(), rustix::process::Signal::KILL);
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn said(dir: &Path) -> String {
    fs::read_to_string(dir.with_extension("log")).unwrap_or_default()
}

/// The store's files of one kind, in order.
fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir.join("apiserver/objects"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    found.sort();
    found
}

fn config_map(name: &str, n: u64, padding: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
        "data": {"n": n.to_string(), "padding": noise(n, padding)}})
}

fn revision(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str().unwrap();
    text.parse().unwrap()
}

/// What an object holds: the number of the write that made it so; `None` when it is not there.
type State = Option<u64>;

/// What a client knows of its objects.
struct Client {
    id: u64,
    /// As it was told.
    acknowledged: BTreeMap<String, State>,
    /// The write that it has no answer to.
    open: Option<(String, State)>,
    /// The newest revision it was told.
    newest: u64,
    writes: u64,
}

impl Client {
    /// Creates, changes and deletes its objects at random until the server is gone.
    async fn work(mut self, kube: Kube, mut random: fastrand::Rng) -> Self {
        loop {
            let name = format!("client-{}-{}", self.id, random.u8(..4));
            let at = format!("{CONFIG_MAPS}/{name}");
            let n = random.u64(..);
            let present = self.acknowledged.get(&name).copied().flatten().is_some();
            let delete = present && random.u8(..4) == 0;
            let wanted = (!delete).then_some(n);
            self.open = Some((name.clone(), wanted));
            let object = config_map(&name, n, random.usize(..40_000));
            let answer = match (present, delete) {
                (_, true) => kube.delete(&at).await,
                (true, false) => kube.replace(&at, &object).await,
                (false, false) => kube.create(CONFIG_MAPS, &object).await,
            };
            match answer {
                Ok(answer) => {
                    if !delete {
                        let told = revision(&answer);
                        assert!(told > self.newest, "{told} after {}", self.newest);
                        self.newest = told;
                    }
                    self.writes += 1;
                    self.acknowledged.insert(name, wanted);
                    self.open = None;
                }
                Err(KubeError::Refused { message, code, .. }) => {
                    panic!("{name}: {code} {message}");
                }
                // Killed: this one may have been done or not.
                Err(_) => return self,
            }
        }
    }

    /// Compares what it knows with what is there, and goes on from that.
    fn check(&mut self, found: &BTreeMap<String, u64>) {
        for (name, state) in &mut self.acknowledged {
            let now = found.get(name).copied();
            let open = self.open.as_ref().filter(|(of, _)| of == name);
            let possible = now == *state || open.is_some_and(|(_, wanted)| now == *wanted);
            assert!(
                possible,
                "{name}: {now:?} is there; acknowledged {state:?}, without an answer {open:?}"
            );
            *state = now;
        }
        if let Some((name, _)) = self.open.take() {
            let now = found.get(&name).copied();
            self.acknowledged.insert(name, now);
        }
    }
}

/// Everything in the server, and the revision of that.
async fn everything(kube: &Kube) -> (BTreeMap<String, u64>, u64) {
    let list = kube.get(CONFIG_MAPS).await.unwrap();
    let items = list["items"].as_array().unwrap().iter();
    let found = items
        .filter_map(|item| {
            let name = item["metadata"]["name"].as_str()?;
            let n = item["data"]["n"].as_str()?.parse().ok()?;
            let padding = item["data"]["padding"].as_str()?;
            assert_eq!(padding, noise(n, padding.len()), "{name} is whole");
            Some((name.to_owned(), n))
        })
        .collect();
    (found, revision(&list))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_write_survives_kills_at_any_moment() {
    const ROUNDS: u32 = 8;
    const CLIENTS: u64 = 8;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let scratch = Scratch::new();
    let dir = scratch.path().join("server");
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|id| Client {
            id,
            acknowledged: BTreeMap::new(),
            open: None,
            newest: 0,
            writes: 0,
        })
        .collect();
    let (mut newest, mut repaired) = (0, 0);
    for round in 0..=ROUNDS {
        let mut server = Server::start(&dir).await;
        let (found, at) = everything(&server.kube).await;
        for client in &mut clients {
            client.check(&found);
            newest = newest.max(client.newest);
        }
        assert!(at >= newest, "round {round}: {at}, {newest} was told");
        let probe = config_map(&format!("probe-{round}"), 0, 0);
        let probe = server.kube.create(CONFIG_MAPS, &probe).await.unwrap();
        assert!(revision(&probe) > at.max(newest), "versions go on");
        newest = revision(&probe);
        let count = said(&dir).matches("store repaired").count();
        // A kill in the middle of a long write tears the tail as well.
        assert!(count >= repaired, "round {round}: {count} of {repaired}");
        assert!(count <= round as usize, "round {round}: once a start");
        repaired = count;
        if round == ROUNDS {
            break;
        }

        let mut tasks = JoinSet::new();
        for mut client in clients {
            client.newest = newest;
            tasks.spawn(client.work(server.kube.clone(), random.fork()));
        }
        tokio::time::sleep(Duration::from_millis(random.u64(50..900))).await;
        server.kill();
        clients = tasks.join_all().await;
        if random.bool() {
            // As a machine leaves it that lost its power in the middle of a write.
            let tail = files(&dir, "log").pop().unwrap();
            let mut tail = OpenOptions::new().append(true).open(tail).unwrap();
            let torn: Vec<u8> = (0..random.usize(1..3000)).map(|_| random.u8(..)).collect();
            tail.write_all(&torn).unwrap();
            repaired += 1;
        }
    }
    let writes: u64 = clients.iter().map(|c| c.writes).sum();
    assert!(writes > 0, "something was acknowledged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_are_rewritten_while_they_are_written_to() {
    let scratch = Scratch::new();
    let dir = scratch.path().join("server");
    let mut server = Server::start(&dir).await;
    let kept = config_map("kept", 1, 100_000);
    server.kube.create(CONFIG_MAPS, &kept).await.unwrap();
    let busy = config_map("busy", 0, 0);
    server.kube.create(CONFIG_MAPS, &busy).await.unwrap();
    let at = format!("{CONFIG_MAPS}/busy");
    let begun = Instant::now();
    let mut last = 0;
    // A segment has 32 MiB; most of what is in it is garbage soon.
    while files(&dir, "packed").is_empty() {
        last += 1;
        let object = config_map("busy", last, 900_000);
        server.kube.replace(&at, &object).await.unwrap();
        assert!(
            begun.elapsed() < 2 * PATIENCE,
            "{last} writes, nothing rewritten"
        );
    }
    for _ in 0..3 {
        last += 1;
        let object = config_map("busy", last, 900_000);
        server.kube.replace(&at, &object).await.unwrap();
    }
    server.kill();
    let server = Server::start(&dir).await;
    let (found, _) = everything(&server.kube).await;
    assert_eq!(found.get("kept"), Some(&1));
    assert_eq!(found.get("busy"), Some(&last));
    assert_eq!(said(&dir).matches("store repaired").count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_and_the_server_lives_on() {
    let scratch = Scratch::new();
    let dir = scratch.path().join("server");
    let Some(disk) = Disk::mount(&dir, 8) else {
        return;
    };
    let mut server = Server::start(&dir).await;
    let kept = config_map("kept", 1, 1000);
    server.kube.create(CONFIG_MAPS, &kept).await.unwrap();
    let (_, before) = everything(&server.kube).await;
    disk.fill();
    let large = config_map("large", 2, 64 << 10);
    for _ in 0..3 {
        let refused = server.kube.create(CONFIG_MAPS, &large).await.unwrap_err();
        assert_eq!(refused.code(), Some(500), "{refused}");
        assert!(refused.to_string().contains("No space left"), "{refused}");
        let (found, _) = everything(&server.kube).await;
        assert_eq!(found.keys().collect::<Vec<_>>(), ["kept"]);
    }
    disk.free();
    let created = server.kube.create(CONFIG_MAPS, &large).await.unwrap();
    assert!(revision(&created) > before);
    server.kill();
    let server = Server::start(&dir).await;
    let (found, at) = everything(&server.kube).await;
    assert_eq!(
        found,
        BTreeMap::from([("kept".into(), 1), ("large".into(), 2)])
    );
    assert!(at >= revision(&created));
    drop(server);
    drop(disk);
}
