//! What kube-apiserver's egress client says to a Unix socket, as the system test `tunnel::egress` recorded it from a kube-apiserver 1.36
//! (`RECORD_EGRESS`): `GET .../pods/service:8080/proxy/hello`, by CONNECT and by gRPC.

use super::*;
use crate::{
    AgentHello, Link, Options,
    anp::server::{Refused, Welcome},
};
use std::sync::Mutex;
use tokio_util::sync::CancellationToken;

const CONNECT: &[u8] = include_bytes!("recorded/connect-uds.turns");
const GRPC: &[u8] = include_bytes!("recorded/grpc-uds.turns");
/// What the pod answers.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n";
/// After which nobody says anything: the clock stands still while anybody works.
const QUIET: Duration = Duration::from_millis(50);

/// Frontends are welcome, and nobody else.
struct Frontends(Arc<dyn Tunnels>);

impl Welcome for Frontends {
    fn agent<'a>(
        &'a self,
        _: &'a AgentHello,
        _: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), Refused>> {
        Box::pin(std::future::ready(Err(Refused("no agents".into()))))
    }
    fn registered(&self, _: Arc<dyn Link>) {}
    fn frontend(&self) -> Option<Arc<dyn Tunnels>> {
        Some(self.0.clone())
    }
}

/// A turn is what was said until the server spoke again: its length (4 bytes, big-endian) and its bytes.
fn turns(mut recorded: &[u8]) -> Vec<&[u8]> {
    let mut turns = Vec::new();
    while let Some((length, rest)) = recorded.split_first_chunk::<4>() {
        let (turn, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        turns.push(turn);
        recorded = rest;
    }
    turns
}

/// What came of a recorded connection.
#[derive(Default)]
struct Heard {
    dialled: Vec<String>,
    by_target: Vec<u8>,
    /// By the client, after each turn.
    by_client: Vec<Vec<u8>>,
}

async fn replay(recorded: &[u8]) -> Heard {
    let heard = Arc::new(Mutex::new(Heard::default()));
    let target = heard.clone();
    let tunnels: Arc<dyn Tunnels> = Arc::new(twin::Answers(move |to: Destination| {
        let heard = target.clone();
        heard.lock().unwrap().dialled.push(to.to_string());
        let (ours, mut theirs) = duplex(1024);
        tokio::spawn(async move {
            let mut piece = [0; 1024];
            while let Ok(count @ 1..) = theirs.read(&mut piece).await {
                let said = {
                    let mut heard = heard.lock().unwrap();
                    heard.by_target.extend_from_slice(&piece[..count]);
                    heard.by_target.ends_with(b"\r\n\r\n")
                };
                if said {
                    theirs.write_all(ANSWER).await.expect("the answer");
                }
            }
        });
        std::future::ready(Ok(Box::new(ours) as BoxStream))
    }));
    let frontends = Arc::new(Frontends(tunnels.clone()));
    let service = Service {
        grpc: Box::new(move |io| {
            let (hello, frontends) = (twin::server_hello("s"), frontends.clone());
            let end = CancellationToken::new();
            let serving = crate::anp::server::serve(io, hello, frontends, Options::default(), end);
            Box::pin(async move { drop(serving.await) })
        }),
        ..service(tunnels)
    };
    let (ours, mut client) = duplex(64 << 10);
    let serving = tokio::spawn(serve(Box::new(ours), service));
    for turn in turns(recorded) {
        client.write_all(turn).await.expect("the server reads");
        let mut said = Vec::new();
        while let Ok(Ok(1..)) = timeout(QUIET, client.read_buf(&mut said)).await {}
        heard.lock().unwrap().by_client.push(said);
    }
    drop(client);
    serving.await.expect("no failure");
    std::mem::take(&mut *heard.lock().unwrap())
}

#[tokio::test(start_paused = true)]
async fn kube_apiservers_connect_is_understood() {
    let heard = replay(CONNECT).await;
    assert_eq!(heard.dialled, ["198.51.100.2:8080"]);
    assert!(heard.by_target.starts_with(b"GET /hello HTTP/1.1\r\n"));
    // The 200 alone: kube-apiserver takes any byte beside it for an error.
    assert_eq!(heard.by_client, [ESTABLISHED, ANSWER]);
}

#[tokio::test(start_paused = true)]
async fn kube_apiservers_grpc_is_understood() {
    let heard = replay(GRPC).await;
    assert_eq!(heard.dialled, ["198.51.100.2:8080"]);
    assert!(heard.by_target.starts_with(b"GET /hello HTTP/1.1\r\n"));
    let answers = heard.by_client.concat();
    assert!(answers.windows(ANSWER.len()).any(|part| part == ANSWER));
}
