//! Bad input and broken surroundings, against the hub as a process: every answer is true or an error, what was cached stays, and
//! nobody else suffers. What one crate can prove by itself is tested there (`crates/hub/tests/hub/hostile.rs`,
//! `crates/store/tests`, `crates/transport/tests`).

mod cloud;
mod edge;

use crate::fixture::text;
use bytes::Bytes;
use cloud::{Cloud, JSON, PATIENCE, Trust};
use edge::{Edge, collect, is_online};
use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::{
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use yurt_wire::{Encoding, Object, watch, watch::EventType};

const PODS: &str = "/api/v1/namespaces/default/pods";

/// A pod of the node, with something in it that does not compress.
fn pod(name: &str, revision: u64, padding: usize) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "name": name, "namespace": "default", "uid": format!("uid-{name}"),
            "resourceVersion": revision.to_string(),
            "annotations": {"padding": noise(revision, padding)},
        },
        "spec": {"nodeName": "edge-1", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running"},
    })
}

/// Letters without a pattern, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let letter = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'a' + (state >> 33) as u8 % 26)
    });
    letter.take(len).collect()
}

fn pod_list(revision: u64, pods: &[Value]) -> String {
    json!({
        "kind": "PodList", "apiVersion": "v1",
        "metadata": {"resourceVersion": revision.to_string()}, "items": pods,
    })
    .to_string()
}

fn at(name: &str) -> String {
    format!("{PODS}/{name}")
}

/// A small file system of its own, gone with the test.
pub(crate) struct Disk(PathBuf);

impl Disk {
    /// `None`, said loudly, where that is not allowed.
    pub(crate) fn mount(at: &Path, mebibytes: u32) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(at)
            .output();
        match mounted {
            Ok(done) if done.status.success() => Some(Self(at.to_owned())),
            Ok(refused) => {
                eprintln!("SKIPPED: mount: {}", text(&refused.stderr));
                None
            }
            Err(error) => {
                eprintln!("SKIPPED: mount: {error}");
                None
            }
        }
    }

    /// Takes all the room there is.
    pub(crate) fn fill(&self) {
        let filler = std::fs::File::create(self.0.join("filler")).unwrap();
        let mut end = 0;
        for chunk in [vec![0; 64 << 10], vec![0; 1]] {
            while filler.write_all_at(&chunk, end).is_ok() {
                end += chunk.len() as u64;
            }
            end = filler.metadata().unwrap().len();
        }
    }

    pub(crate) fn free(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a hub that a failed test left may still hold it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_and_loses_nothing() {
    let mut edge = Edge::new().await;
    let Some(disk) = Disk::mount(edge.cache().parent().unwrap(), 4) else {
        return;
    };
    let errors = "node_yurthub_cache_write_errors_total";
    let pods = [pod("a", 1, 100), pod("b", 2, 100), pod("c", 3, 100)];
    edge.cloud.answer(PODS, pod_list(10, &pods));
    edge.run().await;
    edge.until("online", is_online).await;
    assert_eq!(edge.get(PODS).await.names(), ["a", "b", "c"]);
    edge.until("learned", |s| s["cache"]["objects"] == 3).await;
    edge.stop();
    edge.run_offline().await;
    assert_eq!(edge.metric(errors).await, 0.0);

    disk.fill();
    // More than the rest of a page of the last segment: this needs room.
    let mut status = pods[0].clone();
    status["status"]["message"] = noise(77, 32 << 10).into();
    let said = edge.put(&(at("a") + "/status"), &status).await.refused(500);
    assert!(
        said.contains("was not taken") && said.contains("No space left"),
        "{said}"
    );
    assert!(edge.metric(errors).await >= 1.0);
    for _ in 0..2 {
        assert_eq!(edge.get(PODS).await.names(), ["a", "b", "c"]);
        assert_eq!(edge.get(&at("a")).await.json()["status"], pods[0]["status"]);
        assert_eq!(edge.status().await["journal"]["pending"], 0);
        // The same after a kill, with the disk still full.
        edge.kill();
        edge.run_offline().await;
    }

    // The cloud is back, the room is not: what comes passes, and is known as long as the hub runs.
    let big = pod("d", 11, 64 << 10);
    let more = [pods.as_slice(), &[big]].concat();
    edge.cloud.answer(PODS, pod_list(12, &more));
    edge.go_online().await;
    assert_eq!(edge.get(PODS).await.names(), ["a", "b", "c", "d"]);
    edge.until("the disk refuses", |s| {
        s["cache"]["writeErrors"].as_u64().unwrap() >= 1
    })
    .await;
    edge.go_offline().await;
    assert_eq!(edge.get(PODS).await.names(), ["a", "b", "c", "d"]);

    // Room again: what waited is written, and writes are taken.
    let records = edge.status().await["cache"]["records"].as_u64().unwrap();
    disk.free();
    edge.until("what waited is written", |s| {
        s["cache"]["records"].as_u64().unwrap() > records
    })
    .await;
    let taken = edge.put(&(at("a") + "/status"), &status).await;
    assert_eq!(taken.status, 200, "{}", taken.text());
    edge.kill();
    edge.run_offline().await;
    let kept = edge.get(&at("a")).await.json();
    assert_eq!(kept["status"]["message"], status["status"]["message"]);
    for name in ["b", "c", "d"] {
        assert_eq!(edge.get(&at(name)).await.status, 200, "{name}");
    }
    assert_eq!(edge.status().await["cache"]["corruptRecords"], 0);
    drop(edge);
    drop(disk);
}

/// The store's files with one of these extensions.
fn files(cache: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(cache)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            extensions
                .iter()
                .any(|e| path.extension().is_some_and(|x| x == *e))
        })
        .collect();
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rot_found_at_start_costs_the_records_it_hit_and_no_list_lies() {
    rot(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rot_found_when_read_costs_the_records_it_hit_and_no_list_lies() {
    rot(true).await;
}

/// With `hints` the store trusts what it wrote down about its segments, and finds the rot only when it reads a record.
async fn rot(hints: bool) {
    const COUNT: u64 = 700;
    let mut edge = Edge::new().await;
    // More than one segment of the store.
    let pods: Vec<Value> = (0..COUNT)
        .map(|n| pod(&format!("p{n:03}"), n + 1, 14 << 10))
        .collect();
    edge.cloud.answer(PODS, pod_list(2000, &pods));
    edge.run().await;
    edge.until("online", is_online).await;
    assert_eq!(edge.get(PODS).await.names().len(), pods.len());
    edge.until("learned", |s| s["cache"]["objects"] == COUNT)
        .await;
    edge.stop();
    edge.run_offline().await;
    assert_eq!(edge.get(PODS).await.names().len(), pods.len());
    let records = edge.status().await["cache"]["records"].as_u64().unwrap();
    edge.kill();

    if !hints {
        for hint in files(&edge.cache(), &["hint"]) {
            std::fs::remove_file(hint).unwrap();
        }
    }
    let files = files(&edge.cache(), &["log", "packed"]);
    assert!(files.len() >= 2, "{files:?}");
    let mut hits = 0;
    for path in files {
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let len = file.metadata().unwrap().len();
        // A short last one may hold nothing but its newest records.
        for place in [len / 3, len / 2].into_iter().filter(|_| len > 1 << 20) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, place).unwrap();
            file.write_all_at(&[byte[0] ^ 0x55], place).unwrap();
            hits += 1;
        }
    }
    assert!(hits >= 2);

    edge.run().await;
    // Before anything was read: the list is complete or it is none.
    let said = edge.get(PODS).await.refused(503);
    assert!(said.contains("offline"), "{said}");
    edge.until("offline", |s| s["mode"] == "offline").await;
    let mut lost = 0;
    for pod in &pods {
        let got = edge
            .get(&at(pod["metadata"]["name"].as_str().unwrap()))
            .await;
        if got.status == 200 {
            assert_eq!(got.json(), *pod);
        } else {
            got.refused(503);
            lost += 1;
        }
    }
    assert!((1..=3 * hits).contains(&lost), "{lost} lost by {hits} hits");
    let status = edge.status().await;
    assert!(status["cache"]["corruptRecords"].as_u64().unwrap() >= 1);
    assert!(
        edge.metric("node_yurthub_cache_corrupt_records_total")
            .await
            >= 1.0
    );
    edge.get(PODS).await.refused(503);

    // The cloud repairs it.
    edge.go_online().await;
    assert_eq!(edge.get(PODS).await.names().len(), pods.len());
    edge.until("learned", |s| s["cache"]["objects"] == COUNT)
        .await;
    edge.go_offline().await;
    assert_eq!(edge.get(PODS).await.names().len(), pods.len());
    // For good: the old damage does not count against what was learned since, also when the node loses power.
    edge.until("written", |s| s["cache"]["records"] == records)
        .await;
    edge.kill();
    for _ in 0..2 {
        edge.run_offline().await;
        assert_eq!(edge.get(PODS).await.names().len(), pods.len());
        edge.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_the_place_of_the_cache_is_survived() {
    let garbage = noise(1, 100_000);
    let later_format = [b"yurtseg\x09".as_slice(), garbage.as_bytes()].concat();
    let file = |cache: &Path| std::fs::write(cache, &garbage);
    let files = |cache: &Path| {
        std::fs::create_dir(cache)?;
        for name in ["00000001.log", "00000002.packed", "00000002.hint", "db"] {
            std::fs::write(cache.join(name), &garbage)?;
        }
        Ok(())
    };
    let of_later = |cache: &Path| {
        std::fs::create_dir(cache)?;
        std::fs::write(cache.join("00000001.log"), &later_format)
    };
    let directories = |cache: &Path| std::fs::create_dir_all(cache.join("00000001.log"));
    type Make<'a> = &'a dyn Fn(&Path) -> std::io::Result<()>;
    let cases: [(&str, Make<'_>, bool); 4] = [
        ("a file", &file, true),
        ("files", &files, false),
        ("a later format", &of_later, true),
        ("directories", &directories, true),
    ];
    for (what, make, put_aside) in cases {
        let mut edge = Edge::new().await;
        let cache = edge.cache();
        std::fs::create_dir_all(cache.parent().unwrap()).unwrap();
        make(&cache).unwrap();
        edge.cloud.answer(PODS, pod_list(10, &[pod("a", 1, 10)]));
        edge.run().await;
        edge.until("online", is_online).await;
        assert_eq!(edge.get(PODS).await.names(), ["a"], "{what}");
        edge.until("learned", |s| s["cache"]["objects"] == 1).await;
        edge.stop();
        edge.link.cut();
        edge.run().await;
        assert_eq!(edge.get(PODS).await.names(), ["a"], "{what}");
        let log = edge.log();
        let aside: Vec<PathBuf> = std::fs::read_dir(cache.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| text(path.as_os_str().as_encoded_bytes()).contains("cache.unreadable-"))
            .collect();
        assert_eq!(aside.len(), usize::from(put_aside), "{what}: {log}");
        if put_aside {
            assert!(log.contains("moved aside"), "{what}: {log}");
        } else {
            assert!(log.contains("corrupt_records"), "{what}: {log}");
        }
        if what == "a later format" {
            let kept = std::fs::read(aside[0].join("00000001.log")).unwrap();
            assert!(kept == later_format, "what was put aside was changed");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_does_not_verify_is_told_nothing() {
    let mut edge = Edge::new().await;
    let impostor = Cloud::start(&Trust::new("impostor")).await;
    impostor.answer(PODS, pod_list(99, &[]));
    edge.cloud.answer(PODS, pod_list(10, &[pod("a", 1, 10)]));
    edge.run().await;
    edge.until("online", is_online).await;
    assert_eq!(edge.get(PODS).await.names(), ["a"]);
    edge.until("learned", |s| s["cache"]["objects"] == 1).await;

    let asked = asked_for_pods(&edge);
    edge.link.lead_to(impostor.addr);
    edge.until("offline, and the reason", |s| {
        let error = s["servers"][0]["error"].as_str().unwrap_or_default();
        s["mode"] == "offline" && error.contains("certificate")
    })
    .await;
    let healthy = format!(
        "node_yurthub_server_healthy_status{{server=\"{}\"}}",
        edge.link.addr
    );
    assert_eq!(edge.metric(&healthy).await, 0.0);
    assert!(edge.log().contains("UnknownIssuer"), "{}", edge.log());
    // The node's own components read on; somebody with a token nobody knows is turned away, and the token stays here.
    assert_eq!(edge.get(PODS).await.names(), ["a"]);
    let headers = [("accept", JSON), ("authorization", "Bearer secret")];
    let turned_away = edge.send(Method::GET, PODS, &headers, "").await.status();
    assert!(matches!(turned_away.as_u16(), 401 | 503), "{turned_away}");
    // The same for a hub that meets the impostor first.
    edge.stop();
    edge.run().await;
    edge.until("offline, and the reason", |s| {
        let error = s["servers"][0]["error"].as_str().unwrap_or_default();
        s["mode"] == "offline" && error.contains("certificate")
    })
    .await;
    assert_eq!(edge.get(PODS).await.names(), ["a"]);
    assert_eq!(impostor.seen(), [""; 0]);
    assert_eq!(asked_for_pods(&edge), asked);

    edge.link.lead_to(edge.cloud.addr);
    edge.until("online", is_online).await;
    assert_eq!(edge.status().await["servers"][0].get("error"), None);
}

/// Sends a request and reads nothing of its answer.
async fn silent_client(edge: &Edge, target: &str) -> TcpStream {
    let mut stream = TcpStream::connect(edge.proxy()).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nhost: x\r\naccept: {JSON}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_a_large_list_hold_up_nobody() {
    const SILENT: usize = 12;
    let mut edge = Edge::new().await;
    let large = "/api/v1/namespaces/large/pods";
    // Far more than the buffers of the sockets on the way.
    let pods: Vec<Value> = (0..32)
        .map(|n| pod(&format!("p{n}"), n + 1, 1 << 20))
        .collect();
    edge.cloud.answer(large, pod_list(100, &pods));
    edge.cloud.answer(PODS, pod_list(10, &[pod("a", 1, 10)]));
    edge.run().await;
    edge.until("online", is_online).await;
    let mut silent = Vec::new();
    for _ in 0..SILENT {
        silent.push(silent_client(&edge, large).await);
    }
    edge.until("all under way", |s| s["inFlightRequests"] == SILENT)
        .await;
    for _ in 0..50 {
        assert_eq!(edge.get(PODS).await.names(), ["a"]);
    }
    // One that reads gets the whole.
    assert_eq!(edge.get(large).await.names().len(), pods.len());
    let memory = edge.memory();
    assert!(memory < 160, "{memory} MiB for {SILENT} lists of 32 MiB");
    assert_eq!(edge.status().await["inFlightRequests"], SILENT);
    silent.clear();
    edge.until("none left", |s| s["inFlightRequests"] == 0)
        .await;

    // The same from the cache.
    let cached: Vec<Value> = (0..24)
        .map(|n| pod(&format!("p{n}"), n + 200, 500 << 10))
        .collect();
    edge.cloud.answer(PODS, pod_list(500, &cached));
    edge.get(PODS).await.names();
    edge.until("learned", |s| s["cache"]["objects"] == 24).await;
    edge.go_offline().await;
    for _ in 0..SILENT {
        silent.push(silent_client(&edge, PODS).await);
    }
    for _ in 0..50 {
        assert_eq!(edge.get(&at("p7")).await.json(), cached[7]);
    }
    // Who took nothing makes room for who does: only so many bytes of lists wait at one time.
    assert_eq!(edge.get(PODS).await.names().len(), cached.len());
    let memory = edge.memory();
    assert!(memory < 200, "{memory} MiB for {SILENT} lists of 12 MiB");
    edge.check_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_heads_and_bodies_are_refused_with_and_without_the_cloud() {
    let mut edge = Edge::new().await;
    edge.cloud.answer(PODS, pod_list(10, &[pod("a", 1, 10)]));
    edge.run().await;
    edge.until("online", is_online).await;
    assert_eq!(edge.get(PODS).await.names(), ["a"]);
    edge.until("learned", |s| s["cache"]["objects"] == 1).await;
    for online in [true, false] {
        if !online {
            edge.go_offline().await;
        }
        let asked = asked_for_pods(&edge);
        // The limit is 64 KiB, and one more read of that much may be under way.
        let long = "x".repeat(300_000);
        let heads = [
            format!("GET {PODS} HTTP/1.1\r\nhost: x\r\nx-long: {long}\r\n\r\n"),
            format!("GET {PODS}?x={long} HTTP/1.1\r\nhost: x\r\n\r\n"),
        ];
        for head in heads {
            let answer = raw(&edge, head.as_bytes()).await;
            assert!(
                answer.starts_with("HTTP/1.1 431 ") || answer.starts_with("HTTP/1.1 414 "),
                "{answer}"
            );
        }
        let head = format!(
            "PUT {}/status HTTP/1.1\r\nhost: x\r\ncontent-type: {JSON}\r\naccept: {JSON}\r\ncontent-length: {}\r\n\r\n",
            at("a"),
            64 << 20
        );
        let answer = raw(&edge, head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.contains("RequestEntityTooLarge"), "{answer}");
        assert_eq!(asked_for_pods(&edge), asked, "the cloud was bothered");
        assert_eq!(edge.get(PODS).await.names(), ["a"]);
        if online {
            // That one did reach it.
            assert_eq!(asked_for_pods(&edge), asked + 1);
        }
    }
}

/// Requests of clients that reached the cloud; the hub asks for documents of its own accord.
fn asked_for_pods(edge: &Edge) -> usize {
    let seen = edge.cloud.seen();
    seen.iter().filter(|seen| seen.contains("/pods")).count()
}

/// Sends bytes as they are; the answer up to its end, or to the end of its first 4 KiB.
async fn raw(edge: &Edge, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(edge.proxy()).await.unwrap();
    // Refused before its end, the rest may find the connection closed.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => answer.extend_from_slice(&buffer[..count]),
            }
            if answer.len() > 4096 || text(&answer).contains("\"code\":") {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading)
        .await
        .expect("an answer");
    text(&answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_is_never_taken_for_whole() {
    let mut edge = Edge::new().await;
    let known: Vec<Value> = (0..100)
        .map(|n| pod(&format!("p{n:03}"), n + 1, 1000))
        .collect();
    edge.cloud.answer(PODS, pod_list(200, &known));
    edge.run().await;
    edge.until("online", is_online).await;
    let names = edge.get(PODS).await.names();
    edge.until("learned", |s| s["cache"]["objects"] == known.len())
        .await;
    for announced in [true, false] {
        let newer: Vec<Value> = (0..300)
            .map(|n| pod(&format!("q{n:03}"), n + 300, 1000))
            .collect();
        edge.cloud
            .answer_half(PODS, pod_list(700, &newer), announced);
        let mut response = edge.send(Method::GET, PODS, &[("accept", JSON)], "").await;
        assert_eq!(response.status(), 200);
        let first = response.body_mut().frame().await.unwrap().unwrap();
        assert!(first.into_data().is_ok_and(|data| !data.is_empty()));
        edge.link.cut();
        let broken = tokio::time::timeout(PATIENCE, collect(response)).await;
        let broken = broken.expect("an end, though the cloud is silent");
        assert!(broken.is_err(), "half a list was passed on as a whole one");
        edge.until("offline", |s| s["mode"] == "offline").await;
        assert_eq!(edge.get(PODS).await.names(), names);
        edge.go_online().await;
    }
    // Neither did the node learn anything of it for later.
    edge.stop();
    edge.link.cut();
    edge.run().await;
    assert_eq!(edge.get(PODS).await.names(), names);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_frame_is_not_continued_with_another() {
    let mut edge = Edge::new().await;
    edge.run().await;
    edge.until("online", is_online).await;
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        let event = |revision: u64| -> Bytes {
            let object = Object::from_json_value(&pod("a", revision, 3000), encoding).unwrap();
            watch::encode(EventType::Modified, &object, encoding)
        };
        let target = format!("{PODS}?watch=true&resourceVersion=5");
        let accept = [("accept", encoding.watch_content_type())];
        let mut response = edge.send(Method::GET, &target, &accept, "").await;
        assert_eq!(response.status(), 200);
        let cloud = edge.cloud.watch().unwrap();
        cloud.send(Ok(event(6))).await.unwrap();
        let mut came = Vec::new();
        until_len(&mut response, &mut came, event(6).len()).await;
        cloud.send(Ok(event(7).slice(..2000))).await.unwrap();
        edge.cloud.break_watches().await;

        // The hub goes on behind the last whole event, and the client sees whole events only.
        let deadline = std::time::Instant::now() + PATIENCE;
        let resumed = loop {
            if let Some(watch) = edge.cloud.watch() {
                break watch;
            }
            assert!(std::time::Instant::now() < deadline, "{}", edge.log());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        };
        let asked = edge.cloud.seen();
        let asked = asked.iter().rfind(|seen| seen.contains("watch=true"));
        let asked = asked.unwrap();
        assert!(asked.contains("resourceVersion=6"), "{asked}");
        resumed.send(Ok(event(7))).await.unwrap();
        resumed.send(Ok(event(8))).await.unwrap();
        let expected = [event(6), event(7), event(8)].concat();
        until_len(&mut response, &mut came, expected.len()).await;
        assert!(came == expected, "{encoding:?}: {}", text(&came));
        drop(response);
        edge.until("no watch left", |s| s["watches"]["open"] == 0)
            .await;
    }
}

/// Reads a stream up to so many bytes.
async fn until_len(
    response: &mut http::Response<yurt_transport::ResponseBody>,
    came: &mut Vec<u8>,
    len: usize,
) {
    while came.len() < len {
        let frame = tokio::time::timeout(PATIENCE, response.body_mut().frame()).await;
        let frame = frame
            .expect("a frame in time")
            .expect("no end")
            .expect("no break");
        came.extend_from_slice(&frame.into_data().unwrap());
    }
}
