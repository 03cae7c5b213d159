//! What a stream begins with: a line that says what it is, lines `name: value`, and an empty one. Bytes of the proxied connection, or
//! the text of a refusal, come after it.

use crate::{link::DialError, mux::refusal, session::SessionError};
use http::StatusCode;
use std::io;

/// A longer head is none: identifiers of an agent are the longest thing said.
pub(super) const MAX_HEAD: usize = 64 << 10;

/// The head of a stream, or of its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// The first line: `control`, `CONNECT host:port`, or a status.
    pub(super) first: String,
    fields: Vec<(String, String)>,
}

impl Head {
    pub(super) fn new(first: impl Into<String>) -> Self {
        Self {
            first: first.into(),
            fields: Vec::new(),
        }
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.fields.push((name.to_owned(), value.into()));
        self
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let field = self.fields.iter().find(|(known, _)| known == name);
        field.map(|(_, value)| value.as_str())
    }

    /// What must be said.
    pub(super) fn need(&self, name: &str) -> Result<&str, SessionError> {
        self.get(name)
            .ok_or_else(|| SessionError::Protocol(format!("it did not say its {name}")))
    }

    /// The bytes. What would break a line cannot be said.
    pub(super) fn write(&self) -> io::Result<Vec<u8>> {
        let mut text = self.first.clone();
        for (name, value) in &self.fields {
            text.push('\n');
            text.push_str(name);
            text.push_str(": ");
            text.push_str(value);
        }
        let breaks = |text: &String| text.contains(['\n', '\r']);
        let broken = breaks(&self.first) || self.fields.iter().any(|(n, v)| breaks(n) || breaks(v));
        if broken || self.first.is_empty() || text.len() + 2 > MAX_HEAD {
            let what = format!("{:?} cannot be said", self.first);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        text.push_str("\n\n");
        Ok(text.into_bytes())
    }

    /// The head at the beginning of `data` and its length, when it is complete. Lines without a colon are passed over.
    pub(super) fn parse(data: &[u8]) -> Result<Option<(Self, usize)>, SessionError> {
        let Some(end) = data.windows(2).position(|pair| pair == b"\n\n") else {
            return match data.len() < MAX_HEAD {
                true => Ok(None),
                false => Err(SessionError::Protocol("an endless head".into())),
            };
        };
        let text = str::from_utf8(data.get(..end).unwrap_or_default())
            .map_err(|_| SessionError::Protocol("a head that is no text".into()))?;
        let mut lines = text.split('\n');
        let mut head = Self::new(lines.next().unwrap_or_default());
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            head.fields.push((name.to_owned(), value.to_owned()));
        }
        Ok(Some((head, end + 2)))
    }

    /// How a dial that came to nothing is answered; the text follows.
    pub(super) fn refusal(error: &DialError) -> (Self, &str) {
        let head = Self::new(error.status().as_str()).with(refusal::KIND, refusal::kind(error));
        (head, refusal::text(error))
    }

    /// The error that an answer with this head and text tells.
    pub(super) fn refused(&self, text: String) -> DialError {
        let status = StatusCode::from_bytes(self.first.as_bytes());
        let status = status.unwrap_or(StatusCode::BAD_GATEWAY);
        refusal::error(status, self.get(refusal::KIND), text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn heads() -> impl Strategy<Value = Head> {
        let fields = vec(("[a-z-]{1,12}", "[^\r\n]{0,40}"), 0..6);
        ("[A-Z]{1,8}( [^\r\n]{1,30})?", fields).prop_map(|(first, fields)| Head { first, fields })
    }

    proptest! {
        #[test]
        fn what_is_said_is_understood_and_no_byte_after_it_is_touched(
            head in heads(),
            rest in vec(any::<u8>(), 0..50),
        ) {
            let mut data = head.write().unwrap();
            let length = data.len();
            for cut in 0..length {
                prop_assert_eq!(Head::parse(&data[..cut]).unwrap(), None);
            }
            data.extend(rest);
            prop_assert_eq!(Head::parse(&data).unwrap(), Some((head, length)));
        }

        #[test]
        fn rubbish_is_refused_within_bounds(data in vec(any::<u8>(), 0..300)) {
            let mut data = data;
            while data.len() < MAX_HEAD {
                data.extend_from_within(..);
                data.push(b'x');
            }
            if let Ok(head) = Head::parse(&data) {
                prop_assert!(head.is_some());
            }
        }
    }

    #[test]
    fn what_breaks_lines_is_not_said() {
        assert!(Head::new("CONNECT a\nb:1").write().is_err());
        assert!(Head::new("200").with("a", "b\r").write().is_err());
        assert!(Head::new("").write().is_err());
        assert!(Head::new("x".repeat(MAX_HEAD)).write().is_err());
    }

    #[test]
    fn refusals_survive() {
        let error = DialError::NoAgent("nobody".into());
        let (head, text) = Head::refusal(&error);
        let (head, _) = Head::parse(&head.write().unwrap()).unwrap().unwrap();
        assert_eq!(head.refused(text.to_owned()), error);
        assert!(matches!(
            Head::new("what").refused("x".into()),
            DialError::Failed(_)
        ));
    }
}
