//! The cloud's stream, cut into frames without losing a byte of it.

use bytes::Bytes;
use std::collections::VecDeque;
use yurt_wire::{
    Encoding,
    watch::{self, FrameDecoder},
};

/// A frame decoder that can give back what it swallowed when it fails, so that the client still gets every byte.
pub(super) struct Frames {
    decoder: FrameDecoder,
    /// What came and is not yet part of a delivered frame.
    held: VecDeque<Bytes>,
}

/// The stream cannot be cut into frames any more.
pub(super) struct Unfollowable {
    /// What came and was not delivered.
    pub(super) rest: VecDeque<Bytes>,
    pub(super) error: String,
}

impl Frames {
    pub(super) fn new(encoding: Encoding, most: usize) -> Self {
        Self {
            decoder: FrameDecoder::new(encoding, most),
            held: VecDeque::new(),
        }
    }

    pub(super) fn push(&mut self, chunk: Bytes) {
        self.held.push_back(chunk.clone());
        self.decoder.push(chunk);
    }

    pub(super) fn next(&mut self) -> Result<Option<watch::Frame>, Unfollowable> {
        match self.decoder.next_frame() {
            Ok(Some(frame)) => {
                self.release(frame.raw.len());
                Ok(Some(frame))
            }
            Ok(None) => {
                if self.decoder.pending() == 0 {
                    self.held.clear();
                }
                Ok(None)
            }
            Err(error) => Err(Unfollowable {
                rest: std::mem::take(&mut self.held),
                error: error.to_string(),
            }),
        }
    }

    fn release(&mut self, mut bytes: usize) {
        while let Some(first) = self.held.front_mut() {
            if first.len() > bytes {
                bytes::Buf::advance(first, bytes);
                return;
            }
            bytes -= first.len();
            self.held.pop_front();
        }
    }

    /// At the end of the stream: what is left, an unfinished frame included.
    pub(super) fn finish(&mut self) -> Option<Bytes> {
        if let Some(frame) = self.decoder.finish() {
            return Some(frame.raw);
        }
        let mut rest = Vec::new();
        for chunk in std::mem::take(&mut self.held) {
            rest.extend_from_slice(&chunk);
        }
        (!rest.is_empty()).then(|| rest.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_swallowed_when_frames_cannot_be_followed() {
        let mut frames = Frames::new(Encoding::Json, 1 << 20);
        frames.push(Bytes::from_static(
            b"{\"type\":\"BOOKMARK\",\"object\":{}}\n{\"ty",
        ));
        assert!(matches!(frames.next(), Ok(Some(_))));
        assert!(matches!(frames.next(), Ok(None)));
        frames.push(Bytes::from_static(
            b"pe\":\"BOOKMARK\",\"object\":{}}\n]]]garbage",
        ));
        assert!(matches!(frames.next(), Ok(Some(_))));
        let Err(Unfollowable { rest, .. }) = frames.next() else {
            panic!("garbage was followed")
        };
        let rest: Vec<u8> = rest.iter().flat_map(|chunk| chunk.to_vec()).collect();
        assert_eq!(rest, b"]]]garbage");
    }
}
