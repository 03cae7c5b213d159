//! Runs commands in a simulated container: the built-in ones, and a shell that combines them.

use super::{
    Container, archive,
    files::{FileError, parent, resolve},
    syntax::{self, Command, Item, Part, Redirect, When, Word},
};
use bytes::Bytes;
use futures_util::future::join_all;
use jiff::{Timestamp, tz::TimeZone};
use std::{collections::BTreeMap, io, pin::Pin, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    sync::{Mutex, watch},
};

/// What a command or a file may hold in memory.
const MAX_HELD: usize = 8 << 20;
/// Between two commands of a pipeline.
const PIPE: usize = 64 << 10;
/// Shells in shells.
const MAX_DEPTH: usize = 8;
/// A command that was found but cannot be run, one that was not found, one whose reader went away.
const NOT_FOUND: i32 = 127;
const BROKEN_PIPE: i32 = 141;

/// Columns and rows of a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) width: u16,
    pub(crate) height: u16,
}

type Reader = BufReader<Box<dyn AsyncRead + Send + Unpin>>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// The standard streams of a command. Clones share them.
#[derive(Clone)]
pub(crate) struct Streams {
    stdin: Arc<Mutex<Reader>>,
    stdout: Arc<Mutex<Writer>>,
    stderr: Arc<Mutex<Writer>>,
    /// The terminal's size, when there is one.
    terminal: Option<watch::Receiver<Size>>,
}

impl Streams {
    pub(crate) fn new(
        stdin: impl AsyncRead + Send + Unpin + 'static,
        stdout: impl AsyncWrite + Send + Unpin + 'static,
        stderr: Option<Writer>,
        terminal: Option<watch::Receiver<Size>>,
    ) -> Self {
        let stdout: Arc<Mutex<Writer>> = Arc::new(Mutex::new(Box::new(stdout)));
        Self {
            stdin: Arc::new(Mutex::new(BufReader::new(Box::new(stdin)))),
            stderr: match stderr {
                Some(stderr) => Arc::new(Mutex::new(stderr)),
                None => stdout.clone(),
            },
            stdout,
            terminal,
        }
    }

    async fn out(&self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let mut stdout = self.stdout.lock().await;
        stdout.write_all(bytes.as_ref()).await?;
        stdout.flush().await
    }

    async fn complain(&self, text: impl AsRef<str>) -> io::Result<()> {
        let mut stderr = self.stderr.lock().await;
        stderr.write_all(text.as_ref().as_bytes()).await?;
        stderr.write_all(b"\n").await?;
        stderr.flush().await
    }

    /// The next line of the input with its newline; empty at the end.
    async fn line(&self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut stdin = self.stdin.lock().await;
        (&mut *stdin)
            .take(MAX_HELD as u64)
            .read_until(b'\n', &mut line)
            .await?;
        Ok(line)
    }

    async fn whole_input(&self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        let mut stdin = self.stdin.lock().await;
        (&mut *stdin)
            .take(MAX_HELD as u64 + 1)
            .read_to_end(&mut all)
            .await?;
        match all.len() > MAX_HELD {
            true => Err(io::Error::other("File too large")),
            false => Ok(all),
        }
    }
}

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

/// Whether there is such a command.
pub(crate) fn is_known(program: &str) -> bool {
    COMMANDS.contains(&base(program))
}

const COMMANDS: [&str; 40] = [
    "[", "ash", "bash", "basename", "cat", "cd", "date", "dirname", "echo", "env", "exit",
    "export", "false", "grep", "head", "hostname", "id", "ls", "mkdir", "nproc", "printenv",
    "printf", "ps", "pwd", "rm", "seq", "sh", "sleep", "sort", "stty", "tail", "tar", "tee",
    "test", "touch", "true", "tty", "uname", "wc", "whoami",
];

fn base(program: &str) -> &str {
    let known = ["/bin/", "/usr/bin/", "/usr/local/bin/", "/sbin/"];
    let stripped = known.iter().find_map(|dir| program.strip_prefix(dir));
    stripped.unwrap_or(program)
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
                    match self.container.read(&path).await {
                        Ok(bytes) => {
                            let reader: Box<dyn AsyncRead + Send + Unpin> =
                                Box::new(io::Cursor::new(bytes));
                            streams.stdin = Arc::new(Mutex::new(BufReader::new(reader)));
                        }
                        Err(error) => return self.refuse("sh", &path, error, &streams).await,
                    }
                }
                Redirect::Output { stderr, append, to } => {
                    let path = self.expand(to, &streams).await;
                    let path = resolve(&self.directory, &path);
                    // The file is there even when nothing is written.
                    if let Err(error) = self.container.write(&path, b"", *append).await {
                        return self.refuse("sh", &path, error, &streams).await;
                    }
                    let held = Held::default();
                    let writer: Writer = Box::new(held.clone());
                    let writer = Arc::new(Mutex::new(writer));
                    match stderr {
                        true => streams.stderr = writer,
                        false => streams.stdout = writer,
                    }
                    files.push((path, held));
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
        for (path, held) in files {
            if let Err(error) = self.container.write(&path, &held.take(), true).await {
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

    async fn refuse(&self, who: &str, what: &str, error: FileError, streams: &Streams) -> Ended {
        // Who reads the errors may be gone.
        let _ = streams.complain(format!("{who}: {what}: {error}")).await;
        Ended::Code(1)
    }

    fn command<'a>(&'a mut self, line: &'a [String], streams: &'a Streams) -> Running<'a> {
        Box::pin(async move {
            match self.builtin(line, streams).await {
                Ok(ended) => ended,
                // Whoever read the output has gone.
                Err(_) => Ended::Code(BROKEN_PIPE),
            }
        })
    }

    async fn builtin(&mut self, line: &[String], streams: &Streams) -> io::Result<Ended> {
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
            "date" => {
                streams.out(date(rest, Timestamp::now())).await?;
                0
            }
            "hostname" => {
                streams
                    .out(format!("{}\n", self.container.hostname()))
                    .await?;
                0
            }
            "id" => {
                streams
                    .out("uid=0(root) gid=0(root) groups=0(root)\n")
                    .await?;
                0
            }
            "whoami" => {
                streams.out("root\n").await?;
                0
            }
            "nproc" => {
                streams.out("4\n").await?;
                0
            }
            "uname" => {
                let text = match rest.first().map(String::as_str) {
                    Some("-a") => format!(
                        "Linux {} 6.1.0 #1 SMP x86_64 GNU/Linux\n",
                        self.container.hostname()
                    ),
                    Some("-m") => "x86_64\n".into(),
                    Some("-n") => format!("{}\n", self.container.hostname()),
                    Some("-r") => "6.1.0\n".into(),
                    _ => "Linux\n".into(),
                };
                streams.out(text).await?;
                0
            }
            "ps" => {
                let main = self.container.command();
                let main = match main.is_empty() {
                    true => self.container.name.clone(),
                    false => main.join(" "),
                };
                let text = format!("PID   USER     TIME  COMMAND\n    1 root      0:00 {main}\n");
                streams.out(text).await?;
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
            "tty" => {
                let text = match streams.terminal {
                    Some(_) => "/dev/pts/0\n",
                    None => "not a tty\n",
                };
                streams.out(text).await?;
                i32::from(streams.terminal.is_none())
            }
            "stty" => match &streams.terminal {
                Some(size) => {
                    let size = *size.borrow();
                    streams
                        .out(format!("{} {}\n", size.height, size.width))
                        .await?;
                    0
                }
                None => {
                    streams.complain("stty: standard input: Not a tty").await?;
                    1
                }
            },
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
            "mkdir" | "touch" | "rm" => {
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
                0
            }
            "tee" => {
                let bytes = streams.whole_input().await?;
                streams.out(&bytes).await?;
                let append = rest.first().is_some_and(|word| word == "-a");
                for word in rest.iter().filter(|word| !word.starts_with('-')) {
                    let path = resolve(&self.directory, word);
                    if let Err(error) = self.container.write(&path, &bytes, append).await {
                        return Ok(self.refuse(name, word, error, streams).await);
                    }
                }
                0
            }
            "head" | "tail" | "wc" | "sort" | "grep" => {
                return self.filter(name, rest, streams).await;
            }
            "tar" => return self.tar(rest, streams).await,
            _ => {
                streams.complain(format!("sh: {name}: not found")).await?;
                NOT_FOUND
            }
        };
        Ok(Ended::Code(code))
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

    async fn cat(&self, rest: &[String], streams: &Streams) -> io::Result<Ended> {
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

    async fn ls(&self, rest: &[String], streams: &Streams) -> io::Result<Ended> {
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
    async fn test(&self, rest: &[String]) -> i32 {
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

    /// Commands that make something of lines.
    async fn filter(&self, name: &str, rest: &[String], streams: &Streams) -> io::Result<Ended> {
        let mut count = 10;
        let mut words = Vec::new();
        let mut options = rest.iter();
        let mut inverted = false;
        while let Some(word) = options.next() {
            match word.strip_prefix('-') {
                Some("n") if matches!(name, "head" | "tail") => {
                    count = options.next().and_then(|n| n.parse().ok()).unwrap_or(count);
                }
                Some(flag) if !flag.is_empty() => {
                    count = flag.trim_start_matches('n').parse().unwrap_or(count);
                    inverted |= flag.contains('v');
                }
                _ => words.push(word),
            }
        }
        let pattern = match name {
            "grep" if !words.is_empty() => words.remove(0).clone(),
            _ => String::new(),
        };
        let input = match words.first() {
            Some(word) => match self.container.read(&resolve(&self.directory, word)).await {
                Ok(bytes) => bytes,
                Err(error) => return Ok(self.refuse(name, word, error, streams).await),
            },
            // The first lines are shown as soon as they are there.
            None if name == "head" => {
                let mut read = Vec::new();
                for _ in 0..count {
                    let line = streams.line().await?;
                    if line.is_empty() {
                        break;
                    }
                    read.extend(line);
                }
                read
            }
            None => streams.whole_input().await?,
        };
        let text = String::from_utf8_lossy(&input);
        let mut lines: Vec<&str> = text.lines().collect();
        match name {
            "head" => lines.truncate(count),
            "tail" => drop(lines.drain(..lines.len().saturating_sub(count))),
            "sort" => lines.sort_unstable(),
            "grep" => lines.retain(|line| line.contains(&pattern) != inverted),
            _ => {
                let counted = match rest.first().map(String::as_str) {
                    Some("-l") => lines.len().to_string(),
                    Some("-c") => input.len().to_string(),
                    Some("-w") => text.split_whitespace().count().to_string(),
                    _ => format!(
                        "{} {} {}",
                        lines.len(),
                        text.split_whitespace().count(),
                        input.len()
                    ),
                };
                streams.out(format!("{counted}\n")).await?;
                return Ok(Ended::Code(0));
            }
        }
        let code = i32::from(name == "grep" && lines.is_empty());
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        streams.out(text).await?;
        Ok(Ended::Code(code))
    }

    /// `tar cf - PATH...` and `tar xf - [-C DIR]`, with the flags of `kubectl cp`.
    async fn tar(&self, rest: &[String], streams: &Streams) -> io::Result<Ended> {
        let mut words = rest.iter();
        let flags = words
            .next()
            .map_or("", |flags| flags.trim_start_matches('-'));
        let mut directory = self.directory.clone();
        let mut paths = Vec::new();
        let mut to = "-".to_owned();
        if flags.contains('f')
            && let Some(file) = words.next()
        {
            to = file.clone();
        }
        while let Some(word) = words.next() {
            match word.as_str() {
                "-C" => {
                    if let Some(dir) = words.next() {
                        directory = resolve(&directory, dir);
                    }
                }
                option if option.starts_with("--") => {}
                path => paths.push(path.to_owned()),
            }
        }
        if to != "-" || !(flags.contains('c') || flags.contains('x')) {
            streams
                .complain("tar: only archives on standard input and output are simulated")
                .await?;
            return Ok(Ended::Code(2));
        }
        if flags.contains('c') {
            let mut members = Vec::new();
            for path in &paths {
                match self.container.tree(&resolve(&directory, path)).await {
                    Ok(tree) => members.extend(tree),
                    Err(error) => {
                        let ended = self.refuse("tar", path, error, streams).await;
                        return Ok(Ended::Code(ended.code().max(2)));
                    }
                }
            }
            // Names as they were given: relative ones stay so.
            for (name, _) in &mut members {
                let base = format!("{}/", directory.trim_end_matches('/'));
                let relative = paths.iter().all(|path| !path.starts_with('/'));
                if relative && let Some(rest) = name.strip_prefix(&base) {
                    *name = rest.to_owned();
                }
            }
            streams.out(archive::pack(&members)).await?;
            return Ok(Ended::Code(0));
        }
        let members = match archive::unpack(&streams.whole_input().await?) {
            Ok(members) => members,
            Err(error) => {
                streams.complain(format!("tar: {error}")).await?;
                return Ok(Ended::Code(2));
            }
        };
        for (name, content) in members {
            let path = resolve(&directory, name.trim_start_matches('/'));
            let written = match content {
                None => self.container.make_directory(&path).await,
                Some(bytes) => match self.container.make_directory(parent(&path)).await {
                    Ok(()) => self.container.write(&path, &bytes, false).await,
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = written {
                let ended = self.refuse("tar", &name, error, streams).await;
                return Ok(Ended::Code(ended.code().max(2)));
            }
        }
        Ok(Ended::Code(0))
    }
}

/// What a command writes into a file, until it has ended.
#[derive(Clone, Debug, Default)]
struct Held(Arc<std::sync::Mutex<Vec<u8>>>);

impl Held {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut super::super::lock(&self.0))
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        let mut held = super::super::lock(&self.0);
        std::task::Poll::Ready(if held.len() + bytes.len() > MAX_HELD {
            Err(io::ErrorKind::FileTooLarge.into())
        } else {
            held.extend_from_slice(bytes);
            Ok(bytes.len())
        })
    }

    fn poll_flush(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
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

/// `date`, `date -Iseconds`, `date +%s` and other formats.
fn date(rest: &[String], now: Timestamp) -> String {
    let now = now.to_zoned(TimeZone::UTC);
    let format = match rest.iter().find(|word| *word != "-u").map(String::as_str) {
        Some(word) if word.starts_with("-I") => "%Y-%m-%dT%H:%M:%S+00:00",
        Some(word) if word.starts_with('+') => &word[1..],
        _ => "%a %b %e %H:%M:%S UTC %Y",
    };
    // A format that jiff does not know is shown as it is.
    let text = jiff::fmt::strtime::format(format, &now);
    format!("{}\n", text.unwrap_or_else(|_| format.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::{super::files::example, *};

    async fn sh(script: &str) -> (i32, String, String) {
        ran(&["sh", "-c", script], "").await
    }

    async fn ran(command: &[&str], input: &'static str) -> (i32, String, String) {
        let (out, error) = (Held::default(), Held::default());
        let stderr: Writer = Box::new(error.clone());
        let streams = Streams::new(input.as_bytes(), out.clone(), Some(stderr), None);
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        let code = run(Arc::new(example()), &command, streams).await;
        let text = |held: Held| String::from_utf8(held.take()).unwrap();
        (code, text(out), text(error))
    }

    #[tokio::test]
    async fn commands_print_and_end() {
        for (script, code, out) in [
            ("echo hello; exit 3", 3, "hello\n"),
            ("echo $A ${A}b '$A' \"$A c\"", 0, "1 1b $A 1 c\n"),
            ("false || echo no && echo yes", 0, "no\nyes\n"),
            ("false && echo no; echo $?", 0, "1\n"),
            ("hostname; pwd; cd /etc && pwd", 0, "p\n/\n/etc\n"),
            ("echo a > /tmp/f; echo b >> /tmp/f; cat /tmp/f", 0, "a\nb\n"),
            ("echo $(echo x | cat)y", 0, "xy\n"),
            ("seq 1 5 | tail -n 2 | head -1", 0, "4\n"),
            ("for i in a b; do echo $i; done", 0, "a\nb\n"),
            (
                "if test -d /tmp; then echo dir; else echo none; fi",
                0,
                "dir\n",
            ),
            (
                "until test -f /tmp/x; do touch /tmp/x; echo once; done",
                0,
                "once\n",
            ),
            ("! true; echo $?", 0, "1\n"),
            ("B=2 printenv B; echo $B", 0, "2\n\n"),
            ("sh -c 'exit 4'; echo $?", 0, "4\n"),
            ("printf '%s-%d\\n' a 1", 0, "a-1\n"),
            ("cat < /etc/hostname", 0, "p\n"),
            ("echo x >&2 2>/dev/null", 0, ""),
        ] {
            let (got_code, got_out, error) = sh(script).await;
            assert_eq!(
                (got_code, got_out.as_str()),
                (code, out),
                "{script}: {error}"
            );
        }
    }

    #[tokio::test]
    async fn what_does_not_work_is_said() {
        for (script, code, error) in [
            ("nothing", 127, "sh: nothing: not found\n"),
            ("cat /none", 1, "cat: /none: No such file or directory\n"),
            ("cat /etc", 1, "cat: /etc: Is a directory\n"),
            (
                "echo 'a",
                2,
                "sh: syntax error: unterminated quoted string\n",
            ),
            (
                "echo a > /no/dir",
                1,
                "sh: /no/dir: No such file or directory\n",
            ),
        ] {
            let (got_code, _, got) = sh(script).await;
            assert_eq!((got_code, got.as_str()), (code, error), "{script}");
        }
        let (code, _, error) = ran(&["nothing"], "").await;
        assert_eq!(code, 127);
        assert!(error.contains("exec: \"nothing\": executable file not found in $PATH"));
    }

    #[tokio::test]
    async fn input_is_read() {
        assert_eq!(ran(&["cat"], "a\nb").await.1, "a\nb");
        assert_eq!(
            ran(&["sh"], "echo a\nexit 5\necho b\n").await,
            (5, "a\n".into(), String::new())
        );
        assert_eq!(ran(&["wc", "-l"], "a\nb\n").await.1, "2\n");
        assert_eq!(ran(&["grep", "a"], "ab\nc\nca\n").await.1, "ab\nca\n");
    }

    #[tokio::test]
    async fn directories_are_packed_and_unpacked() {
        let container = Arc::new(example());
        let run = async |script: &str| {
            let out = Held::default();
            let streams = Streams::new(&b""[..], out.clone(), None, None);
            let command = ["sh", "-c", script].map(str::to_owned);
            let code = run(container.clone(), &command, streams).await;
            (code, String::from_utf8_lossy(&out.take()).into_owned())
        };
        let script = "mkdir /tmp/a; echo 1 > /tmp/a/b; tar cf - /tmp/a | tar xmf - -C /home; cat /home/tmp/a/b";
        assert_eq!(run(script).await, (0, "1\n".into()));
        assert_eq!(run("tar cf - /none | cat").await.0, 0);
        assert_eq!(run("tar xf - < /etc/hosts").await.0, 2);
    }
}
