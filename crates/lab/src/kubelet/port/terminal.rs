//! The terminal between a client's keyboard and a command: echo, lines, control characters, carriage returns.

use std::{io, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    sync::{Mutex, Notify},
};

/// A line that is longer is handed on in pieces.
const MAX_LINE: usize = 4096;

/// What a key does.
#[derive(Debug, Default, PartialEq, Eq)]
struct Effect {
    /// To the screen.
    echo: Vec<u8>,
    /// To the command.
    line: Option<Vec<u8>>,
    interrupt: bool,
    end: bool,
}

/// The line that is being typed.
#[derive(Debug, Default)]
struct Discipline {
    line: Vec<u8>,
}

impl Discipline {
    fn key(&mut self, key: u8) -> Effect {
        let mut effect = Effect::default();
        match key {
            b'\r' | b'\n' => {
                effect.echo = b"\r\n".to_vec();
                self.line.push(b'\n');
                effect.line = Some(std::mem::take(&mut self.line));
            }
            // Backspace.
            0x7f | 0x08 => {
                if self.line.pop().is_some() {
                    effect.echo = b"\x08 \x08".to_vec();
                }
            }
            // Control-C.
            0x03 => {
                self.line.clear();
                effect.echo = b"^C\r\n".to_vec();
                effect.interrupt = true;
            }
            // Control-D.
            0x04 => match self.line.is_empty() {
                true => effect.end = true,
                false => effect.line = Some(std::mem::take(&mut self.line)),
            },
            key => {
                effect.echo = vec![key];
                self.line.push(key);
                if self.line.len() >= MAX_LINE {
                    effect.line = Some(std::mem::take(&mut self.line));
                }
            }
        }
        effect
    }
}

/// `\n` as a screen wants it.
fn with_returns(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 8);
    for byte in bytes {
        if *byte == b'\n' {
            out.push(b'\r');
        }
        out.push(*byte);
    }
    out
}

/// Drives a terminal until the command's output has ended. `keyboard` and `screen` are the client's, `input` and `output` the
/// command's; `interrupted` is told of Control-C.
pub(super) async fn drive(
    keyboard: Option<DuplexStream>,
    screen: DuplexStream,
    input: DuplexStream,
    mut output: DuplexStream,
    interrupted: Arc<Notify>,
) {
    let screen = Mutex::new(screen);
    let show = async {
        let mut buffer = vec![0; 8 << 10];
        while let Ok(count) = output.read(&mut buffer).await {
            if count == 0 || put(&screen, &with_returns(&buffer[..count])).await.is_err() {
                return;
            }
        }
    };
    let typed = async {
        if let Some(keyboard) = keyboard {
            // Ends when either side does; the command's output goes on.
            let _ = keys(keyboard, &screen, input, &interrupted).await;
        } else {
            drop(input);
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = show => {}
        () = typed => {}
    }
}

async fn keys(
    mut keyboard: DuplexStream,
    screen: &Mutex<DuplexStream>,
    mut input: DuplexStream,
    interrupted: &Notify,
) -> io::Result<()> {
    let mut discipline = Discipline::default();
    let mut buffer = [0; 1024];
    loop {
        let count = keyboard.read(&mut buffer).await?;
        if count == 0 {
            return input.shutdown().await;
        }
        let mut echo = Vec::new();
        for key in &buffer[..count] {
            let effect = discipline.key(*key);
            echo.extend(effect.echo);
            if effect.interrupt {
                interrupted.notify_one();
            }
            if let Some(line) = effect.line {
                put(screen, &std::mem::take(&mut echo)).await?;
                input.write_all(&line).await?;
            }
            if effect.end {
                return input.shutdown().await;
            }
        }
        put(screen, &echo).await?;
    }
}

async fn put(screen: &Mutex<impl AsyncWrite + Unpin>, bytes: &[u8]) -> io::Result<()> {
    screen.lock().await.write_all(bytes).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>, bool, bool) {
        let mut discipline = Discipline::default();
        let (mut echo, mut lines, mut interrupt, mut end) = (Vec::new(), Vec::new(), false, false);
        for key in keys {
            let effect = discipline.key(*key);
            echo.extend(effect.echo);
            lines.extend(effect.line);
            interrupt |= effect.interrupt;
            end |= effect.end;
        }
        (echo, lines, interrupt, end)
    }

    #[test]
    fn lines_are_edited() {
        let (echo, lines, ..) = typed(b"lz\x7fs\r");
        assert_eq!(echo, b"lz\x08 \x08s\r\n");
        assert_eq!(lines, [b"ls\n".to_vec()]);
        assert!(typed(b"a\x03").2);
        assert!(typed(b"\x04").3);
        assert_eq!(typed(b"a\x04").1, [b"a".to_vec()]);
        assert_eq!(typed(&[b'x'; MAX_LINE]).1.len(), 1);
    }

    #[tokio::test]
    async fn what_is_typed_is_echoed_and_what_is_printed_returns() {
        let pair = || tokio::io::duplex(1024);
        let ((mut keyboard, keys), (mut screen, shown)) = (pair(), pair());
        let ((input, mut read), (mut print, output)) = (pair(), pair());
        let driven = tokio::spawn(drive(Some(keys), shown, input, output, Arc::default()));
        keyboard.write_all(b"a\r\x04").await.unwrap();
        let mut line = String::new();
        read.read_to_string(&mut line).await.unwrap();
        assert_eq!(line, "a\n");
        print.write_all(b"x\ny").await.unwrap();
        drop(print);
        driven.await.unwrap();
        let mut text = String::new();
        screen.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "a\r\nx\r\ny");
    }
}
