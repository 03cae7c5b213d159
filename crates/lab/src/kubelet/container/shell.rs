//! Runs commands in a simulated container: a shell that combines built-in commands.

mod commands;
#[cfg(test)]
mod tests;

use super::{
    Container,
    files::resolve,
    streams::{Held, Streams, Writer},
    syntax::{self, Command, Item, Part, Redirect, When, Word},
};
use futures_util::future::join_all;
use std::{collections::BTreeMap, fmt, io, pin::Pin, sync::Arc};
use tokio::{
    io::{AsyncWriteExt as _, BufReader},
    sync::Mutex,
};

pub(crate) use commands::is_known;

/// Between two commands of a pipeline.
const PIPE: usize = 64 << 10;
/// Shells in shells.
const MAX_DEPTH: usize = 8;
/// A command that was found but cannot be run, one that was not found, one whose reader went away.
const NOT_FOUND: i32 = 127;
const BROKEN_PIPE: i32 = 141;

/// How a command ended: its code, and whether the shell around it ends too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Code(i32),
    Exit(i32),
}

impl Ended {
    fn code(self) -> i32 {
        match self {
            Self::Code(code) | Self::Exit(code) => code,
        }
    }
}

/// Runs a command line in a container, as a container runtime does: the code it ends with.
pub(crate) async fn run(container: Arc<Container>, command: &[String], streams: Streams) -> i32 {
    let shell = Shell {
        environment: container.environment().await,
        directory: container.working_directory().to_owned(),
        container,
        code: 0,
        depth: 0,
    };
    let Some(program) = command.first() else {
        return NOT_FOUND;
    };
    if !is_known(program) {
        let why = match program.contains('/') {
            true => format!("stat {program}: no such file or directory"),
            false => "executable file not found in $PATH".to_owned(),
        };
        // As runc says it.
        let _ = streams
            .complain(format!(
                "OCI runtime exec failed: exec failed: unable to start container process: exec: \"{program}\": {why}: unknown"
            ))
            .await;
        return NOT_FOUND;
    }
    let mut shell = shell;
    shell.command(command, &streams).await.code()
}

#[derive(Clone)]
struct Shell {
    container: Arc<Container>,
    environment: BTreeMap<String, String>,
    directory: String,
    /// How the last command ended.
    code: i32,
    depth: usize,
}

type Running<'a> = Pin<Box<dyn Future<Output = Ended> + Send + 'a>>;

impl Shell {
    /// Runs a script.
    async fn script(&mut self, name: &str, script: &str, streams: &Streams) -> Ended {
        match syntax::parse(script) {
            Ok(items) => self.items(&items, streams).await,
            Err(error) => {
                // Who reads the errors may be gone.
                let _ = streams.complain(format!("{name}: {error}")).await;
                Ended::Code(2)
            }
        }
    }

    fn items<'a>(&'a mut self, items: &'a [Item], streams: &'a Streams) -> Running<'a> {
        Box::pin(async move {
            for item in items {
                let due = match item.when {
                    When::Always => true,
                    When::Success => self.code == 0,
                    When::Failure => self.code != 0,
                };
                if !due {
                    continue;
                }
                let ended = self.pipeline(&item.pipeline, streams).await;
                self.code = match item.negated {
                    true => i32::from(ended.code() == 0),
                    false => ended.code(),
                };
                if let Ended::Exit(code) = ended {
                    return Ended::Exit(code);
                }
            }
            Ended::Code(self.code)
        })
    }

    async fn pipeline(&mut self, commands: &[Command], streams: &Streams) -> Ended {
        if let [only] = commands {
            return self.one(only, streams.clone()).await;
        }
        let mut running: Vec<Running<'_>> = Vec::new();
        let mut input = streams.stdin.clone();
        for (at, command) in commands.iter().enumerate() {
            let mut own = Streams {
                stdin: input.clone(),
                ..streams.clone()
            };
            if at + 1 < commands.len() {
                let (writer, reader) = tokio::io::duplex(PIPE);
                own.stdout = Arc::new(Mutex::new(Box::new(writer)));
                input = Arc::new(Mutex::new(BufReader::new(Box::new(reader))));
            }
            let mut shell = self.clone();
            running.push(Box::pin(async move { shell.one(command, own).await }));
        }
        drop(input);
        let codes = join_all(running).await;
        Ended::Code(codes.last().map_or(0, |ended| ended.code()))
    }

    fn one<'a>(&'a mut self, command: &'a Command, streams: Streams) -> Running<'a> {
        Box::pin(async move {
            match command {
                Command::Simple {
                    assignments,
                    words,
                    redirects,
                } => self.simple(assignments, words, redirects, streams).await,
                Command::Loop {
                    until,
                    condition,
                    body,
                } => loop {
                    // A loop of commands that do not wait must let others run, and be ended.
                    tokio::task::yield_now().await;
                    match self.items(condition, &streams).await {
                        Ended::Exit(code) => return Ended::Exit(code),
                        Ended::Code(code) if (code == 0) == *until => return Ended::Code(0),
                        Ended::Code(_) => {}
                    }
                    if let Ended::Exit(code) = self.items(body, &streams).await {
                        return Ended::Exit(code);
                    }
                },
                Command::For { name, words, body } => {
                    for word in words {
                        let value = self.expand(word, &streams).await;
                        self.environment.insert(name.clone(), value);
                        if let Ended::Exit(code) = self.items(body, &streams).await {
                            return Ended::Exit(code);
                        }
                    }
                    Ended::Code(self.code)
                }
                Command::If {
                    branches,
                    otherwise,
                } => {
                    for (condition, body) in branches {
                        match self.items(condition, &streams).await {
                            Ended::Exit(code) => return Ended::Exit(code),
                            Ended::Code(0) => return self.items(body, &streams).await,
                            Ended::Code(_) => {}
                        }
                    }
                    self.code = 0;
                    self.items(otherwise, &streams).await
                }
            }
        })
    }

    async fn simple(
        &mut self,
        assignments: &[(String, Word)],
        words: &[Word],
        redirects: &[Redirect],
        mut streams: Streams,
    ) -> Ended {
        let mut line = Vec::new();
        for word in words {
            line.push(self.expand(word, &streams).await);
        }
        let mut files = Vec::new();
        for redirect in redirects {
            match redirect {
                Redirect::Join { stderr_to_stdout } => match stderr_to_stdout {
                    true => streams.stderr = streams.stdout.clone(),
                    false => streams.stdout = streams.stderr.clone(),
                },
                Redirect::Input(from) => {
                    let path = self.expand(from, &streams).await;
                    let path = resolve(&self.directory, &path);
                    match self.container.open(&path).await {
                        Ok(content) => {
                            let reader = BufReader::new(content.reader());
                            streams.stdin = Arc::new(Mutex::new(reader));
                        }
                        Err(error) => return self.refuse("sh", &path, error, &streams).await,
                    }
                }
                Redirect::Output { stderr, append, to } => {
                    let path = self.expand(to, &streams).await;
                    let path = resolve(&self.directory, &path);
                    let writer: Writer = match self.container.create(&path, *append).await {
                        Ok(draft) => Box::new(draft),
                        Err(error) => return self.refuse("sh", &path, error, &streams).await,
                    };
                    let writer = Arc::new(Mutex::new(writer));
                    match stderr {
                        true => streams.stderr = writer.clone(),
                        false => streams.stdout = writer.clone(),
                    }
                    files.push((path, writer));
                }
            }
        }
        let mut values = Vec::new();
        for (name, word) in assignments {
            values.push((name.clone(), self.expand(word, &streams).await));
        }
        let mut ended = if line.is_empty() {
            self.environment.extend(values);
            Ended::Code(0)
        } else {
            let before = self.environment.clone();
            let assigned = !values.is_empty();
            self.environment.extend(values);
            let ended = self.command(&line, &streams).await;
            if assigned {
                self.environment = before;
            }
            ended
        };
        for (path, file) in files {
            let kept = file.lock().await.shutdown().await;
            if let Err(error) = kept {
                ended = self.refuse("sh", &path, error, &streams).await;
            }
        }
        ended
    }

    async fn expand(&mut self, word: &Word, streams: &Streams) -> String {
        let mut text = String::new();
        for part in word {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Variable(name) if name == "?" => text.push_str(&self.code.to_string()),
                Part::Variable(name) => {
                    text.push_str(self.environment.get(name).map_or("", String::as_str));
                }
                Part::Output(items) => {
                    let held = Held::default();
                    let writer: Writer = Box::new(held.clone());
                    let inner = Streams {
                        stdout: Arc::new(Mutex::new(writer)),
                        ..streams.clone()
                    };
                    let mut shell = self.clone();
                    self.code = shell.items(items, &inner).await.code();
                    let printed = held.take();
                    text.push_str(String::from_utf8_lossy(&printed).trim_end_matches('\n'));
                }
            }
        }
        text
    }

    async fn refuse(
        &self,
        who: &str,
        what: &str,
        error: impl fmt::Display,
        streams: &Streams,
    ) -> Ended {
        // Who reads the errors may be gone.
        let _ = streams.complain(format!("{who}: {what}: {error}")).await;
        Ended::Code(1)
    }

    fn command<'a>(&'a mut self, line: &'a [String], streams: &'a Streams) -> Running<'a> {
        Box::pin(async move {
            match self.builtin(line, streams).await {
                Ok(ended) => ended,
                // Whoever read the output has gone.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ended::Code(BROKEN_PIPE),
                Err(error) => {
                    let who = line.first().map_or("sh", String::as_str);
                    self.refuse(who, "error", error, streams).await
                }
            }
        })
    }

    async fn shell(&mut self, name: &str, rest: &[String], streams: &Streams) -> io::Result<Ended> {
        if self.depth >= MAX_DEPTH {
            streams.complain(format!("{name}: too many shells")).await?;
            return Ok(Ended::Code(1));
        }
        let mut inner = self.clone();
        inner.depth += 1;
        inner.code = 0;
        let script = match rest {
            [flags, script, ..] if flags.starts_with('-') && flags.contains('c') => script.clone(),
            [file, ..] if !file.starts_with('-') => {
                let path = resolve(&self.directory, file);
                match self.container.read(&path).await {
                    Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                    Err(error) => {
                        self.refuse(name, file, error, streams).await;
                        return Ok(Ended::Code(NOT_FOUND));
                    }
                }
            }
            _ => return Ok(Ended::Code(inner.interactive(name, streams).await?)),
        };
        let ended = Box::pin(inner.script(name, &script, streams)).await;
        Ok(Ended::Code(ended.code()))
    }

    /// Reads commands line by line.
    async fn interactive(&mut self, name: &str, streams: &Streams) -> io::Result<i32> {
        loop {
            if streams.terminal.is_some() {
                streams.out(format!("{} # ", self.directory)).await?;
            }
            let line = streams.line().await?;
            if line.is_empty() {
                return Ok(self.code);
            }
            let line = String::from_utf8_lossy(&line).into_owned();
            if let Ended::Exit(code) = Box::pin(self.script(name, &line, streams)).await {
                return Ok(code);
            }
        }
    }
}
