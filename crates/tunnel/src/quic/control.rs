//! The control stream: the heads that both ends begin with, and the lines after them.

use super::{
    FIRST,
    head::{Head, MAX_HEAD},
};
use crate::{
    mux::control::{Cutter, Line},
    session::SessionError,
};
use quinn::{RecvStream, SendStream};
use tokio::sync::mpsc;

/// Lines that wait to be said.
const LINES: usize = 8;

/// The control stream as it is read after the hellos.
pub(super) struct Hearing {
    stream: RecvStream,
    cutter: Cutter,
}

impl Hearing {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            cutter: Cutter::default(),
        }
    }

    /// The next lines; an error when the stream is over.
    pub(super) async fn next(&mut self) -> Result<Vec<Line>, SessionError> {
        let mut piece = [0; 512];
        let read = self.stream.read(&mut piece).await;
        match read.map_err(|error| SessionError::Broken(error.to_string()))? {
            Some(count) => self.cutter.feed(&piece[..count]),
            None => Err(SessionError::Broken("the other end closed it".into())),
        }
    }
}

/// The control stream as it is spoken on after the hellos.
#[derive(Debug)]
pub(super) struct Saying(mpsc::Sender<String>);

impl Saying {
    pub(super) fn new(mut stream: SendStream) -> Self {
        let (say, mut said) = mpsc::channel::<String>(LINES);
        tokio::spawn(async move {
            while let Some(line) = said.recv().await {
                if stream.write_all(line.as_bytes()).await.is_err() {
                    return;
                }
            }
            // The stream ends with the connection.
            let _ = stream.stopped().await;
        });
        Self(say)
    }

    /// Says a line, if the connection still is.
    pub(super) fn say(&self, line: String) {
        let _ = self.0.try_send(line);
    }
}

/// Reads a head from a stream that is not a proxied connection. Nothing follows it until it is answered.
pub(super) async fn hear(stream: &mut RecvStream) -> Result<Head, SessionError> {
    let mut data = Vec::new();
    let mut byte = [0];
    loop {
        // Byte by byte: what follows is another's to read.
        stream
            .read_exact(&mut byte)
            .await
            .map_err(|error| SessionError::Broken(error.to_string()))?;
        // Empty lines before the head are there to look at the path by.
        if data.is_empty() && byte == *b"\n" {
            continue;
        }
        data.extend_from_slice(&byte);
        if byte == *b"\n"
            && let Some((head, _)) = Head::parse(&data)?
        {
            return Ok(head);
        }
        if data.len() >= MAX_HEAD {
            return Err(SessionError::Protocol("an endless head".into()));
        }
    }
}

pub(super) async fn say(stream: &mut SendStream, head: &Head) -> Result<(), SessionError> {
    let _ = stream.set_priority(FIRST);
    stream
        .write_all(&head.write()?)
        .await
        .map_err(|error| SessionError::Broken(error.to_string()))
}
