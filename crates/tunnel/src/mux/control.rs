//! What is said on the control stream after the hellos: lines of text. Lines of unknown kinds are ignored, so that kinds may be added.

use crate::session::SessionError;
use bytes::Bytes;
use h2::{RecvStream, SendStream};
use std::sync::{Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

/// A longer line is no line.
const MAX_LINE: usize = 4 << 10;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// No more dials, please: this end stops. Open connections go on.
    Drain,
    /// This end does not want the other; the reason.
    Refuse(String),
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("drain", _) => Some(Self::Drain),
            ("refuse", why) => Some(Self::Refuse(why.to_owned())),
            _ => None,
        }
    }

    pub(crate) fn write(&self) -> String {
        match self {
            Self::Drain => "drain\n".to_owned(),
            Self::Refuse(why) => {
                let why: String = why.chars().take(MAX_LINE / 8).collect();
                format!("refuse {}\n", why.replace(['\n', '\r'], " "))
            }
        }
    }
}

/// What a server's lines mean for its agent: it looks elsewhere, or the session is over.
pub(crate) fn obey(lines: Vec<Line>, drains: &CancellationToken) -> Result<(), SessionError> {
    for line in lines {
        match line {
            Line::Drain => drains.cancel(),
            Line::Refuse(why) => return Err(SessionError::Refused(why)),
        }
    }
    Ok(())
}

/// Cuts what arrives into lines.
#[derive(Debug, Default)]
pub(crate) struct Cutter(Vec<u8>);

impl Cutter {
    /// The known lines that are complete with `data`.
    pub(crate) fn feed(&mut self, data: &[u8]) -> Result<Vec<Line>, SessionError> {
        self.0.extend_from_slice(data);
        let mut lines = Vec::new();
        while let Some(end) = self.0.iter().position(|&byte| byte == b'\n') {
            let rest = self.0.split_off(end + 1);
            let line = std::mem::replace(&mut self.0, rest);
            lines.extend(Line::parse(
                String::from_utf8_lossy(&line[..end]).trim_end(),
            ));
        }
        if self.0.len() > MAX_LINE {
            return Err(SessionError::Protocol("an endless control line".into()));
        }
        Ok(lines)
    }
}

/// The control stream, as it is read.
#[derive(Debug)]
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
        let data = self
            .stream
            .data()
            .await
            .ok_or_else(|| SessionError::Broken("the other end closed it".into()))??;
        let _ = self.stream.flow_control().release_capacity(data.len());
        self.cutter.feed(&data)
    }
}

/// The control stream, as it is spoken on.
#[derive(Debug)]
pub(super) struct Saying(Mutex<SendStream<Bytes>>);

impl Saying {
    pub(super) fn new(stream: SendStream<Bytes>) -> Self {
        Self(Mutex::new(stream))
    }

    /// Says a line, if the connection still is.
    pub(super) fn say(&self, line: &Line) {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = stream.send_data(line.write().into(), false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn said() -> impl Strategy<Value = Line> {
        prop_oneof![
            Just(Line::Drain),
            "[a-z][a-z ]{0,60}[a-z]".prop_map(Line::Refuse)
        ]
    }

    proptest! {
        #[test]
        fn what_is_said_is_heard_however_it_is_cut(
            lines in proptest::collection::vec(said(), 0..8),
            piece in 1usize..50,
        ) {
            let text: String = lines.iter().map(Line::write).collect();
            let mut cutter = Cutter::default();
            let mut heard = Vec::new();
            for piece in text.as_bytes().chunks(piece) {
                heard.extend(cutter.feed(piece).unwrap());
            }
            prop_assert_eq!(heard, lines);
        }

        #[test]
        fn rubbish_is_ignored_within_bounds(data in proptest::collection::vec(any::<u8>(), 0..3 * MAX_LINE)) {
            let mut cutter = Cutter::default();
            for piece in data.chunks(1000) {
                if cutter.feed(piece).is_err() {
                    return Ok(());
                }
                prop_assert!(cutter.0.len() <= MAX_LINE);
            }
        }
    }

    #[test]
    fn unknown_kinds_are_ignored_and_no_line_is_endless() {
        let mut cutter = Cutter::default();
        assert_eq!(cutter.feed(b"hurry up\ndrain\n").unwrap(), [Line::Drain]);
        assert!(cutter.feed(&[b'x'; MAX_LINE + 1]).is_err());
        assert!(
            !Line::Refuse("a\nb".into())
                .write()
                .trim_end()
                .contains('\n')
        );
    }
}
