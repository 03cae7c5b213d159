//! The gRPC messages of a connection, and what HTTP/2 had to say before: `!` frames of the peer before its first message (settings and
//! headers), `<` messages from the peer, `>` messages from us. In hexadecimal, a line each.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use yurt_transport::BoxStream;

/// What an HTTP/2 client begins with.
const PREFACE: usize = 24;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;

#[derive(Clone, Default)]
pub(crate) struct Tape(Arc<Mutex<String>>);

impl Tape {
    /// Passes everything on, and notes what is to be noted.
    pub(crate) fn tap(&self, peer: BoxStream, peer_is_client: bool) -> DuplexStream {
        let (ours, inner) = duplex(256 << 10);
        let (from_peer, to_peer) = tokio::io::split(peer);
        let (from_us, to_us) = tokio::io::split(inner);
        tokio::spawn(self.clone().copy(from_peer, to_us, '<', peer_is_client));
        tokio::spawn(self.clone().copy(from_us, to_peer, '>', !peer_is_client));
        ours
    }

    fn note(&self, mark: char, bytes: &[u8]) {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut tape = self.0.lock().unwrap();
        tape.push(mark);
        tape.push_str(&hex);
        tape.push('\n');
    }

    async fn copy(
        self,
        mut from: impl tokio::io::AsyncRead + Unpin,
        mut to: impl tokio::io::AsyncWrite + Unpin,
        mark: char,
        preface: bool,
    ) {
        let (mut piece, mut frames, mut messages) = (vec![0; 64 << 10], Vec::new(), Vec::new());
        let (mut skip, mut spoke) = (if preface { PREFACE } else { 0 }, false);
        while let Ok(count @ 1..) = from.read(&mut piece).await {
            frames.extend_from_slice(&piece[..count]);
            let skipped = skip.min(frames.len());
            frames.drain(..skipped);
            skip -= skipped;
            // HTTP/2 frames: three bytes of length, one of type, one of flags, four of the stream.
            while frames.len() >= 9 {
                let length = usize::from(frames[0]) << 16
                    | usize::from(frames[1]) << 8
                    | usize::from(frames[2]);
                if frames.len() < 9 + length {
                    break;
                }
                let frame: Vec<u8> = frames.drain(..9 + length).collect();
                match frame[3] {
                    DATA => {
                        spoke = true;
                        messages.extend_from_slice(&frame[9..]);
                    }
                    // Not the confirmation of ours.
                    SETTINGS if frame[4] & 1 == 1 => {}
                    HEADERS | SETTINGS | CONTINUATION if mark == '<' && !spoke => {
                        self.note('!', &frame);
                    }
                    _ => {}
                }
            }
            while messages.len() >= 5 {
                let length = u32::from_be_bytes(messages[1..5].try_into().unwrap()) as usize;
                if messages.len() < 5 + length {
                    break;
                }
                let message: Vec<u8> = messages.drain(..5 + length).skip(5).collect();
                self.note(mark, &message);
            }
            if to.write_all(&piece[..count]).await.is_err() || to.flush().await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    }

    /// Writes it down, when it is to be recorded.
    pub(crate) fn keep(&self, name: &str) {
        if let Some(directory) = std::env::var_os("RECORD_PACKETS") {
            std::fs::write(Path::new(&directory).join(name), &*self.0.lock().unwrap()).unwrap();
        }
    }
}
