//! The dummy interface on a real kernel.

use crate::{
    netns::{can_run, inside, must},
    node::{Directory, eventually},
};
use std::{net::IpAddr, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use yurt_hub::{
    Config,
    config::DummyInterface,
    network::{Network, Presence},
    server::Listeners,
};

fn wanted(address: &str) -> DummyInterface {
    DummyInterface {
        name: "hub-dummy0".into(),
        address: address.parse().unwrap(),
    }
}

/// Whether any interface has the address.
fn has(address: &str) -> bool {
    let address: IpAddr = address.parse().unwrap();
    let all = must("ip", &["-o", "address", "show"]);
    all.contains(&format!(" {address}/"))
}

async fn until(address: &str, there: bool) {
    eventually("the address as it should be", async || {
        has(address) == there
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_address_is_made_kept_and_taken_away() {
    const TEST: &str = "network::the_address_is_made_kept_and_taken_away";
    if !can_run(TEST, &[("ip", &["address"])]) || !inside(TEST) {
        return;
    }
    must("ip", &["link", "set", "lo", "up"]);
    for address in ["169.254.2.1", "fd00::2:1"] {
        let before = must("ip", &["-o", "address", "show"]);
        let network = Network::start(wanted(address)).await;
        let presence = network.presence().borrow().clone();
        let Presence::On(interface) = presence else {
            panic!("{presence:?}")
        };
        assert!(has(address));
        let prefix = if address.contains(':') { 128 } else { 32 };
        let cidr = format!("{address}/{prefix}");
        assert!(must("ip", &["-o", "address", "show", "dev", &interface]).contains(&cidr));
        // Taken away by somebody: back at once, by what the kernel tells and not by the look once a minute.
        must("ip", &["address", "del", &cidr, "dev", &interface]);
        tokio::time::timeout(Duration::from_secs(20), until(address, true))
            .await
            .unwrap();
        if interface == "hub-dummy0" {
            must("ip", &["link", "del", "hub-dummy0"]);
            until(address, true).await;
        }
        // A hub that starts while this one is there finds all well, and one that was killed leaves nothing behind.
        let second = Network::start(wanted(address)).await;
        assert_eq!(*second.presence().borrow(), Presence::On(interface));
        network.end().await;
        second.end().await;
        assert_eq!(must("ip", &["-o", "address", "show"]), before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_others_made_is_left() {
    const TEST: &str = "network::an_address_that_others_made_is_left";
    if !can_run(TEST, &[("ip", &["address"])]) || !inside(TEST) {
        return;
    }
    must("ip", &["link", "set", "lo", "up"]);
    must("ip", &["address", "add", "169.254.2.1/32", "dev", "lo"]);
    let network = Network::start(wanted("169.254.2.1")).await;
    assert_eq!(*network.presence().borrow(), Presence::On("lo".into()));
    network.end().await;
    assert!(has("169.254.2.1"));
}

/// Listeners are there before the address and outlive its loss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_come_and_go_with_the_address() {
    const TEST: &str = "network::listeners_come_and_go_with_the_address";
    if !can_run(TEST, &[("ip", &["address"])]) || !inside(TEST) {
        return;
    }
    must("ip", &["link", "set", "lo", "up"]);
    let directory = Directory::new();
    let root = format!("--root-dir={}", directory.0.display());
    let flags = [
        "--node-name=n",
        "--server-addr=https://127.0.0.1:6443",
        &root,
    ];
    let config = Config::parse(flags).unwrap();
    let listeners = Listeners::bind(&config).unwrap();
    let dummy = listeners.dummy_proxy.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = dummy.accept().await {
            let _ = stream.write_all(b"hub").await;
        }
    });
    let reached = async || {
        let connected = tokio::net::TcpStream::connect("169.254.2.1:10261");
        let Ok(Ok(mut stream)) = tokio::time::timeout(Duration::from_secs(1), connected).await
        else {
            return false;
        };
        let mut text = String::new();
        stream.read_to_string(&mut text).await.is_ok() && text == "hub"
    };
    assert!(!reached().await);
    let network = Network::start(wanted("169.254.2.1")).await;
    assert!(reached().await);
    network.end().await;
    assert!(!reached().await);
    let network = Network::start(wanted("169.254.2.1")).await;
    assert!(reached().await);
    network.end().await;
}
