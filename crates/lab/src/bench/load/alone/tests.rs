use super::*;
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use std::{net::Ipv4Addr, thread};
use tokio_util::sync::CancellationToken;
use yurt_transport::{Body, ServeOptions, channel, empty, full};

const WHOLE: usize = 300_000;

/// What the hub's own server makes of answers of all kinds.
async fn answer(request: Request<hyper::body::Incoming>) -> Response<Body> {
    let mut response = match request.uri().path() {
        "/whole" => Response::new(full(vec![b'x'; WHOLE])),
        "/empty" | "/refused" | "/close" => Response::new(empty()),
        // Of unknown length: chunks.
        "/pieces" => {
            let (sender, body) = channel(4);
            tokio::spawn(async move {
                for length in [1, 70_000, 17] {
                    let _ = sender.send(Ok(Bytes::from(vec![b'\n'; length]))).await;
                }
            });
            Response::new(body)
        }
        path => panic!("{path}"),
    };
    match request.uri().path() {
        "/refused" => *response.status_mut() = StatusCode::FORBIDDEN,
        "/close" => {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        _ => {}
    }
    let authorization = request.headers().get(header::AUTHORIZATION);
    if authorization.is_none_or(|value| value != "Bearer t") {
        *response.status_mut() = StatusCode::UNAUTHORIZED;
    }
    response
}

async fn server(tls: bool, stop: &CancellationToken) -> Alone {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    let ca = yurt_pki::Ca::new("test", 1).unwrap();
    let profile = yurt_pki::Profile {
        common_name: "test".into(),
        ips: vec![Ipv4Addr::LOCALHOST.into()],
        server: true,
        days: 1,
        ..yurt_pki::Profile::default()
    };
    let pair = ca.issue(&profile).unwrap();
    let serving = yurt_pki::server_config(&pair, None, true).unwrap();
    let serving = tls.then(|| Arc::new(ArcSwap::from(serving)));
    tokio::spawn(yurt_transport::serve(
        listener,
        serving,
        ServeOptions::default(),
        stop.clone(),
        answer,
    ));
    let trusted = yurt_pki::client_config(&ca.cert_pem(), None, &["http/1.1"]).unwrap();
    Alone {
        address,
        tls: tls.then_some(trusted),
        authorization: HeaderValue::from_static("Bearer t"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn answers_are_read_to_their_end() {
    for tls in [false, true] {
        let stop = CancellationToken::new();
        let alone = server(tls, &stop).await;
        let client = alone.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let mut connection = client.connect().unwrap();
            // One connection for all of it: each was read to its end, and no further.
            for _ in 0..3 {
                for (path, status, length, goes_on) in [
                    ("/whole", 200, WHOLE as u64, true),
                    ("/pieces", 200, 70_018, true),
                    ("/empty", 200, 0, true),
                    ("/refused", 403, 0, true),
                ] {
                    let request = client.request(path).unwrap();
                    let expected = Answer {
                        status,
                        length,
                        goes_on,
                    };
                    assert_eq!(connection.exchange(&request).unwrap(), expected, "{path}");
                }
            }
            let request = client.request("/close").unwrap();
            assert!(!connection.exchange(&request).unwrap().goes_on);
            // What ends is not used again.
            let mut kept = None;
            assert_eq!(client.ask(&mut kept, &request).unwrap(), 200);
            assert!(kept.is_none());
        });
        asked.await.unwrap();
        let second = Duration::from_millis(50);
        let load = alone.load("/pieces", second).await.unwrap();
        assert!(load.failed == 0 && load.rate() > 0.0 && load.p99() > 0.0);
        let load = alone.load("/refused", second).await.unwrap();
        assert!(load.failed > 0 && load.latencies.len() == 0);
        stop.cancel();
    }
}

/// A server that says just this to whoever connects, and goes.
fn saying(text: &'static [u8]) -> Alone {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut asked = [0; 4096];
        let _ = socket.read(&mut asked).unwrap();
        let _ = socket.write_all(text);
    });
    Alone {
        address,
        tls: None,
        authorization: HeaderValue::from_static("Bearer t"),
    }
}

#[test]
fn what_is_no_answer_is_none() {
    use io::ErrorKind::{InvalidData, UnexpectedEof};
    const LONG: &[u8] = &[b'x'; MAX_LINE as usize];
    for (text, kind) in [
        (&b""[..], UnexpectedEof),
        (b"HTTP/1.1 200 OK\r\n", UnexpectedEof),
        (b"HTTP/1.1 2", UnexpectedEof),
        (b"SSH-2.0-x\r\n", InvalidData),
        (b"HTTP/1.1 200 OK\r\n\r\n", InvalidData),
        (b"HTTP/1.1 200 OK\r\nnothing\r\n\r\n", InvalidData),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            InvalidData,
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
            UnexpectedEof,
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            InvalidData,
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            InvalidData,
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
            InvalidData,
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
            UnexpectedEof,
        ),
        (LONG, InvalidData),
    ] {
        let alone = saying(text);
        let request = alone.request("/").unwrap();
        let error = alone.ask(&mut None, &request).unwrap_err();
        assert_eq!(error.kind(), kind, "{:?}", text.escape_ascii().to_string());
    }
    // More than was asked for.
    let alone = saying(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nabHTTP/1.1 200 OK\r\n");
    let (request, mut kept) = (alone.request("/").unwrap(), None);
    assert_eq!(alone.ask(&mut kept, &request).unwrap(), 200);
    assert_eq!(
        alone.ask(&mut kept, &request).unwrap_err().kind(),
        InvalidData
    );
}
