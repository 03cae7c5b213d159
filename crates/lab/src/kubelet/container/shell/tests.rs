use super::run;
use crate::kubelet::container::{
    files::example,
    streams::{Held, Streams, Writer},
};
use std::sync::Arc;

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
    let script =
        "mkdir /tmp/a; echo 1 > /tmp/a/b; tar cf - /tmp/a | tar xmf - -C /home; cat /home/tmp/a/b";
    assert_eq!(run(script).await, (0, "1\n".into()));
    assert_eq!(run("tar cf - /none | cat").await.0, 0);
    assert_eq!(run("tar xf - < /etc/hosts").await.0, 2);
}
