//! What a caller of a connect subresource says in the query, and how a kubelet is told.

use crate::registry::Reply;
use serde_json::{Value, json};
use yurt_wire::{
    Status,
    request::{encode_query_value, go_parse_int, truthy},
    status::Cause,
};

/// Decoded pairs of a query.
type Pairs = [(String, String)];

fn first<'a>(pairs: &'a Pairs, name: &str) -> Option<&'a str> {
    let found = pairs.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value.as_str())
}

fn flag(pairs: &Pairs, name: &str) -> Option<bool> {
    first(pairs, name).map(truthy)
}

fn number(pairs: &Pairs, name: &str) -> Reply<Option<i64>> {
    first(pairs, name)
        .map(go_parse_int)
        .transpose()
        .map_err(|message| Box::new(Status::bad_request(message)))
}

/// A query in the order of its names, as Go's `url.Values` writes it.
fn encode(mut pairs: Vec<(&str, String)>) -> String {
    pairs.sort_by_key(|(name, _)| *name);
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{name}={}", encode_query_value(value)))
        .collect();
    pairs.join("&")
}

/// `PodLogOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LogOptions {
    pub(super) container: String,
    pub(super) insecure_backend: bool,
    follow: bool,
    previous: bool,
    timestamps: bool,
    since_seconds: Option<i64>,
    since_time: Option<String>,
    tail_lines: Option<i64>,
    limit_bytes: Option<i64>,
    stream: Option<String>,
}

impl LogOptions {
    /// 400 when a value cannot be read, 422 when it is out of range.
    pub(super) fn read(pod: &str, pairs: &Pairs) -> Reply<Self> {
        let since_time = match first(pairs, "sinceTime").filter(|t| !t.is_empty() && *t != "null") {
            None => None,
            Some(text) => Some(read_time(text)?),
        };
        let options = Self {
            container: first(pairs, "container").unwrap_or_default().to_owned(),
            insecure_backend: flag(pairs, "insecureSkipTLSVerifyBackend").unwrap_or(false),
            follow: flag(pairs, "follow").unwrap_or(false),
            previous: flag(pairs, "previous").unwrap_or(false),
            timestamps: flag(pairs, "timestamps").unwrap_or(false),
            since_seconds: number(pairs, "sinceSeconds")?,
            since_time,
            tail_lines: number(pairs, "tailLines")?,
            limit_bytes: number(pairs, "limitBytes")?,
            stream: first(pairs, "stream").map(str::to_owned),
        };
        let causes = options.faults();
        if causes.is_empty() {
            Ok(options)
        } else {
            Err(Box::new(Status::invalid("", "PodLogOptions", pod, causes)))
        }
    }

    /// What kube-apiserver's validation says.
    fn faults(&self) -> Vec<Cause> {
        const POSITIVE: &str = "must be greater than 0";
        let mut causes = Vec::new();
        let mut invalid = |field: &str, value: i64, why: &str| {
            causes.push(Cause::invalid(field, &Value::from(value), why));
        };
        if let Some(lines) = self.tail_lines.filter(|lines| *lines < 0) {
            invalid("tailLines", lines, "must be greater than or equal to 0");
        }
        if let Some(bytes) = self.limit_bytes.filter(|bytes| *bytes < 1) {
            invalid("limitBytes", bytes, POSITIVE);
        }
        match (self.since_seconds, &self.since_time) {
            (Some(_), Some(_)) => causes.push(Cause::forbidden(
                "",
                "at most one of `sinceTime` or `sinceSeconds` may be specified",
            )),
            (Some(seconds), None) if seconds < 1 => invalid("sinceSeconds", seconds, POSITIVE),
            _ => {}
        }
        if let Some(stream) = &self.stream {
            if !["All", "Stderr", "Stdout"].contains(&stream.as_str()) {
                causes.push(Cause::not_supported(
                    "stream",
                    stream,
                    &["All", "Stderr", "Stdout"],
                ));
            }
            if self.tail_lines.is_some() && stream != "All" {
                causes.push(Cause::forbidden(
                    "",
                    "`tailLines` and specific `stream` are mutually exclusive for now",
                ));
            }
        }
        causes
    }

    /// The query for the kubelet.
    pub(super) fn query(&self) -> String {
        let mut pairs = Vec::new();
        for (name, set) in [
            ("follow", self.follow),
            ("previous", self.previous),
            ("timestamps", self.timestamps),
        ] {
            if set {
                pairs.push((name, "true".to_owned()));
            }
        }
        for (name, number) in [
            ("sinceSeconds", self.since_seconds),
            ("tailLines", self.tail_lines),
            ("limitBytes", self.limit_bytes),
        ] {
            pairs.extend(number.map(|number| (name, number.to_string())));
        }
        pairs.extend(self.since_time.clone().map(|time| ("sinceTime", time)));
        // Kubelets that do not know the parameter must not see its default.
        let stream = self.stream.clone().filter(|stream| stream != "All");
        pairs.extend(stream.map(|stream| ("stream", stream)));
        encode(pairs)
    }
}

/// An RFC 3339 time, as `metav1.Time` is written: whole seconds, UTC.
fn read_time(text: &str) -> Reply<String> {
    let parsed: Result<jiff::Timestamp, _> = text.parse();
    match parsed.and_then(|time| jiff::Timestamp::from_second(time.as_second())) {
        Ok(time) => Ok(time.to_string()),
        Err(_) => {
            let text = json!(text);
            Err(Box::new(Status::bad_request(format!(
                "parsing time {text} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text} as \"2006\""
            ))))
        }
    }
}

/// `PodExecOptions` and `PodAttachOptions`, which has no command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ExecOptions {
    pub(super) container: String,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
    command: Vec<String>,
}

impl ExecOptions {
    /// Output is wanted unless it is declined.
    pub(super) fn read(pairs: &Pairs) -> Self {
        Self {
            container: first(pairs, "container").unwrap_or_default().to_owned(),
            stdin: flag(pairs, "stdin").unwrap_or(false),
            stdout: flag(pairs, "stdout").unwrap_or(true),
            stderr: flag(pairs, "stderr").unwrap_or(true),
            tty: flag(pairs, "tty").unwrap_or(false),
            command: pairs
                .iter()
                .filter(|(name, _)| name == "command")
                .map(|(_, value)| value.clone())
                .collect(),
        }
    }

    /// The query for the kubelet. It ignores standard error beside a terminal.
    pub(super) fn query(&self) -> String {
        let flags = [
            ("input", self.stdin),
            ("output", self.stdout),
            ("error", self.stderr),
            ("tty", self.tty),
        ];
        let flags = flags.into_iter().filter(|(_, set)| *set);
        let command = self.command.iter().map(|word| ("command", word.clone()));
        encode(
            command
                .chain(flags.map(|(name, _)| (name, "1".to_owned())))
                .collect(),
        )
    }
}

/// The query of a port-forward for the kubelet; 400 when a port is no number.
pub(super) fn port_query(pairs: &Pairs) -> Reply<String> {
    let mut ports = Vec::new();
    for (name, value) in pairs {
        if name != "ports" {
            continue;
        }
        for port in value.split(',').filter(|port| !port.is_empty()) {
            let port = go_parse_int(port)
                .map_err(|message| Box::new(Status::bad_request(message)))?
                .to_string();
            ports.push(port);
        }
    }
    Ok(match ports.is_empty() {
        true => String::new(),
        false => encode(vec![("port", ports.join(","))]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use yurt_wire::request::query_pairs;

    #[test]
    fn log_options_are_passed_on() {
        let read = |query: &str| LogOptions::read("p", &query_pairs(query));
        let options = read(
            "container=c&follow&previous=false&timestamps=true&tailLines=5&limitBytes=10&sinceTime=2026-11-22T01:02:03.5%2B02:00",
        )
        .unwrap();
        assert_eq!(options.container, "c");
        assert_eq!(
            options.query(),
            "follow=true&limitBytes=10&sinceTime=2026-11-21T23%3A02%3A03Z&tailLines=5&timestamps=true"
        );
        assert_eq!(read("").unwrap().query(), "");
        assert_eq!(read("stream=Stderr").unwrap().query(), "stream=Stderr");
        assert_eq!(read("tailLines=x").unwrap_err().code(), 400);
        assert_eq!(read("sinceTime=yesterday").unwrap_err().code(), 400);
        for wrong in [
            "tailLines=-1",
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceSeconds=1&sinceTime=2026-11-22T01:02:03Z",
            "stream=Stdlog",
            "stream=Stdout&tailLines=1",
        ] {
            assert_eq!(read(wrong).unwrap_err().code(), 422, "{wrong}");
        }
        assert_eq!(
            read("limitBytes=0").unwrap_err().message,
            "PodLogOptions \"p\" is invalid: limitBytes: Invalid value: 0: must be greater than 0"
        );
    }

    #[test]
    fn exec_options_are_passed_on() {
        let query = "command=sh&command=-c&command=a+%26%26+b&stdin=true&tty=1&stderr=false";
        assert_eq!(
            ExecOptions::read(&query_pairs(query)).query(),
            "command=sh&command=-c&command=a+%26%26+b&input=1&output=1&tty=1"
        );
        assert_eq!(ExecOptions::read(&[]).query(), "error=1&output=1");
    }

    #[test]
    fn ports_are_joined() {
        let query = |query: &str| port_query(&query_pairs(query));
        assert_eq!(query("ports=80&ports=81,82").unwrap(), "port=80%2C81%2C82");
        assert_eq!(query("").unwrap(), "");
        assert_eq!(query("ports=http").unwrap_err().code(), 400);
    }
}
