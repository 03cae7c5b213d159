mod recorded;

use super::*;
use crate::{DialError, twin};
use tokio::io::duplex;

fn service(tunnels: Arc<dyn Tunnels>) -> Service {
    Service {
        tunnels: Box::new(move || Ok(tunnels)),
        page: Arc::new(Box::new(|path| {
            let path = path.to_owned();
            Box::pin(async move { (path == "/page").then(|| (StatusCode::OK, "{}".into())) })
        })),
        grpc: Box::new(|mut io| {
            Box::pin(async move {
                let mut preface = vec![0; PREFACE.len()];
                io.read_exact(&mut preface).await.expect("the preface");
                io.write_all(&preface).await.expect("written");
            })
        }),
        http: Gauge::default(),
        unread: None,
    }
}

/// What is answered to bytes that arrive in pieces of this size.
async fn said(bytes: &[u8], piece: usize) -> Vec<u8> {
    let (ours, mut theirs) = duplex(64);
    let serving = tokio::spawn(serve(Box::new(ours), service(twin::served(twin::echo))));
    let (mut reading, mut writing) = tokio::io::split(&mut theirs);
    let mut answer = Vec::new();
    let say = async {
        for piece in bytes.chunks(piece) {
            if writing.write_all(piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let read = async {
        let _ = timeout(Duration::from_secs(1), reading.read_to_end(&mut answer)).await;
    };
    tokio::join!(say, read);
    drop(theirs);
    serving.await.expect("no failure");
    answer
}

#[tokio::test(start_paused = true)]
async fn first_bytes_tell_the_protocol_however_they_arrive() {
    for piece in [1, 3, 1000] {
        assert_eq!(said(PREFACE, piece).await, PREFACE);
        let connect = b"CONNECT a:1 HTTP/1.1\r\n\r\nhello";
        let answer = said(connect, piece).await;
        let answer = String::from_utf8(answer).expect("text");
        assert_eq!(answer, "HTTP/1.1 200 Connection Established\r\n\r\nhello");
        // It begins as HTTP/2 does, and is none.
        let put = said(b"PRI * HTTP/1.1\r\n\r\n", piece).await;
        assert!(put.starts_with(b"HTTP/1.1 405 "));
        let page = said(b"GET /page HTTP/1.1\r\n\r\n", piece).await;
        assert!(page.ends_with(b"\r\n\r\n{}"));
    }
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_hung_up_on() {
    let (ours, mut theirs) = duplex(1024);
    let serving = tokio::spawn(serve(Box::new(ours), service(twin::served(twin::echo))));
    let mut text = String::new();
    theirs.read_to_string(&mut text).await.expect("an answer");
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    drop(theirs);
    serving.await.expect("no failure");
}

#[tokio::test]
async fn the_client_understands_what_the_server_refuses() {
    for (error, status) in [
        (DialError::NoAgent("x".into()), 503),
        (DialError::Forbidden("x".into()), 403),
        (DialError::TimedOut("x".into()), 504),
        (DialError::Failed("x".into()), 502),
    ] {
        let refusing = error.clone();
        let tunnels = twin::Answers(move |_: Destination| {
            std::future::ready(Err::<BoxStream, _>(io::Error::from(refusing.clone())))
        });
        let (ours, theirs) = duplex(64);
        tokio::spawn(serve(Box::new(ours), service(Arc::new(tunnels))));
        let refused = client::connect(Box::new(theirs), &twin::to("a:1")).await;
        let refused = refused.err().expect("refused");
        assert_eq!(refused.status().as_u16(), status);
        assert_eq!(refused.to_string(), error.to_string());
    }
}

/// As kube-apiserver, which takes its buffer full and wants nothing in it but the head; however long it takes to read.
#[tokio::test]
async fn the_answer_arrives_alone_though_the_target_speaks_first() {
    let target = twin::served(|mut stream: tokio::io::DuplexStream| async move {
        stream.write_all(b"SSH-2.0-target").await.expect("written");
        let _ = stream.read(&mut [0]).await;
    });
    for patience in [0, 0, 0, 30] {
        let (ours, mut theirs) = tokio::net::UnixStream::pair().expect("a pair");
        let service = Service {
            unread: Some(Unread::of(&ours)),
            ..service(target.clone())
        };
        let serving = tokio::spawn(serve(Box::new(ours), service));
        let request = b"CONNECT a:1 HTTP/1.1\r\n\r\n";
        theirs.write_all(request).await.expect("written");
        sleep(Duration::from_millis(patience)).await;
        let mut read = vec![0; 4096];
        let count = theirs.read(&mut read).await.expect("an answer");
        assert_eq!(&read[..count], ESTABLISHED);
        let count = theirs.read(&mut read).await.expect("words");
        assert_eq!(&read[..count], b"SSH-2.0-target");
        drop(theirs);
        serving.await.expect("no failure");
    }
}

/// A caller that speaks first, as most do, waits for nothing.
#[tokio::test]
async fn who_speaks_first_is_heard_at_once() {
    let (ours, mut theirs) = tokio::net::UnixStream::pair().expect("a pair");
    let service = Service {
        unread: Some(Unread::of(&ours)),
        ..service(twin::served(twin::echo))
    };
    let serving = tokio::spawn(serve(Box::new(ours), service));
    let request = b"CONNECT a:1 HTTP/1.1\r\n\r\n";
    theirs.write_all(request).await.expect("written");
    let mut read = vec![0; ESTABLISHED.len()];
    theirs.read_exact(&mut read).await.expect("an answer");
    theirs.write_all(b"word").await.expect("written");
    let mut read = [0; 4];
    theirs.read_exact(&mut read).await.expect("an echo");
    assert_eq!(&read, b"word");
    drop(theirs);
    serving.await.expect("no failure");
}
