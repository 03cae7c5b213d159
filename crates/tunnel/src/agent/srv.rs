//! SRV records (RFC 2782), asked of the node's name servers: the system's resolver does not tell them.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};
use yurt_pki::store::read_text;

const TYPE_SRV: u16 = 33;
const CLASS_IN: u16 = 1;
/// Most records that are read, and most name servers that are asked.
const MOST: usize = 32;
const SERVERS: usize = 3;
/// How long one name server may take.
const PATIENCE: Duration = Duration::from_millis(1500);
const PORT: u16 = 53;

/// Where a service is to be had.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Record {
    /// Lower ones first.
    pub(super) priority: u16,
    pub(super) port: u16,
    pub(super) target: String,
}

/// Asks the name servers of `/etc/resolv.conf` one after the other.
pub(super) async fn lookup(name: &str) -> io::Result<Vec<Record>> {
    let text = read_text(Path::new("/etc/resolv.conf"))?;
    let servers = text
        .lines()
        .filter_map(|line| {
            line.trim()
                .strip_prefix("nameserver")?
                .trim()
                .parse::<IpAddr>()
                .ok()
        })
        .map(|address| SocketAddr::new(address, PORT));
    lookup_at(servers.take(SERVERS), name).await
}

async fn lookup_at(
    servers: impl Iterator<Item = SocketAddr>,
    name: &str,
) -> io::Result<Vec<Record>> {
    let mut failure = io::Error::new(ErrorKind::NotFound, "no name server is known");
    for server in servers {
        match timeout(PATIENCE, ask(server, name)).await {
            Ok(Ok(records)) => return Ok(records),
            Ok(Err(error)) => failure = error,
            Err(_) => {
                failure = io::Error::new(ErrorKind::TimedOut, format!("{server} does not answer"))
            }
        }
    }
    Err(failure)
}

async fn ask(server: SocketAddr, name: &str) -> io::Result<Vec<Record>> {
    let id = fastrand::u16(..);
    let question = question(id, name)?;
    let any: IpAddr = match server {
        SocketAddr::V4(_) => [0, 0, 0, 0].into(),
        SocketAddr::V6(_) => [0u16; 8].into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&question).await?;
    let mut answer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut answer).await?;
        match parse(answer.get(..length).unwrap_or_default(), id) {
            Ok(Answer::Records(records)) => return Ok(records),
            Ok(Answer::Truncated) => return ask_by_tcp(server, &question, id).await,
            // An answer to somebody else's question.
            Ok(Answer::Foreign) => {}
            Err(error) => return Err(error),
        }
    }
}

async fn ask_by_tcp(server: SocketAddr, question: &[u8], id: u16) -> io::Result<Vec<Record>> {
    let mut stream = TcpStream::connect(server).await?;
    let length =
        u16::try_from(question.len()).map_err(|_| malformed("the question is too long"))?;
    stream
        .write_all(&[&length.to_be_bytes()[..], question].concat())
        .await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    match parse(&answer, id)? {
        Answer::Records(records) => Ok(records),
        _ => Err(malformed("no whole answer by TCP either")),
    }
}

fn malformed(why: &str) -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        format!("the name server's answer: {why}"),
    )
}

fn question(id: u16, name: &str) -> io::Result<Vec<u8>> {
    let mut question = Vec::with_capacity(64);
    question.extend(id.to_be_bytes());
    // A standard question with recursion; one entry.
    question.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|length| (1..=63).contains(length));
        let length =
            length.ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "no domain name"))?;
        question.push(length);
        question.extend(label.as_bytes());
    }
    question.push(0);
    question.extend(TYPE_SRV.to_be_bytes());
    question.extend(CLASS_IN.to_be_bytes());
    match question.len() <= 300 {
        true => Ok(question),
        false => Err(io::Error::new(ErrorKind::InvalidInput, "no domain name")),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Records(Vec<Record>),
    Truncated,
    Foreign,
}

/// Reads a message from its beginning.
struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> io::Result<&'a [u8]> {
        let end = self.at.checked_add(length);
        let taken = end.and_then(|end| self.message.get(self.at..end));
        let taken = taken.ok_or_else(|| malformed("it ends too early"))?;
        self.at += length;
        Ok(taken)
    }

    fn u16(&mut self) -> io::Result<u16> {
        match self.take(2)? {
            [high, low] => Ok(u16::from_be_bytes([*high, *low])),
            _ => Err(malformed("it ends too early")),
        }
    }

    /// A name, which may go on elsewhere; only backwards, so that it ends.
    fn name(&mut self) -> io::Result<String> {
        let mut name = String::new();
        let mut reader = Reader { ..*self };
        let mut jumped = false;
        let mut earliest = self.at;
        loop {
            let length = usize::from(*reader.take(1)?.first().unwrap_or(&0));
            match length {
                0 => break,
                1..=63 => {
                    let label = reader.take(length)?;
                    if name.len() + length > 255 {
                        return Err(malformed("a name is too long"));
                    }
                    if !name.is_empty() {
                        name.push('.');
                    }
                    let label =
                        std::str::from_utf8(label).map_err(|_| malformed("a name is no text"))?;
                    name.push_str(label);
                }
                192.. => {
                    let low = usize::from(*reader.take(1)?.first().unwrap_or(&0));
                    if !jumped {
                        self.at = reader.at;
                        jumped = true;
                    }
                    let to = (length & 0x3f) << 8 | low;
                    if to >= earliest {
                        return Err(malformed("a name points forward"));
                    }
                    earliest = to;
                    reader.at = to;
                }
                _ => return Err(malformed("a label of an unknown kind")),
            }
        }
        if !jumped {
            self.at = reader.at;
        }
        Ok(name)
    }
}

fn parse(message: &[u8], id: u16) -> io::Result<Answer> {
    let mut reader = Reader { message, at: 0 };
    let (answers_to, flags) = (reader.u16()?, reader.u16()?);
    if answers_to != id || flags & 0x8000 == 0 {
        return Ok(Answer::Foreign);
    }
    if flags & 0x0200 != 0 {
        return Ok(Answer::Truncated);
    }
    match flags & 0xf {
        0 => {}
        3 => return Err(io::Error::new(ErrorKind::NotFound, "there is no such name")),
        code => return Err(malformed(&format!("code {code}"))),
    }
    let (questions, answers) = (reader.u16()?, reader.u16()?);
    reader.take(4)?;
    for _ in 0..questions {
        reader.name()?;
        reader.take(4)?;
    }
    let mut records = Vec::new();
    for _ in 0..answers {
        reader.name()?;
        let (kind, class) = (reader.u16()?, reader.u16()?);
        reader.take(4)?;
        let end = usize::from(reader.u16()?) + reader.at;
        if kind == TYPE_SRV && class == CLASS_IN && records.len() < MOST {
            let (priority, _weight, port) = (reader.u16()?, reader.u16()?, reader.u16()?);
            let target = reader.name()?;
            // A service that is decidedly not there has the root for its target.
            if !target.is_empty() && port > 0 {
                records.push(Record {
                    priority,
                    port,
                    target,
                });
            }
        }
        if end > message.len() {
            return Err(malformed("it ends too early"));
        }
        reader.at = end;
    }
    records.sort();
    Ok(Answer::Records(records))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An answer with two records, the names of which are shortened by pointers.
    fn answer(id: u16) -> Vec<u8> {
        let mut message = question(id, "_t._tcp.example.com").unwrap();
        message[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 2]);
        for (priority, label) in [(10u16, b'b'), (5, b'a')] {
            // The question's name; SRV, IN, a time to live.
            message.extend([0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 60, 0, 10]);
            message.extend(priority.to_be_bytes());
            message.extend([0, 0, 0x28, 0x16, 1, label, 0xc0, 20]);
        }
        message
    }

    #[test]
    fn records_come_by_priority() {
        let Ok(Answer::Records(records)) = parse(&answer(7), 7) else {
            panic!("records");
        };
        let shown: Vec<_> = records
            .iter()
            .map(|r| (r.priority, r.target.as_str(), r.port))
            .collect();
        assert_eq!(
            shown,
            [(5, "a.example.com", 10262), (10, "b.example.com", 10262)]
        );
        assert_eq!(parse(&answer(7), 8).unwrap(), Answer::Foreign);
        let mut cut = answer(7);
        cut[2] |= 2;
        assert_eq!(parse(&cut, 7).unwrap(), Answer::Truncated);
        let mut unknown = answer(7);
        unknown[3] |= 3;
        assert_eq!(parse(&unknown, 7).unwrap_err().kind(), ErrorKind::NotFound);
        let mut circle = answer(7);
        let end = circle.len();
        circle[end - 1] = u8::try_from(end - 2).unwrap();
        assert!(parse(&circle, 7).is_err());
        assert!(question(1, "").is_err() && question(1, &"a".repeat(64)).is_err());
    }

    proptest! {
        #[test]
        fn no_message_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 12usize..80, with: u8) {
            let _ = parse(&bytes, 7);
            let mut message = answer(7);
            if let Some(byte) = message.get_mut(at) {
                *byte = with;
            }
            let _ = parse(&message, 7);
        }
    }

    #[tokio::test]
    async fn the_next_name_server_is_asked() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let answering = tokio::spawn(async move {
            let mut asked = [0; 512];
            let (length, who) = server.recv_from(&mut asked).await.unwrap();
            let id = u16::from_be_bytes([asked[0], asked[1]]);
            assert!(length > 12);
            server
                .send_to(&answer(id.wrapping_add(1)), who)
                .await
                .unwrap();
            server.send_to(&answer(id), who).await.unwrap();
        });
        let closed = SocketAddr::from(([127, 0, 0, 1], 1));
        let found = lookup_at([closed, address].into_iter(), "_t._tcp.example.com")
            .await
            .unwrap();
        assert_eq!(found.len(), 2);
        answering.await.unwrap();
    }
}
