//! The events of a watch that the hub reads for itself.

use http_body::Body;
use http_body_util::BodyExt;
use yurt_wire::{
    Encoding,
    watch::{Event, EventType, Frame, FrameDecoder},
};

/// Why a watch cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The connection.
    Connection,
    /// What came is no event.
    Garbage,
    /// The server told an ERROR: one begins anew.
    Told,
}

/// Reads a body as events.
pub(crate) struct Events<B> {
    body: B,
    frames: FrameDecoder,
}

impl<B: Body + Unpin> Events<B>
where
    B::Data: Into<bytes::Bytes>,
{
    /// Of a body; a frame of more than `most` bytes is garbage.
    pub(crate) fn new(body: B, encoding: Encoding, most: usize) -> Self {
        Self {
            body,
            frames: FrameDecoder::new(encoding, most),
        }
    }

    /// The next one; `None` when the stream ended as watches do.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, Broken> {
        loop {
            if let Some(frame) = self.frames.next_frame().map_err(|_| Broken::Garbage)? {
                return judged(frame).map(Some);
            }
            match self.body.frame().await {
                // The last frame needs no end of its own.
                None => return self.frames.finish().map(judged).transpose(),
                Some(Err(_)) => return Err(Broken::Connection),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.frames.push(data.into());
                    }
                }
            }
        }
    }
}

fn judged(frame: Frame) -> Result<Event, Broken> {
    let event = frame.event.map_err(|_| Broken::Garbage)?;
    if event.kind == EventType::Error {
        return Err(Broken::Told);
    }
    Ok(event)
}

/// Moves the revision that a watch is at.
pub(crate) fn advance(revision: &mut String, event: &Event) -> bool {
    match event.object.key() {
        Ok(key) if !key.resource_version.is_empty() => {
            *revision = key.resource_version.into_owned();
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yurt_transport::full;

    async fn read(text: &'static str) -> (Vec<String>, Result<(), Broken>) {
        let mut events = Events::new(full(text), Encoding::Json, 1 << 10);
        let (mut seen, mut revision) = (Vec::new(), String::new());
        loop {
            match events.next().await {
                Ok(Some(event)) => {
                    advance(&mut revision, &event);
                    seen.push(format!("{} {revision}", event.kind.as_str()));
                }
                Ok(None) => return (seen, Ok(())),
                Err(broken) => return (seen, Err(broken)),
            }
        }
    }

    #[tokio::test]
    async fn events_until_the_end_or_what_is_none() {
        const TWO: &str = concat!(
            r#"{"type":"ADDED","object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","resourceVersion":"3"}}}"#,
            "\n",
            r#"{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"7"}}}"#,
            "\n"
        );
        let seen = ["ADDED 3", "BOOKMARK 7"].map(str::to_owned).to_vec();
        assert_eq!(read(TWO).await, (seen, Ok(())));
        let error = r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","code":410}}"#;
        assert_eq!(read(error).await.1, Err(Broken::Told));
        assert_eq!(read("]]]\n").await.1, Err(Broken::Garbage));
    }
}
