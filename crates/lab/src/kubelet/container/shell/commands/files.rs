//! Commands about files and directories.

use super::measure::Input;
use crate::kubelet::container::{
    files::{FileError, resolve},
    shell::{Ended, Shell},
    streams::Streams,
};
use std::io;
use tokio::io::AsyncWriteExt as _;

impl Shell {
    pub(super) async fn cat(&self, rest: &[String], streams: &Streams) -> io::Result<Ended> {
        let files: Vec<&String> = rest
            .iter()
            .filter(|word| *word == "-" || !word.starts_with('-'))
            .collect();
        let mut code = 0;
        let stdin = "-".to_owned();
        let files = match files.is_empty() {
            true => vec![&stdin],
            false => files,
        };
        for file in files {
            let mut input = match self.input(Some(file), streams).await {
                Ok(input) => input,
                Err(error) => {
                    code = self.refuse("cat", file, error, streams).await.code();
                    continue;
                }
            };
            loop {
                let piece = input.next().await?;
                if piece.is_empty() {
                    break;
                }
                streams.out(piece).await?;
            }
        }
        Ok(Ended::Code(code))
    }

    pub(super) async fn ls(&self, rest: &[String], streams: &Streams) -> io::Result<Ended> {
        let long = rest
            .iter()
            .any(|word| word.starts_with('-') && word.contains('l'));
        let paths: Vec<&String> = rest.iter().filter(|word| !word.starts_with('-')).collect();
        let here = ".".to_owned();
        let paths = match paths.is_empty() {
            true => vec![&here],
            false => paths,
        };
        let mut code = 0;
        for word in paths {
            let path = resolve(&self.directory, word);
            let names: Vec<String> = match self.container.list(&path).await {
                Ok(names) => names.into_iter().collect(),
                Err(FileError::NotDirectory) => vec![word.clone()],
                Err(error) => {
                    code = self.refuse("ls", word, error, streams).await.code();
                    continue;
                }
            };
            let mut text = String::new();
            for name in names {
                if long {
                    let inside = resolve(&path, &name);
                    let (kind, size) = match self.container.open(&inside).await {
                        Ok(content) => ("-rw-r--r--", content.length().unwrap_or(0)),
                        Err(_) => ("drwxr-xr-x", 4096),
                    };
                    text += &format!("{kind} 1 root root {size:>8} {name}\n");
                } else {
                    text += &format!("{name}\n");
                }
            }
            streams.out(text).await?;
        }
        Ok(Ended::Code(code))
    }

    /// `test`: 0 true, 1 false, 2 not understood.
    pub(super) async fn test(&self, rest: &[String]) -> i32 {
        let words: Vec<&str> = rest
            .iter()
            .map(String::as_str)
            .filter(|w| *w != "]")
            .collect();
        let (negated, words) = match words.as_slice() {
            ["!", words @ ..] => (true, words),
            words => (false, words),
        };
        let number = |text: &str| text.parse::<i64>().ok();
        let path = |text: &str| resolve(&self.directory, text);
        let held = match words {
            [] => false,
            ["-d", at] => self.container.is_directory(&path(at)).await,
            ["-f" | "-r", at] => self.container.open(&path(at)).await.is_ok(),
            ["-s", at] => {
                let content = self.container.open(&path(at)).await;
                content.is_ok_and(|content| content.length() != Some(0))
            }
            ["-e", at] => {
                let at = path(at);
                self.container.is_directory(&at).await || self.container.open(&at).await.is_ok()
            }
            ["-z", text] => text.is_empty(),
            ["-n", text] | [text] => !text.is_empty(),
            [a, "=" | "==", b] => a == b,
            [a, "!=", b] => a != b,
            [a, "-eq", b] => number(a) == number(b),
            [a, "-ne", b] => number(a) != number(b),
            [a, "-lt", b] => number(a) < number(b),
            [a, "-gt", b] => number(a) > number(b),
            [a, "-le", b] => number(a) <= number(b),
            [a, "-ge", b] => number(a) >= number(b),
            _ => return 2,
        };
        i32::from(held == negated)
    }

    /// `mkdir`, `touch` and `rm`.
    pub(super) async fn change(
        &self,
        name: &str,
        rest: &[String],
        streams: &Streams,
    ) -> io::Result<Ended> {
        let paths = rest.iter().filter(|word| !word.starts_with('-'));
        let forced = rest
            .iter()
            .any(|word| word.starts_with('-') && word.contains('f'));
        for word in paths {
            let path = resolve(&self.directory, word);
            let done = match name {
                "mkdir" => self.container.make_directory(&path).await,
                "touch" if self.container.open(&path).await.is_ok() => Ok(()),
                "touch" => self.container.write(&path, b"", false).await,
                _ => self.container.remove(&path).await,
            };
            match done {
                Err(FileError::Missing) if forced && name == "rm" => {}
                Err(error) => return Ok(self.refuse(name, word, error, streams).await),
                Ok(()) => {}
            }
        }
        Ok(Ended::Code(0))
    }

    pub(super) async fn tee(&self, rest: &[String], streams: &Streams) -> io::Result<Ended> {
        let append = rest.first().is_some_and(|word| word == "-a");
        let mut files = Vec::new();
        for word in rest.iter().filter(|word| !word.starts_with('-')) {
            let path = resolve(&self.directory, word);
            match self.container.create(&path, append).await {
                Ok(file) => files.push((word, file)),
                Err(error) => return Ok(self.refuse("tee", word, error, streams).await),
            }
        }
        let mut input = Input::Stdin(streams);
        loop {
            let piece = input.next().await?;
            let over = piece.is_empty();
            for (word, file) in &mut files {
                let written = match over {
                    true => file.shutdown().await,
                    false => file.write_all(&piece).await,
                };
                if let Err(error) = written {
                    return Ok(self.refuse("tee", word, error, streams).await);
                }
            }
            if over {
                return Ok(Ended::Code(0));
            }
            streams.out(piece).await?;
        }
    }
}
