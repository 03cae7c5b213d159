//! Connections that change protocol: SPDY and WebSocket are bytes here.

use super::*;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Speaks first, then returns every byte, and at the caller's end says goodbye.
pub(super) fn shell(mut request: Request<Incoming>) -> Response<Body> {
    let asked = request.headers().get(header::UPGRADE).cloned();
    if request.uri().path().ends_with("/refused") {
        return Response::builder()
            .status(StatusCode::FORBIDDEN)
            .body(full("not here"))
            .unwrap();
    }
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.unwrap());
        stream.write_all(b"hello ").await.unwrap();
        let mut buffer = [0; 1024];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) => break,
                Ok(length) => stream.write_all(&buffer[..length]).await.unwrap(),
                Err(_) => return,
            }
        }
        stream.write_all(b" goodbye").await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.extend(asked.map(|asked| (header::UPGRADE, asked)));
    headers.insert("x-stream-protocol-version", HeaderValue::from_static("v4"));
    response
}

/// Asks on a raw connection, with the first bytes of the new protocol in the same write.
async fn ask(
    stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
    path: &str,
    protocol: &str,
) -> String {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: 10.0.0.1:80\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {protocol}\r\n\
         X-Tunnel-Proxy-Host: edge-1\r\nX-Tunnel-Proxy-Dest: {NODE}:10255\r\nContent-Length: 0\r\n\r\nearly "
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answered = Vec::new();
    while !answered.ends_with(b"\r\n\r\n") {
        answered.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(answered).unwrap().to_lowercase()
}

#[tokio::test]
async fn bytes_pass_both_ways_early_ones_too_and_halves_end_apart() {
    let stage = Stage::start(Setting::default()).await;
    for protocol in ["SPDY/3.1", "websocket"] {
        let mut stream = TcpStream::connect(stage.insecure).await.unwrap();
        // The pod is not known: the destination is the header's.
        let head = ask(&mut stream, "/exec/shop/other/main?command=sh", protocol).await;
        assert!(head.starts_with("http/1.1 101"), "{head}");
        assert!(
            head.contains(&format!("upgrade: {}", protocol.to_lowercase())),
            "{head}"
        );
        assert!(head.contains("x-stream-protocol-version: v4"), "{head}");
        let bulk = vec![0xa5u8; 1 << 20];
        let (mut reads, mut writes) = stream.split();
        let mut came = Vec::new();
        let sending = async {
            writes.write_all(&bulk).await.unwrap();
            writes.shutdown().await.unwrap();
        };
        let (_, read) = tokio::join!(sending, reads.read_to_end(&mut came));
        read.unwrap();
        let wanted = [b"hello early ", bulk.as_slice(), b" goodbye"].concat();
        // Who speaks first is not settled.
        assert_eq!(came.len(), wanted.len());
        assert!(came.ends_with(b" goodbye"));
        eventually("it is over", LONG, || stage.metrics.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn exec_by_tls_goes_to_the_pods_kubelet_whatever_the_host() {
    let stage = Stage::start(Setting::default()).await;
    let component = stage.component();
    let request = Request::post("/exec/shop/cart/main?command=sh")
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .body(empty())
        .unwrap();
    let mut response = component.send_upgrade(request, LONG).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let upgraded = hyper::upgrade::on(&mut response).await.unwrap();
    let mut stream = TokioIo::new(upgraded);
    let mut hello = [0; 6];
    stream.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello ");
    stream.write_all(b"ls").await.unwrap();
    let mut echoed = [0; 2];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"ls");
    let asked = stage.twin.asked.lock().unwrap().clone();
    assert_eq!(asked[0].to_string(), format!("{NODE}:10250"));
    assert_eq!(asked[0].node.as_deref(), Some("edge-1"));
    assert_eq!(stage.metrics.in_flight(), 1);
    // Gone without a word: the kubelet's side ends as well.
    drop((stream, response));
    eventually("it is over", LONG, || stage.metrics.in_flight() == 0).await;
}

#[tokio::test]
async fn what_is_refused_is_an_ordinary_answer() {
    let stage = Stage::start(Setting::default()).await;
    let request = Request::post("/exec/shop/cart/refused")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .body(empty())
        .unwrap();
    let response = stage.component().send_upgrade(request, LONG).await.unwrap();
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let text = collect(response.into_body(), 1024).await.unwrap();
    assert_eq!(text, "not here");
    eventually("it is over", LONG, || stage.metrics.in_flight() == 0).await;
}
