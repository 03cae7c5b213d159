use super::*;
use crate::Opening;
use tokio::{
    io::{AsyncReadExt, duplex},
    net::TcpStream,
};
use yurt_transport::BoxStream;

/// A cloud that answers every connection with where it is, then echoes.
#[derive(Debug)]
struct Echo;

impl Tunnels for Echo {
    fn open<'a>(&'a self, to: &'a Destination) -> Opening<'a> {
        Box::pin(async move {
            match to.host.as_str() {
                "forbidden" => return Err(DialError::Forbidden("not for the edge".into())),
                "nobody" => return Err(DialError::NoAgent("no server".into())),
                _ => {}
            }
            let (near, far) = duplex(1024);
            let greeting = format!("{to}\n");
            tokio::spawn(async move {
                let (mut reading, mut writing) = tokio::io::split(far);
                writing.write_all(greeting.as_bytes()).await?;
                tokio::io::copy(&mut reading, &mut writing).await?;
                writing.shutdown().await
            });
            Ok(Box::new(near) as BoxStream)
        })
    }
}

async fn listening(kind: Kind) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    tokio::spawn(serve(listener, kind, Arc::new(Echo), stop.clone()));
    (address, stop)
}

/// Everything that comes back when this is said and the sending side closed.
async fn said(address: SocketAddr, parts: &[&[u8]]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&parts.concat()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut heard = Vec::new();
    // What was refused may be reset.
    let _ = stream.read_to_end(&mut heard).await;
    heard
}

#[tokio::test]
async fn both_dialects_are_told_apart_on_one_port_and_half_closes_pass() {
    let (address, stop) = listening(Kind::Asked).await;
    let heard = said(
        address,
        &[b"CONNECT svc.ns:80 HTTP/1.1\r\nHost: x\r\n\r\nping"],
    )
    .await;
    assert_eq!(
        String::from_utf8(heard).unwrap(),
        "HTTP/1.1 200 Connection Established\r\n\r\nsvc.ns:80\nping"
    );
    let granted: &[u8] = &[5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let by_name: &[u8] = &[5, 1, 0, 5, 1, 0, 3, 3, b's', b'v', b'c', 0, 80];
    assert_eq!(
        said(address, &[by_name, b"ping"]).await,
        [granted, b"svc:80\nping"].concat()
    );
    let by_address: &[u8] = &[5, 2, 2, 0, 5, 1, 0, 1, 10, 0, 0, 1, 1, 0];
    assert_eq!(
        said(address, &[by_address]).await,
        [granted, b"10.0.0.1:256\n"].concat()
    );
    stop.cancel();
}

#[tokio::test]
async fn what_is_refused_is_said_in_the_callers_dialect() {
    let (address, _stop) = listening(Kind::Asked).await;
    for (target, expected) in [
        ("CONNECT forbidden:80 HTTP/1.1", "HTTP/1.1 403 Forbidden"),
        (
            "CONNECT nobody:80 HTTP/1.1",
            "HTTP/1.1 503 Service Unavailable",
        ),
        ("CONNECT x HTTP/1.1", "HTTP/1.1 400 Bad Request"),
        ("GET / HTTP/1.1", "HTTP/1.1 405 Method Not Allowed"),
    ] {
        let heard = said(address, &[target.as_bytes(), b"\r\n\r\n"]).await;
        let heard = String::from_utf8(heard).unwrap();
        assert!(heard.starts_with(expected), "{target}: {heard}");
    }
    let asked = |command: u8, name: &[u8]| {
        [
            &[5, 1, 0, 5, command, 0, 3, u8::try_from(name.len()).unwrap()][..],
            name,
            &[0, 80],
        ]
        .concat()
    };
    for (command, name, code) in [
        (1, &b"forbidden"[..], 2),
        (1, b"nobody", 3),
        (2, b"svc", 7),
        (1, b"a b", 8),
        (1, b"", 8),
    ] {
        let heard = said(address, &[&asked(command, name)]).await;
        assert_eq!(heard.get(3), Some(&code), "{command} {name:?}");
    }
    for rubbish in [
        &b"\x04\x01"[..],
        b"\x05\x01\x02",
        b"hello\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"",
    ] {
        let heard = said(address, &[rubbish]).await;
        assert!(heard.len() <= 2, "{rubbish:?} {heard:?}");
    }
}

#[tokio::test]
async fn a_route_leads_to_its_service_only() {
    let route: Route = "127.0.0.1:0=svc.ns.svc:443".parse().unwrap();
    let (address, _stop) = listening(Kind::Fixed(route.target)).await;
    assert_eq!(
        said(address, &[b"CONNECT x:1 HTTP/1.1\r\n\r\n"]).await,
        b"svc.ns.svc:443\nCONNECT x:1 HTTP/1.1\r\n\r\n"
    );
    assert_eq!(
        "8080=a:1".parse::<Route>().unwrap().listen.to_string(),
        "127.0.0.1:8080"
    );
    for bad in ["", "a", "8080", "8080=a", "x=a:1", "=a:1", "8080="] {
        assert!(bad.parse::<Route>().is_err(), "{bad}");
    }
}
