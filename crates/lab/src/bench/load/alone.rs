//! One request at a time, from a thread of its own over a blocking socket: a client of tasks and wake-ups takes longer than a hub's answer
//! does, and its tails would be measured instead.

use super::{ACCEPT, Load, TIMEOUT, WARM_UP, call};
use crate::bench::BenchError;
use http::HeaderValue;
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

/// Longest line of a head, and lines of one.
const MAX_LINE: u64 = 16 << 10;
const MAX_LINES: usize = 128;
/// Read from the socket at a time.
const BUFFER: usize = 64 << 10;

/// A server, and who asks.
#[derive(Clone, Debug)]
pub(in crate::bench) struct Alone {
    pub(in crate::bench) address: SocketAddr,
    /// `None` for plain text.
    pub(in crate::bench) tls: Option<Arc<rustls::ClientConfig>>,
    pub(in crate::bench) authorization: HeaderValue,
}

impl Alone {
    /// GETs a path for a while.
    pub(in crate::bench) async fn load(
        &self,
        path: &str,
        time: Duration,
    ) -> Result<Load, BenchError> {
        let (server, request) = (self.clone(), self.request(path)?);
        let thread = tokio::task::spawn_blocking(move || server.ask_for(&request, time));
        thread.await.map_err(|error| call(path, error))
    }

    fn request(&self, path: &str) -> Result<Vec<u8>, BenchError> {
        let authorization = self.authorization.to_str();
        let authorization = authorization.map_err(|error| call(path, error))?;
        Ok(format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nAccept: {ACCEPT}\r\nUser-Agent: yurt-bench\r\nAuthorization: {authorization}\r\n\r\n",
            self.address
        )
        .into_bytes())
    }

    fn ask_for(&self, request: &[u8], time: Duration) -> Load {
        let begin = Instant::now() + WARM_UP;
        let end = begin + time;
        let mut load = Load::default();
        let mut connection = None;
        loop {
            let sent = Instant::now();
            if sent >= end {
                load.elapsed = begin.elapsed().max(time);
                return load;
            }
            let answered = self.ask(&mut connection, request);
            let took = sent.elapsed();
            if sent < begin {
                continue;
            }
            match answered {
                Ok(200) => load.latencies.record(took),
                other => {
                    tracing::debug!(?other, "request failed");
                    load.failed += 1;
                }
            }
        }
    }

    /// One exchange, on the connection of the one before where that goes on.
    fn ask(&self, kept: &mut Option<Connection>, request: &[u8]) -> io::Result<u16> {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let answer = connection.exchange(request)?;
        if answer.goes_on {
            *kept = Some(connection);
        }
        Ok(answer.status)
    }

    fn connect(&self) -> io::Result<Connection> {
        let socket = TcpStream::connect_timeout(&self.address, TIMEOUT)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(socket),
            Some(config) => {
                let name = self.address.ip().into();
                let session = rustls::ClientConnection::new(config.clone(), name);
                let session = session.map_err(io::Error::other)?;
                Box::new(rustls::StreamOwned::new(session, socket))
            }
        };
        Ok(Connection {
            stream: BufReader::with_capacity(BUFFER, stream),
            line: Vec::new(),
        })
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// An HTTP/1.1 connection. Of no use after an error.
struct Connection {
    stream: BufReader<Box<dyn Stream>>,
    /// The one read last.
    line: Vec<u8>,
}

/// What was answered, read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    /// Bytes of the body.
    length: u64,
    /// Whether the connection serves further requests.
    goes_on: bool,
}

/// How long a body is (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunks,
}

fn garbage(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Connection {
    fn exchange(&mut self, request: &[u8]) -> io::Result<Answer> {
        if !self.stream.buffer().is_empty() {
            return Err(garbage("more was answered than asked"));
        }
        let stream = self.stream.get_mut();
        stream.write_all(request)?;
        stream.flush()?;
        let (status, framing, goes_on) = self.head()?;
        let length = match framing {
            Framing::Length(length) => self.skip(length)?,
            Framing::Chunks => self.chunks()?,
        };
        Ok(Answer {
            status,
            length,
            goes_on,
        })
    }

    fn head(&mut self) -> io::Result<(u16, Framing, bool)> {
        let status = self.line()?.strip_prefix("HTTP/1.1 ");
        let status = status.and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or_else(|| garbage("no status line"))?;
        let (mut framing, mut goes_on) = (None, true);
        for _ in 0..MAX_LINES {
            let line = self.line()?;
            if line.is_empty() {
                let framing = framing.ok_or_else(|| garbage("a body without an end"))?;
                return Ok((status, framing, goes_on));
            }
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| garbage("no header line"))?;
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                let length = value.parse().map_err(|_| garbage("no length"))?;
                framing = Some(Framing::Length(length));
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                if !value.eq_ignore_ascii_case("chunked") {
                    return Err(garbage("an unknown transfer encoding"));
                }
                framing = Some(Framing::Chunks);
            } else if name.eq_ignore_ascii_case("connection") {
                goes_on &= !value.eq_ignore_ascii_case("close");
            }
        }
        Err(garbage("a head without an end"))
    }

    /// The next line, without its end.
    fn line(&mut self) -> io::Result<&str> {
        self.line.clear();
        let mut bounded = (&mut self.stream).take(MAX_LINE);
        bounded.read_until(b'\n', &mut self.line)?;
        match self.line.strip_suffix(b"\r\n") {
            Some(line) => str::from_utf8(line).map_err(|_| garbage("a line that is no text")),
            None if self.line.len() as u64 >= MAX_LINE => Err(garbage("a line without an end")),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Reads exactly so many bytes.
    fn skip(&mut self, length: u64) -> io::Result<u64> {
        let mut left = length;
        while left > 0 {
            let here = self.stream.fill_buf()?.len();
            if here == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let taken = here.min(usize::try_from(left).unwrap_or(usize::MAX));
            self.stream.consume(taken);
            left -= taken as u64;
        }
        Ok(length)
    }

    /// Reads a chunked body; its length.
    fn chunks(&mut self) -> io::Result<u64> {
        let mut length = 0_u64;
        loop {
            let size = self.line()?.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).map_err(|_| garbage("no chunk"))?;
            if size == 0 {
                break;
            }
            length = length.saturating_add(self.skip(size)?);
            if !self.line()?.is_empty() {
                return Err(garbage("a chunk without an end"));
            }
        }
        for _ in 0..MAX_LINES {
            if self.line()?.is_empty() {
                return Ok(length);
            }
        }
        Err(garbage("trailers without an end"))
    }
}

#[cfg(test)]
mod tests;
