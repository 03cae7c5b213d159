//! What simulated containers have printed: bounded, with times, of this run and the one before.

use super::lock;
use bytes::{BufMut, Bytes, BytesMut};
use jiff::Timestamp;
use serde_json::Value;
use std::{
    collections::{HashMap, VecDeque},
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};
use tokio::{io::AsyncWrite, sync::watch};
use tokio_util::task::AbortOnDropHandle;

/// Lines kept of a run.
const MAX_LINES: usize = 2_000;
/// Bytes kept of a run.
const MAX_BYTES: usize = 256 << 10;
/// Longer lines are cut, as container runtimes do.
const MAX_LINE: usize = 16 << 10;

/// Which output of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Stdout,
    Stderr,
}

#[derive(Clone, Debug)]
struct Line {
    time: Timestamp,
    source: Source,
    text: Bytes,
}

/// What one run of a container has printed.
#[derive(Debug)]
pub(super) struct Output {
    lines: Mutex<Lines>,
    /// Changes with every line, and when the run ends.
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Lines {
    kept: VecDeque<Line>,
    /// Lines that were dropped before the first one kept.
    dropped: u64,
    bytes: usize,
    ended: bool,
}

impl Output {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            lines: Mutex::default(),
            changed: watch::Sender::new(()),
        })
    }

    /// Adds text that may be several lines.
    pub(super) fn append(&self, source: Source, text: &[u8]) {
        let time = Timestamp::now();
        let mut lines = lock(&self.lines);
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        for text in text.split(|byte| *byte == b'\n') {
            let text = Bytes::copy_from_slice(&text[..text.len().min(MAX_LINE)]);
            lines.bytes += text.len();
            lines.kept.push_back(Line { time, source, text });
        }
        while lines.kept.len() > MAX_LINES || lines.bytes > MAX_BYTES {
            let Some(gone) = lines.kept.pop_front() else {
                break;
            };
            lines.bytes -= gone.text.len();
            lines.dropped += 1;
        }
        drop(lines);
        self.changed.send_replace(());
    }

    fn end(&self) {
        lock(&self.lines).ended = true;
        self.changed.send_replace(());
    }

    /// Reads what is asked for.
    pub(super) fn read(self: &Arc<Self>, asked: Asked) -> Reader {
        let lines = lock(&self.lines);
        let wanted = lines.kept.iter().enumerate().rev();
        let mut wanted = wanted.filter(|(_, line)| asked.wants(line));
        // `tailLines` counts among those that are recent enough.
        let begin = match asked.tail {
            None => 0,
            Some(0) => lines.kept.len(),
            Some(tail) => wanted.nth(tail - 1).map_or(0, |(at, _)| at),
        };
        let next = lines.dropped + begin as u64;
        drop(lines);
        Reader {
            changes: self.changed.subscribe(),
            output: Arc::clone(self),
            left: asked.limit,
            asked,
            next,
        }
    }
}

/// Lines that a process writes, into its container's log.
#[derive(Debug)]
pub(super) struct Printer {
    output: Arc<Output>,
    source: Source,
    line: Vec<u8>,
}

impl Printer {
    pub(super) fn new(output: Arc<Output>, source: Source) -> Self {
        Self {
            output,
            source,
            line: Vec::new(),
        }
    }
}

impl Drop for Printer {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.output.append(self.source, &self.line);
        }
    }
}

impl AsyncWrite for Printer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.line.extend_from_slice(bytes);
        let whole = self.line.iter().rposition(|byte| *byte == b'\n');
        let whole = whole.or((self.line.len() > MAX_LINE).then_some(self.line.len() - 1));
        if let Some(end) = whole {
            let rest = self.line.split_off(end + 1);
            let lines = std::mem::replace(&mut self.line, rest);
            self.output.append(self.source, &lines);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What is asked for of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) follow: bool,
    pub(super) previous: bool,
    pub(super) timestamps: bool,
    pub(super) tail: Option<usize>,
    pub(super) since: Option<Timestamp>,
    /// Bytes.
    pub(super) limit: Option<usize>,
    pub(super) source: Option<Source>,
}

impl Asked {
    fn wants(&self, line: &Line) -> bool {
        self.since.is_none_or(|since| line.time >= since)
            && self.source.is_none_or(|source| line.source == source)
    }
}

/// A log that is being read.
#[derive(Debug)]
pub(super) struct Reader {
    output: Arc<Output>,
    changes: watch::Receiver<()>,
    asked: Asked,
    /// Number of the next line.
    next: u64,
    left: Option<usize>,
}

impl Reader {
    /// The next piece, which may be long in coming when the log is followed; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            self.changes.mark_unchanged();
            let (piece, ended) = self.piece();
            if !piece.is_empty() {
                return Some(piece);
            }
            let done = self.left == Some(0) || ended || !self.asked.follow;
            if done || self.changes.changed().await.is_err() {
                return None;
            }
        }
    }

    fn piece(&mut self) -> (Bytes, bool) {
        let lines = lock(&self.output.lines);
        let begin = self.next.saturating_sub(lines.dropped) as usize;
        let mut piece = BytesMut::new();
        for line in lines.kept.iter().skip(begin) {
            if !self.asked.wants(line) {
                continue;
            }
            if self.asked.timestamps {
                piece.put_slice(format!("{:.9} ", line.time).as_bytes());
            }
            piece.put_slice(&line.text);
            piece.put_u8(b'\n');
        }
        self.next = lines.dropped + lines.kept.len() as u64;
        if let Some(left) = &mut self.left {
            piece.truncate(*left);
            *left -= piece.len();
        }
        (piece.freeze(), lines.ended)
    }
}

/// The runs of one container.
#[derive(Debug)]
struct Runs {
    id: String,
    current: Arc<Output>,
    previous: Option<Arc<Output>>,
    /// What the container does, until it is known to have ended.
    main: Option<AbortOnDropHandle<()>>,
}

/// The logs of a node's containers, by the pod's UID and the container's name.
#[derive(Debug, Default)]
pub(super) struct Logs {
    runs: Mutex<HashMap<(String, String), Runs>>,
}

impl Logs {
    /// Follows the statuses of a pod: a container that began gets a log, and `main` something to do that writes it; one that ended
    /// writes no more.
    pub(super) fn observe<F>(&self, pod: &Value, main: impl Fn(String, Arc<Output>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let uid = super::pod::uid(pod);
        let mut runs = lock(&self.runs);
        for status in statuses(pod) {
            let name = status["name"].as_str().unwrap_or_default();
            let running = status["state"]["running"].is_object();
            let terminated = &status["state"]["terminated"];
            let id = terminated["containerID"]
                .as_str()
                .or(status["containerID"].as_str())
                .unwrap_or_default();
            if id.is_empty() || !(running || terminated.is_object()) {
                continue;
            }
            let key = (uid.to_owned(), name.to_owned());
            let known = runs.get(&key).is_some_and(|runs| runs.id == id);
            if !known {
                let current = Output::new();
                let previous = runs.remove(&key).map(|runs| {
                    runs.current.end();
                    runs.current
                });
                let task = tokio::spawn(main(name.to_owned(), Arc::clone(&current)));
                let begun = Runs {
                    id: id.to_owned(),
                    current,
                    previous,
                    main: Some(AbortOnDropHandle::new(task)),
                };
                runs.insert(key.clone(), begun);
            }
            // Its last words can be read until the pod goes.
            if !running && let Some(runs) = runs.get_mut(&key) {
                runs.current.end();
                runs.main = runs.main.take().filter(|_| !known);
            }
        }
    }

    /// The log of a container's run; `None` when there was none.
    pub(super) fn of(&self, uid: &str, container: &str, previous: bool) -> Option<Arc<Output>> {
        let runs = lock(&self.runs);
        let runs = runs.get(&(uid.to_owned(), container.to_owned()))?;
        match previous {
            true => runs.previous.clone(),
            false => Some(Arc::clone(&runs.current)),
        }
    }

    /// A pod is gone.
    pub(super) fn forget(&self, uid: &str) {
        lock(&self.runs).retain(|(of, _), runs| {
            let keep = of != uid;
            if !keep {
                runs.current.end();
            }
            keep
        });
    }
}

/// The statuses of all containers of a pod.
pub(super) fn statuses(pod: &Value) -> impl Iterator<Item = &Value> {
    [
        "initContainerStatuses",
        "containerStatuses",
        "ephemeralContainerStatuses",
    ]
    .into_iter()
    .flat_map(|field| pod["status"][field].as_array().into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    async fn all(output: &Arc<Output>, asked: Asked) -> String {
        let mut reader = output.read(asked);
        let mut text = String::new();
        while let Some(piece) = reader.next().await {
            text += std::str::from_utf8(&piece).unwrap();
        }
        text
    }

    #[tokio::test]
    async fn what_is_asked_for_is_read() {
        let output = Output::new();
        output.append(Source::Stdout, b"one\ntwo\n");
        output.append(Source::Stderr, b"three");
        let asked = Asked::default;
        assert_eq!(all(&output, asked()).await, "one\ntwo\nthree\n");
        let tail = Asked {
            tail: Some(1),
            ..asked()
        };
        assert_eq!(all(&output, tail).await, "three\n");
        let limit = Asked {
            limit: Some(5),
            ..asked()
        };
        assert_eq!(all(&output, limit).await, "one\nt");
        let stdout = Asked {
            source: Some(Source::Stdout),
            ..asked()
        };
        assert_eq!(all(&output, stdout).await, "one\ntwo\n");
        let since = Asked {
            since: Some(Timestamp::MAX),
            ..asked()
        };
        assert_eq!(all(&output, since).await, "");
        let stamped = all(
            &output,
            Asked {
                timestamps: true,
                ..asked()
            },
        )
        .await;
        let (time, text) = stamped.lines().next().unwrap().split_once(' ').unwrap();
        assert_eq!(text, "one");
        assert_eq!(time.len(), "2026-11-22T01:02:03.123456789Z".len());
    }

    #[tokio::test]
    async fn a_log_is_bounded_and_followed_to_its_end() {
        let output = Output::new();
        for number in 0..MAX_LINES + 10 {
            output.append(Source::Stdout, number.to_string().as_bytes());
        }
        let text = all(&output, Asked::default()).await;
        assert_eq!(text.lines().count(), MAX_LINES);
        assert_eq!(text.lines().next(), Some("10"));
        let mut reader = output.read(Asked {
            follow: true,
            tail: Some(0),
            ..Asked::default()
        });
        output.append(Source::Stdout, b"new");
        assert_eq!(reader.next().await.unwrap(), "new\n");
        output.end();
        assert_eq!(reader.next().await, None);
    }

    #[tokio::test]
    async fn a_restart_begins_another_log() {
        let logs = Logs::default();
        let pod = |id: &str| {
            json!({"metadata": {"uid": "u"}, "status": {"containerStatuses": [
                {"name": "c", "containerID": id, "state": {"running": {}}}]}})
        };
        let observe = |pod: &Value| logs.observe(pod, |_, _| std::future::ready(()));
        observe(&pod("a"));
        logs.of("u", "c", false)
            .unwrap()
            .append(Source::Stdout, b"first");
        observe(&pod("a"));
        assert!(logs.of("u", "c", true).is_none());
        observe(&pod("b"));
        let previous = logs.of("u", "c", true).unwrap();
        assert_eq!(
            all(
                &previous,
                Asked {
                    follow: true,
                    ..Asked::default()
                }
            )
            .await,
            "first\n"
        );
        assert_eq!(
            all(&logs.of("u", "c", false).unwrap(), Asked::default()).await,
            ""
        );
        logs.forget("u");
        assert!(logs.of("u", "c", false).is_none());
    }
}
