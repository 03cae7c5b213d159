//! A proxy on the way out: SOCKS5 (RFC 1928, 1929) or HTTP CONNECT, with user and password where it wants them.

use crate::allow::Mark;
use base64::{Engine, engine::general_purpose::STANDARD};
use std::{
    fmt,
    io::{self, ErrorKind},
    net::IpAddr,
    str::FromStr,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use yurt_transport::Destination;

/// Longest answer of an HTTP proxy that is read.
const MOST: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Socks5,
    Http,
}

/// A proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    kind: Kind,
    at: Destination,
    credentials: Option<(String, String)>,
}

impl fmt::Debug for Proxy {
    /// Without the password.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Proxy({:?} {})", self.kind, self.at)
    }
}

/// What is no proxy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a proxy is socks5://[USER:PASSWORD@]HOST:PORT or http://[USER:PASSWORD@]HOST:PORT")]
pub struct NotAProxy;

impl FromStr for Proxy {
    type Err = NotAProxy;

    fn from_str(text: &str) -> Result<Self, NotAProxy> {
        let (scheme, rest) = text.trim().split_once("://").ok_or(NotAProxy)?;
        let (kind, port) = match scheme {
            "socks5" | "socks5h" => (Kind::Socks5, 1080),
            "http" => (Kind::Http, 3128),
            _ => return Err(NotAProxy),
        };
        let rest = rest.trim_end_matches('/');
        let (credentials, authority) = match rest.rsplit_once('@') {
            Some((credentials, authority)) => (Some(credentials), authority),
            None => (None, rest),
        };
        let credentials = credentials
            .map(|text| {
                let (user, password) = text.split_once(':').unwrap_or((text, ""));
                let (user, password) = (decoded(user)?, decoded(password)?);
                let fits = (1..=255).contains(&user.len()) && password.len() <= 255;
                fits.then_some((user, password)).ok_or(NotAProxy)
            })
            .transpose()?;
        let at = authority
            .parse()
            .or_else(|_| format!("{authority}:{port}").parse())
            .map_err(|_| NotAProxy)?;
        Ok(Self {
            kind,
            at,
            credentials,
        })
    }
}

/// Undoes `%40` and the like.
fn decoded(text: &str) -> Result<String, NotAProxy> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
        let (high, low) = (digit().ok_or(NotAProxy)?, digit().ok_or(NotAProxy)?);
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| NotAProxy)?);
    }
    String::from_utf8(bytes).map_err(|_| NotAProxy)
}

impl Proxy {
    /// Connects to `to` by the proxy, which resolves its name. Whoever calls bounds the wait.
    pub(crate) async fn connect(&self, to: &Destination, mark: Mark) -> io::Result<TcpStream> {
        let mut stream = mark
            .connect_to(&self.at.host, self.at.port)
            .await
            .map_err(|error| self.failed(error.kind(), error))?;
        match self.kind {
            Kind::Socks5 => self.socks5(&mut stream, to).await?,
            Kind::Http => self.http(&mut stream, to).await?,
        }
        Ok(stream)
    }

    fn failed(&self, kind: ErrorKind, why: impl fmt::Display) -> io::Error {
        io::Error::new(kind, format!("the proxy {}: {why}", self.at))
    }

    async fn socks5(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        to: &Destination,
    ) -> io::Result<()> {
        let wrong = |why: &str| self.failed(ErrorKind::InvalidData, why);
        let methods: &[u8] = match self.credentials {
            Some(_) => &[5, 2, 0, 2],
            None => &[5, 1, 0],
        };
        stream.write_all(methods).await?;
        let mut chosen = [0; 2];
        stream.read_exact(&mut chosen).await?;
        match (chosen, &self.credentials) {
            ([5, 0], _) => {}
            ([5, 2], Some((user, password))) => {
                let length =
                    |text: &str| u8::try_from(text.len()).map_err(|_| wrong("too long a password"));
                let mut login = vec![1, length(user)?];
                login.extend(user.as_bytes());
                login.push(length(password)?);
                login.extend(password.as_bytes());
                stream.write_all(&login).await?;
                stream.read_exact(&mut chosen).await?;
                if chosen[1] != 0 {
                    return Err(self.failed(
                        ErrorKind::PermissionDenied,
                        "it does not accept user and password",
                    ));
                }
            }
            ([5, 255], _) => {
                return Err(self.failed(
                    ErrorKind::PermissionDenied,
                    "it wants another authentication",
                ));
            }
            _ => return Err(wrong("it does not speak SOCKS5")),
        }
        let mut request = vec![5, 1, 0];
        match to.host.parse() {
            Ok(IpAddr::V4(v4)) => {
                request.push(1);
                request.extend(v4.octets());
            }
            Ok(IpAddr::V6(v6)) => {
                request.push(4);
                request.extend(v6.octets());
            }
            Err(_) => {
                request.extend([
                    3,
                    u8::try_from(to.host.len()).map_err(|_| wrong("too long a name"))?,
                ]);
                request.extend(to.host.as_bytes());
            }
        }
        request.extend(to.port.to_be_bytes());
        stream.write_all(&request).await?;
        let mut head = [0; 4];
        stream.read_exact(&mut head).await?;
        if head[0] != 5 {
            return Err(wrong("it does not speak SOCKS5"));
        }
        let (kind, why) = match head[1] {
            0 => (ErrorKind::Other, ""),
            2 => (ErrorKind::PermissionDenied, "it does not allow this target"),
            3 => (ErrorKind::NetworkUnreachable, "network unreachable"),
            4 => (ErrorKind::HostUnreachable, "host unreachable"),
            5 => (ErrorKind::ConnectionRefused, "connection refused"),
            6 => (ErrorKind::TimedOut, "it took too long"),
            _ => (ErrorKind::Other, "it failed"),
        };
        if !why.is_empty() {
            return Err(self.failed(kind, why));
        }
        let length = match head[3] {
            1 => 4,
            4 => 16,
            3 => usize::from(stream.read_u8().await?),
            _ => return Err(wrong("an address of an unknown kind")),
        };
        let mut rest = vec![0; length + 2];
        stream.read_exact(&mut rest).await?;
        Ok(())
    }

    async fn http(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        to: &Destination,
    ) -> io::Result<()> {
        let wrong = |why: &str| self.failed(ErrorKind::InvalidData, why);
        let mut request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n");
        if let Some((user, password)) = &self.credentials {
            let text = STANDARD.encode(format!("{user}:{password}"));
            request.push_str(&format!("Proxy-Authorization: Basic {text}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut head: Vec<u8> = Vec::with_capacity(256);
        // Nobody speaks before we do: what follows the head would be the proxy's own.
        let end = loop {
            if let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if head.len() > MOST {
                return Err(wrong("its answer has no end"));
            }
            if stream.read_buf(&mut head).await? == 0 {
                return Err(self.failed(ErrorKind::UnexpectedEof, "it hung up"));
            }
        };
        let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line).into_owned();
        let mut words = line.split(' ');
        let is_http = words
            .next()
            .is_some_and(|version| version.starts_with("HTTP/1."));
        match (is_http, words.next()) {
            (true, Some(code)) if code.len() == 3 && code.starts_with('2') => {
                match head.len() > end {
                    true => Err(wrong("it says more than it should")),
                    false => Ok(()),
                }
            }
            (true, Some("407")) => Err(self.failed(
                ErrorKind::PermissionDenied,
                "it wants user and password (407)",
            )),
            (true, Some("403")) => Err(self.failed(ErrorKind::PermissionDenied, line)),
            (true, Some(_)) => Err(self.failed(ErrorKind::Other, line)),
            _ => Err(wrong("it does not speak HTTP")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    fn to(text: &str) -> Destination {
        text.parse().unwrap()
    }

    #[test]
    fn proxies_have_one_form() {
        let proxy: Proxy = "socks5://us%40er:pa:ss%2F@[fd00::1]:1".parse().unwrap();
        assert_eq!(proxy.credentials, Some(("us@er".into(), "pa:ss/".into())));
        assert_eq!(proxy.at.to_string(), "[fd00::1]:1");
        assert!(!format!("{proxy:?}").contains("ss/"));
        assert_eq!("http://a".parse::<Proxy>().unwrap().at.port, 3128);
        assert_eq!("socks5h://a/".parse::<Proxy>().unwrap().at.port, 1080);
        for bad in [
            "",
            "a:1",
            "https://a:1",
            "socks4://a:1",
            "http://%zz@a:1",
            "http://:x@a:1",
            "http://",
        ] {
            assert!(bad.parse::<Proxy>().is_err(), "{bad}");
        }
    }

    /// What a proxy of `kind` is told, when it answers so.
    async fn spoken(proxy: &str, target: &str, answers: &[&[u8]]) -> (io::Result<()>, Vec<u8>) {
        let proxy: Proxy = proxy.parse().unwrap();
        let (mut ours, mut its) = duplex(4096);
        its.write_all(&answers.concat()).await.unwrap();
        let done = match proxy.kind {
            Kind::Socks5 => proxy.socks5(&mut ours, &to(target)).await,
            Kind::Http => proxy.http(&mut ours, &to(target)).await,
        };
        drop(ours);
        let mut told = Vec::new();
        its.read_to_end(&mut told).await.unwrap();
        (done, told)
    }

    #[tokio::test]
    async fn socks5_by_address_and_name_with_and_without_password() {
        let fine: &[u8] = &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let (done, told) = spoken("socks5://p", "10.0.0.1:258", &[&[5, 0], fine]).await;
        done.unwrap();
        assert_eq!(
            told,
            [&[5, 1, 0][..], &[5, 1, 0, 1, 10, 0, 0, 1, 1, 2]].concat()
        );
        let (done, told) = spoken("socks5://u:pw@p", "ab:1", &[&[5, 2], &[1, 0], fine]).await;
        done.unwrap();
        assert_eq!(
            told,
            [
                &[5, 2, 0, 2][..],
                b"\x01\x01u\x02pw",
                &[5, 1, 0, 3, 2, b'a', b'b', 0, 1]
            ]
            .concat()
        );
        let refused = spoken("socks5://p", "ab:1", &[&[5, 0], &[5, 5, 0, 1]])
            .await
            .0
            .unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let wrong = spoken("socks5://u:pw@p", "ab:1", &[&[5, 2], &[1, 1]])
            .await
            .0
            .unwrap_err();
        assert_eq!(wrong.kind(), ErrorKind::PermissionDenied);
        let unasked = spoken("socks5://p", "ab:1", &[&[5, 255]])
            .await
            .0
            .unwrap_err();
        assert_eq!(unasked.kind(), ErrorKind::PermissionDenied);
        assert!(
            spoken("socks5://p", "ab:1", &[b"HTTP/1.1 400"])
                .await
                .0
                .is_err()
        );
    }

    #[tokio::test]
    async fn http_connect_with_and_without_password() {
        let (done, told) = spoken(
            "http://u:p@x",
            "[fd00::1]:443",
            &[b"HTTP/1.1 200 OK\r\nVia: x\r\n\r\n"],
        )
        .await;
        done.unwrap();
        assert_eq!(
            String::from_utf8(told).unwrap(),
            "CONNECT [fd00::1]:443 HTTP/1.1\r\nHost: [fd00::1]:443\r\nProxy-Authorization: Basic dTpw\r\n\r\n"
        );
        for (answer, kind) in [
            (
                &b"HTTP/1.1 407 Who\r\n\r\n"[..],
                ErrorKind::PermissionDenied,
            ),
            (b"HTTP/1.0 502 Bad\r\n\r\n", ErrorKind::Other),
            (b"SSH-2.0-x\r\n\r\n", ErrorKind::InvalidData),
            (b"HTTP/1.1 200 OK\r\n\r\nmore", ErrorKind::InvalidData),
        ] {
            let failed = spoken("http://x", "a:1", &[answer]).await.0.unwrap_err();
            assert_eq!(failed.kind(), kind, "{failed}");
        }
        let proxy: Proxy = "http://x".parse().unwrap();
        let (mut ours, mut its) = duplex(1 << 20);
        its.write_all(&vec![b'x'; MOST + 4096]).await.unwrap();
        assert!(proxy.http(&mut ours, &to("a:1")).await.is_err());
    }
}
