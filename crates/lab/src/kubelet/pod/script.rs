//! What the processes of simulated containers do: nothing real, so annotations of the pod, its command and its restart policy decide.
//!
//! `lab.yurt.dev/run-seconds`, `lab.yurt.dev/exit-code`, `lab.yurt.dev/ready` (`false`: never) and `lab.yurt.dev/image-pull` (`fail`)
//! are about all containers of a pod; with `.NAME` at the end, about that one. Images of the registry `nowhere.lab` cannot be pulled.

use super::run::Kind;
use jiff::SignedDuration;
use serde_json::Value;

/// Before the names of images that cannot be pulled.
const NOWHERE: &str = "nowhere.lab/";
/// How long a process runs that is expected to end and says nothing about when.
const A_MOMENT: SignedDuration = SignedDuration::from_secs(1);

/// How a container's process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// After it started.
    pub(super) after: SignedDuration,
    pub(super) code: i64,
}

fn annotation<'a>(pod: &'a Value, container: &Value, name: &str) -> Option<&'a str> {
    let annotations = pod["metadata"]["annotations"].as_object()?;
    let container = container["name"].as_str().unwrap_or_default();
    let of_container = annotations.get(&format!("lab.yurt.dev/{name}.{container}"));
    let value = of_container.or_else(|| annotations.get(&format!("lab.yurt.dev/{name}")));
    value?.as_str()
}

pub(super) fn pull_fails(pod: &Value, container: &Value) -> bool {
    let image = container["image"].as_str().unwrap_or_default();
    image.starts_with(NOWHERE) || annotation(pod, container, "image-pull") == Some("fail")
}

pub(super) fn never_ready(pod: &Value, container: &Value) -> bool {
    annotation(pod, container, "ready") == Some("false")
}

fn whole_seconds(text: &str) -> Option<SignedDuration> {
    let seconds: u32 = text.parse().ok()?;
    Some(SignedDuration::from_secs(seconds.into()))
}

/// How the process ends; `None` when it goes on for ever.
pub(super) fn end(pod: &Value, kind: Kind, container: &Value) -> Option<End> {
    let code = annotation(pod, container, "exit-code").and_then(|text| text.parse().ok());
    let after = annotation(pod, container, "run-seconds").and_then(whole_seconds);
    let annotated = match (after, code) {
        (None, None) => None,
        (after, code) => Some(End {
            after: after.unwrap_or(A_MOMENT),
            code: code.unwrap_or(0),
        }),
    };
    let goes_on =
        pod["spec"]["restartPolicy"] != "Never" && pod["spec"]["restartPolicy"] != "OnFailure";
    match (kind, annotated, command_end(container)) {
        (Kind::Main, Some(end), _) => Some(end),
        (_, _, Some(end)) => end,
        // What prepares a pod is quick; a sidecar, and what shall always run, goes on.
        (Kind::Init, _, None) => Some(End {
            after: SignedDuration::ZERO,
            code: 0,
        }),
        (Kind::Sidecar, _, None) => None,
        (Kind::Main, None, None) if goes_on => None,
        (Kind::Main, None, None) => Some(End {
            after: A_MOMENT,
            code: 0,
        }),
    }
}

/// What a well-known command does; `Some(None)` when it goes on for ever.
fn command_end(container: &Value) -> Option<Option<End>> {
    let words = |field: &str| {
        let words = container[field].as_array().into_iter().flatten();
        words.filter_map(Value::as_str)
    };
    let command: Vec<&str> = words("command").chain(words("args")).collect();
    let line = match command.as_slice() {
        [shell, flag, script, ..] if is_shell(shell) && flag.ends_with('c') => script.to_string(),
        [] => return None,
        words => words.join(" "),
    };
    let mut after = SignedDuration::ZERO;
    let mut code = 0;
    for part in line.split([';', '\n']).flat_map(|part| part.split("&&")) {
        let mut words = part.split_whitespace();
        match (words.next(), words.next()) {
            (Some("sleep"), Some("infinity" | "inf")) => return Some(None),
            (Some("sleep"), Some(seconds)) => {
                after += whole_seconds(seconds.trim_end_matches('s'))?
            }
            (Some("true" | "echo" | "date" | "printf"), _) => code = 0,
            (Some("false"), _) => code = 1,
            (Some("exit"), number) => {
                code = number.unwrap_or("0").parse().ok()?;
                break;
            }
            (None, _) => {}
            // Something that is not known here.
            _ => return None,
        }
    }
    Some(Some(End { after, code }))
}

fn is_shell(program: &str) -> bool {
    matches!(
        program.rsplit('/').next(),
        Some("sh" | "bash" | "ash" | "dash")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ends(pod: Value) -> Option<(i64, i64)> {
        let end = end(&pod, Kind::Main, &pod["spec"]["containers"][0])?;
        Some((end.after.as_secs(), end.code))
    }

    #[test]
    fn commands_that_are_known_end_as_they_do() {
        let running = |command: Value| {
            ends(json!({"spec": {"containers": [{"name": "main", "command": command}]}}))
        };
        assert_eq!(running(json!([])), None);
        assert_eq!(running(json!(["sleep", "3600"])), Some((3600, 0)));
        assert_eq!(running(json!(["sleep", "infinity"])), None);
        assert_eq!(
            running(json!(["/bin/false"])),
            None,
            "a program of the image"
        );
        assert_eq!(running(json!(["false"])), Some((0, 1)));
        assert_eq!(
            running(json!(["sh", "-c", "echo hi; sleep 2 && exit 3; sleep 9"])),
            Some((2, 3))
        );
        assert_eq!(
            running(json!(["sh", "-c", "while true; do sleep 1; done"])),
            None
        );
    }

    #[test]
    fn annotations_win_and_may_name_a_container() {
        let pod = |annotations: Value| json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "main"}]}});
        assert_eq!(
            ends(pod(json!({"lab.yurt.dev/exit-code": "7"}))),
            Some((1, 7))
        );
        assert_eq!(
            ends(pod(json!({"lab.yurt.dev/run-seconds": "9"}))),
            Some((9, 0))
        );
        assert_eq!(
            ends(pod(json!({"lab.yurt.dev/exit-code.other": "7"}))),
            None
        );
        assert_eq!(
            ends(pod(
                json!({"lab.yurt.dev/exit-code": "7", "lab.yurt.dev/exit-code.main": "8"})
            )),
            Some((1, 8))
        );
        assert_eq!(ends(pod(json!({"lab.yurt.dev/exit-code": "x"}))), None);
    }

    #[test]
    fn what_is_not_to_be_restarted_ends_by_itself() {
        let pod = |policy: &str| json!({"spec": {"restartPolicy": policy, "containers": [{}]}});
        assert_eq!(ends(pod("Always")), None);
        assert_eq!(ends(pod("Never")), Some((1, 0)));
        assert_eq!(ends(pod("OnFailure")), Some((1, 0)));
    }
}
