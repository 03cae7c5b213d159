//! Bodies alone, and over both protocols.

use crate::fixture::*;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body::Body as _;
use yurt_transport::*;

#[tokio::test]
async fn collect_joins_and_bounds() {
    let pieces = || chunks(vec![Bytes::from_static(b"abc"), Bytes::from_static(b"def")]);
    assert_eq!(collect(pieces(), 6).await.unwrap(), "abcdef");
    assert!(matches!(
        collect(pieces(), 5).await,
        Err(CollectError::TooLarge(5))
    ));
    assert_eq!(collect(empty(), 0).await.unwrap(), "");
    let (sender, body) = channel(8);
    for piece in ["a", "", "b", "c"] {
        sender
            .send(Ok(Bytes::from_static(piece.as_bytes())))
            .await
            .unwrap();
    }
    drop(sender);
    assert_eq!(collect(body, 3).await.unwrap(), "abc");
    // No length is announced here: the bound holds all the same.
    let (sender, body) = channel(8);
    sender.send(Ok(Bytes::from_static(b"abcd"))).await.unwrap();
    assert!(matches!(
        collect(body, 3).await,
        Err(CollectError::TooLarge(3))
    ));
    let (sender, body) = channel(8);
    sender.send(Err("gone".into())).await.unwrap();
    assert!(matches!(
        collect(body, 3).await,
        Err(CollectError::Broken(_))
    ));
}

#[test]
fn known_bodies_announce_their_length() {
    assert_eq!(full("abc").size_hint().exact(), Some(3));
    assert_eq!(empty().size_hint().exact(), Some(0));
    assert!(empty().is_end_stream());
    let body = chunks(vec![Bytes::from_static(b"ab"), Bytes::from_static(b"c")]);
    assert_eq!(body.size_hint().exact(), Some(3));
    assert!(chunks(vec![Bytes::new()]).is_end_stream());
    assert_eq!(channel(1).1.size_hint().exact(), None);
}

#[tokio::test]
async fn bodies_go_both_ways() {
    let (plain, tls) = (
        Server::plain(ServeOptions::default()).await,
        Server::tls(ServeOptions::default()).await,
    );
    for client in [plain.h1(), tls.h2()] {
        let sent = Bytes::from(vec![7; 300_000]);
        let request = Request::post("/echo").body(full(sent.clone())).unwrap();
        let response = client.send(request, LONG).await.unwrap();
        assert_eq!(collect(response.into_body(), 1 << 20).await.unwrap(), sent);
        let request = Request::post("/echo").body(full(vec![7; 2 << 20])).unwrap();
        let response = client.send(request, LONG).await.unwrap();
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        let response = client.send(get("/chunks"), LONG).await.unwrap();
        assert_eq!(response.headers()[header::CONTENT_LENGTH], "6");
        assert_eq!(collect(response.into_body(), 6).await.unwrap(), "onetwo");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_does_not_look_whole() {
    let (plain, tls) = (
        Server::plain(ServeOptions::default()).await,
        Server::tls(ServeOptions::default()).await,
    );
    for client in [plain.h1(), tls.h2()] {
        let response = client.send(get("/broken"), LONG).await.unwrap();
        let collected = collect(response.into_body(), 100).await;
        assert!(
            matches!(collected, Err(CollectError::Broken(_))),
            "{collected:?}"
        );
    }
}
