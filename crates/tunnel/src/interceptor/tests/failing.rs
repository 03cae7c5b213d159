//! Far ends that break off, talk rubbish or say nothing.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What a far end does with a connection.
#[derive(Clone, Copy, Debug)]
enum Manners {
    /// Says what is not HTTP.
    Rubbish,
    /// Ends at once.
    Ends,
    /// Begins an answer and breaks off.
    BreaksOff,
    /// Announces more headers than anybody has.
    Floods,
}

async fn far_end(manners: Manners) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut asked = [0; 4096];
                if !matches!(manners, Manners::Ends) {
                    let _ = stream.read(&mut asked).await;
                }
                let _ = match manners {
                    Manners::Ends => Ok(()),
                    Manners::Rubbish => stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").await,
                    Manners::BreaksOff => {
                        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf";
                        stream.write_all(head).await
                    }
                    Manners::Floods => {
                        let mut said = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
                        for number in 0..100_000 {
                            if said.is_err() {
                                break;
                            }
                            said = stream
                                .write_all(format!("x-{number}: y\r\n").as_bytes())
                                .await;
                        }
                        said
                    }
                };
            });
        }
    });
    address
}

async fn stage(manners: Manners) -> Stage {
    let places = [("10.1.0.5:80".to_owned(), far_end(manners).await)];
    let twin = Twin {
        places: places.into(),
        ..Twin::default()
    };
    Stage::start_with(Setting::default(), Some(Arc::new(twin))).await
}

#[tokio::test]
async fn what_is_no_answer_is_a_bad_gateway() {
    for manners in [Manners::Rubbish, Manners::Ends, Manners::Floods] {
        let stage = stage(manners).await;
        let plain = stage.plain();
        let asked = tokio::time::timeout(LONG, answer(&plain, get_at("/who", "10.1.0.5:80")));
        let (status, text) = asked.await.expect("an answer in time");
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{manners:?}: {text}");
        assert!(text.contains("10.1.0.5:80"), "{manners:?}: {text}");
        eventually("nothing is under way", LONG, || {
            stage.metrics.in_flight() == 0
        })
        .await;
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_breaks_off_for_the_caller() {
    let stage = stage(Manners::BreaksOff).await;
    let request = get_at("/who", "10.1.0.5:80");
    let response = stage.plain().send(request, LONG).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let read = tokio::time::timeout(LONG, collect(response.into_body(), 1024)).await;
    assert!(read.expect("it ends").is_err(), "half an answer is none");
    eventually("nothing is under way", LONG, || {
        stage.metrics.in_flight() == 0
    })
    .await;
}

/// A tunnel whose streams can be cut, as when an agent dies.
#[derive(Debug)]
struct Cutting {
    to: SocketAddr,
    cut: watch::Sender<u32>,
}

impl Tunnels for Cutting {
    fn open<'a>(&'a self, _: &'a Destination) -> Opening<'a> {
        Box::pin(async move {
            let mut stream = TcpStream::connect(self.to).await?;
            let (near, mut far) = tokio::io::duplex(64 << 10);
            let mut cut = self.cut.subscribe();
            tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut far, &mut stream) => {}
                    _ = cut.changed() => {}
                }
            });
            Ok(Box::new(near) as BoxStream)
        })
    }
}

#[tokio::test]
async fn an_agent_that_dies_ends_its_streams_at_once_and_the_next_request_finds_another_way() {
    let shutdown = CancellationToken::new();
    let _guard = shutdown.clone().drop_guard();
    let tls = yurt_pki::server_config(&serving(ca(), NODE), Some(&ca().cert_pem()), true).unwrap();
    let to = start_kubelet(Some(tls), Arc::default(), shutdown).await;
    let cutting = Arc::new(Cutting {
        to,
        cut: watch::Sender::new(0),
    });
    let stage = Stage::start_by(Setting::default(), Arc::default(), Some(cutting.clone())).await;
    let component = stage.component();
    for round in 0..3 {
        let follow = get("/containerLogs/shop/cart/main?follow=true");
        let mut response = component.send(follow, LONG).await.unwrap();
        response.body_mut().frame().await.unwrap().unwrap();
        cutting.cut.send_modify(|count| *count += 1);
        let next = tokio::time::timeout(LONG, response.body_mut().frame()).await;
        let next = next.expect("the stream ends");
        assert!(
            next.is_none_or(|frame| frame.is_err()),
            "round {round}: nothing comes any more"
        );
        let (status, _) = answer(&component, get("/who")).await;
        assert_eq!(status, StatusCode::OK, "round {round}");
    }
    eventually("nothing is under way", LONG, || {
        stage.metrics.in_flight() == 0
    })
    .await;
}

#[tokio::test]
async fn what_is_open_goes_on_after_goaway_and_what_comes_next_goes_elsewhere() {
    let tls =
        || yurt_pki::server_config(&serving(ca(), NODE), Some(&ca().cert_pem()), true).unwrap();
    let (old, new) = (Arc::<Seen>::default(), Arc::<Seen>::default());
    let (stops, stays) = (CancellationToken::new(), CancellationToken::new());
    let _ends = stays.clone().drop_guard();
    let first = start_kubelet(Some(tls()), old.clone(), stops.clone()).await;
    let second = start_kubelet(Some(tls()), new.clone(), stays).await;
    let place = Arc::new(ArcSwap::from_pointee(first));
    let there = place.clone();
    let tunnels = crate::twin::Answers(move |_: Destination| {
        let place = **there.load();
        async move { Ok(Box::new(TcpStream::connect(place).await?) as BoxStream) }
    });
    let stage = Stage::start_by(Setting::default(), Arc::default(), Some(Arc::new(tunnels))).await;
    let component = stage.component();
    let follow = || get("/containerLogs/shop/cart/main?follow=true");
    let mut response = component.send(follow(), LONG).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    place.store(Arc::new(second));
    // The kubelet stops: it says GOAWAY, and waits for what is open.
    stops.cancel();
    let mut later = Vec::new();
    for _ in 0..5 {
        let (status, _) = answer(&component, get("/who")).await;
        assert_eq!(status, StatusCode::OK);
        let mut response = component.send(follow(), LONG).await.unwrap();
        response.body_mut().frame().await.unwrap().unwrap();
        later.push(response);
    }
    let following = |seen: &Seen| seen.following.load(Ordering::SeqCst);
    // What was asked before GOAWAY was read may still have gone there.
    assert!(following(&old) >= 1, "the old stream goes on");
    assert!(following(&new) >= 4, "the new ones are elsewhere");
    assert_eq!(following(&old) + following(&new), 6);
    drop(later);
    eventually("the later ones end", LONG, || {
        following(&old) + following(&new) == 1
    })
    .await;
    assert_eq!(following(&old), 1);
    drop(response);
    eventually("the old one ends", LONG, || following(&old) == 0).await;
}
