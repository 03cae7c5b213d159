//! The built-in commands: here those that are about the shell itself, and which others there are.

mod files;
mod filters;
mod measure;
mod system;
mod tar;

use super::{Ended, NOT_FOUND, Shell};
use crate::kubelet::container::{
    files::{FileError, resolve},
    streams::Streams,
};
use bytes::Bytes;
use std::{io, time::Duration};

/// Whether there is such a command.
pub(crate) fn is_known(program: &str) -> bool {
    COMMANDS.contains(&base(program))
}

const COMMANDS: [&str; 41] = [
    "[",
    "ash",
    "bash",
    "basename",
    "cat",
    "cd",
    "date",
    "dirname",
    "echo",
    "env",
    "exit",
    "export",
    "false",
    "grep",
    "head",
    "hostname",
    "id",
    "ls",
    "mkdir",
    "nproc",
    "printenv",
    "printf",
    "ps",
    "pwd",
    "rm",
    "seq",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stty",
    "tail",
    "tar",
    "tee",
    "test",
    "touch",
    "true",
    "tty",
    "uname",
    "wc",
    "whoami",
];

fn base(program: &str) -> &str {
    let known = ["/bin/", "/usr/bin/", "/usr/local/bin/", "/sbin/"];
    let stripped = known.iter().find_map(|dir| program.strip_prefix(dir));
    stripped.unwrap_or(program)
}

impl Shell {
    /// Runs a built-in command; fails when its input or output does.
    pub(super) async fn builtin(
        &mut self,
        line: &[String],
        streams: &Streams,
    ) -> io::Result<Ended> {
        let [name, rest @ ..] = line else {
            return Ok(Ended::Code(0));
        };
        let name = base(name);
        let number = |text: &String| text.parse::<i64>().ok();
        let code = match name {
            "true" => 0,
            "false" => 1,
            "exit" => {
                let code = rest.first().and_then(number);
                return Ok(Ended::Exit(
                    code.map_or(self.code, |code| (code & 0xff) as i32),
                ));
            }
            "echo" => {
                let (newline, words) = match rest {
                    [first, words @ ..] if first == "-n" => ("", words),
                    words => ("\n", words),
                };
                streams.out(format!("{}{newline}", words.join(" "))).await?;
                0
            }
            "printf" => {
                streams.out(formatted(rest)).await?;
                0
            }
            "cat" => return self.cat(rest, streams).await,
            "env" | "printenv" => match rest.first() {
                Some(wanted) => match self.environment.get(wanted) {
                    Some(value) => {
                        streams.out(format!("{value}\n")).await?;
                        0
                    }
                    None => 1,
                },
                None => {
                    let pairs = self.environment.iter();
                    let text: String = pairs.map(|(k, v)| format!("{k}={v}\n")).collect();
                    streams.out(text).await?;
                    0
                }
            },
            "export" => {
                for pair in rest {
                    if let Some((name, value)) = pair.split_once('=') {
                        self.environment.insert(name.to_owned(), value.to_owned());
                    }
                }
                0
            }
            "pwd" => {
                streams.out(format!("{}\n", self.directory)).await?;
                0
            }
            "cd" => {
                let to = rest.first().map_or("/root", String::as_str);
                let path = resolve(&self.directory, to);
                if !self.container.is_directory(&path).await {
                    let error = FileError::Missing;
                    return Ok(self.refuse("sh: cd", to, error, streams).await);
                }
                self.directory = path;
                0
            }
            "sleep" => {
                let seconds: Option<f64> = rest.first().and_then(|text| match text.as_str() {
                    "inf" | "infinity" => Some(f64::MAX),
                    text => text.trim_end_matches('s').parse().ok(),
                });
                match seconds.map(Duration::try_from_secs_f64) {
                    None => {
                        let what = rest.first().map_or("", String::as_str);
                        streams
                            .complain(format!("sleep: invalid number '{what}'"))
                            .await?;
                        1
                    }
                    Some(Ok(time)) => {
                        tokio::time::sleep(time).await;
                        0
                    }
                    Some(Err(_)) => std::future::pending().await,
                }
            }
            "seq" => {
                let numbers: Vec<i64> = rest.iter().filter_map(number).collect();
                let (first, last) = match numbers.as_slice() {
                    [last] => (1, *last),
                    [first, .., last] => (*first, *last),
                    [] => (1, 0),
                };
                for number in first..=last {
                    streams.out(format!("{number}\n")).await?;
                }
                0
            }
            "basename" | "dirname" => {
                let path = rest.first().map_or("", String::as_str);
                let (dir, last) = path
                    .trim_end_matches('/')
                    .rsplit_once('/')
                    .unwrap_or((".", path));
                let text = if name == "basename" { last } else { dir };
                streams.out(format!("{text}\n")).await?;
                0
            }
            "sh" | "bash" | "ash" => return self.shell(name, rest, streams).await,
            "test" | "[" => self.test(rest).await,
            "ls" => return self.ls(rest, streams).await,
            "mkdir" | "touch" | "rm" => return self.change(name, rest, streams).await,
            "tee" => return self.tee(rest, streams).await,
            "date" | "hostname" | "id" | "nproc" | "ps" | "stty" | "tty" | "uname" | "whoami" => {
                return self.system(name, rest, streams).await;
            }
            "head" | "tail" | "sort" | "grep" => return self.filter(name, rest, streams).await,
            "wc" | "sha256sum" => return self.measure(name, rest, streams).await,
            "tar" => return self.tar(rest, streams).await,
            _ => {
                streams.complain(format!("sh: {name}: not found")).await?;
                NOT_FOUND
            }
        };
        Ok(Ended::Code(code))
    }
}

/// `printf`: `%s`, `%d`, `%%`, `\n`, `\t`.
fn formatted(words: &[String]) -> Bytes {
    let [format, values @ ..] = words else {
        return Bytes::new();
    };
    let mut values = values.iter();
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match (c, chars.clone().next()) {
            ('%', Some('s' | 'd')) => {
                out.push_str(values.next().map_or("", String::as_str));
                chars.next();
            }
            ('%', Some('%')) => {
                out.push('%');
                chars.next();
            }
            ('\\', Some('n')) => {
                out.push('\n');
                chars.next();
            }
            ('\\', Some('t')) => {
                out.push('\t');
                chars.next();
            }
            (c, _) => out.push(c),
        }
    }
    out.into()
}
