use super::run;
use crate::kubelet::container::{
    Container,
    content::Room,
    files::{Files, example},
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
        (
            "printf 'a b' | wc; wc -c /etc/hostname",
            0,
            "0 2 3\n2 /etc/hostname\n",
        ),
        (
            "printf abc | sha256sum",
            0,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  -\n",
        ),
        (
            "head -c 3M /dev/zero | tee /tmp/z | wc -c; head -c1k /tmp/z | wc -c",
            0,
            "3145728\n1024\n",
        ),
        (
            "head -c 2M /dev/zero > /tmp/z; cat < /tmp/z | cat - /etc/hostname | wc -c",
            0,
            "2097154\n",
        ),
        (
            "head -c 20M /dev/zero | cat >> /tmp/z; tar cf - /tmp/z | tar xf - -C /home; wc -c /home/tmp/z",
            0,
            "20971520 /home/tmp/z\n",
        ),
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
        ("sort /dev/zero", 1, "sort: /dev/zero: File too large\n"),
        (
            "head -c 9M /dev/zero | sort",
            1,
            "sort: error: File too large\n",
        ),
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

#[tokio::test]
async fn a_full_disk_is_said_and_nothing_else_is_lost() {
    let container = Arc::new(Container {
        files: Files::within(Arc::new(Room::of(1 << 20, 5 << 20))),
        ..example()
    });
    let run = async |script: &str| {
        let out = Held::default();
        let streams = Streams::new(&b""[..], out.clone(), None, None);
        let command = ["sh", "-c", script].map(str::to_owned);
        let code = run(container.clone(), &command, streams).await;
        (code, String::from_utf8_lossy(&out.take()).into_owned())
    };
    let full = "No space left on device";
    assert_eq!(
        run("head -c 6M /dev/zero > /tmp/z").await,
        (1, format!("head: error: {full}\n"))
    );
    assert_eq!(run("head -c 3M /dev/zero > /tmp/z").await.0, 0);
    let failed = "tar: Exiting with failure status due to previous errors";
    assert_eq!(
        run("tar cf - /tmp/z | tar xf - -C /home").await,
        (2, format!("tar: tmp/z: Cannot write: {full}\n{failed}\n"))
    );
    assert_eq!(
        run("wc -c /tmp/z /home/tmp/z").await,
        (0, "3145728 /tmp/z\n0 /home/tmp/z\n".into())
    );
    assert_eq!(run("rm /tmp/z; head -c 5M /dev/zero > /tmp/y").await.0, 0);
}
