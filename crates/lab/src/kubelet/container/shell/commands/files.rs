//! Commands about files and directories.

use crate::kubelet::container::{
    files::{FileError, resolve},
    shell::{Ended, Shell},
    streams::Streams,
};
use std::io;
use tokio::io::AsyncReadExt;

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
            if file == "-" {
                let mut buffer = vec![0; 16 << 10];
                loop {
                    let count = streams.stdin.lock().await.read(&mut buffer).await?;
                    if count == 0 {
                        break;
                    }
                    streams.out(&buffer[..count]).await?;
                }
                continue;
            }
            match self.container.read(&resolve(&self.directory, file)).await {
                Ok(bytes) => streams.out(bytes).await?,
                Err(error) => code = self.refuse("cat", file, error, streams).await.code(),
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
                    let (kind, size) = match self.container.read(&inside).await {
                        Ok(bytes) => ("-rw-r--r--", bytes.len()),
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
            ["-f" | "-s" | "-r", at] => self.container.read(&path(at)).await.is_ok(),
            ["-e", at] => {
                let at = path(at);
                self.container.is_directory(&at).await || self.container.read(&at).await.is_ok()
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
                "touch" => self.container.write(&path, b"", true).await,
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
        let bytes = streams.whole_input().await?;
        streams.out(&bytes).await?;
        let append = rest.first().is_some_and(|word| word == "-a");
        for word in rest.iter().filter(|word| !word.starts_with('-')) {
            let path = resolve(&self.directory, word);
            if let Err(error) = self.container.write(&path, &bytes, append).await {
                return Ok(self.refuse("tee", word, error, streams).await);
            }
        }
        Ok(Ended::Code(0))
    }
}
