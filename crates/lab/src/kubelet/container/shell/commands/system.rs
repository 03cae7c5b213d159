//! Commands that tell of the machine, the time and the terminal.

use crate::kubelet::container::{
    shell::{Ended, Shell},
    streams::Streams,
};
use jiff::{Timestamp, tz::TimeZone};
use std::io;

impl Shell {
    /// `date`, `hostname`, `id`, `nproc`, `ps`, `stty`, `tty`, `uname` and `whoami`.
    pub(super) async fn system(
        &self,
        name: &str,
        rest: &[String],
        streams: &Streams,
    ) -> io::Result<Ended> {
        let hostname = self.container.hostname();
        let terminal = streams.terminal.as_ref().map(|size| *size.borrow());
        let text = match (name, terminal) {
            ("date", _) => date(rest, Timestamp::now()),
            ("hostname", _) => format!("{hostname}\n"),
            ("id", _) => "uid=0(root) gid=0(root) groups=0(root)\n".into(),
            ("nproc", _) => "4\n".into(),
            ("ps", _) => {
                let main = self.container.command();
                let main = match main.is_empty() {
                    true => self.container.name.clone(),
                    false => main.join(" "),
                };
                format!("PID   USER     TIME  COMMAND\n    1 root      0:00 {main}\n")
            }
            ("stty", Some(size)) => format!("{} {}\n", size.height, size.width),
            ("stty", None) => {
                streams.complain("stty: standard input: Not a tty").await?;
                return Ok(Ended::Code(1));
            }
            ("tty", Some(_)) => "/dev/pts/0\n".into(),
            ("tty", None) => {
                streams.out("not a tty\n").await?;
                return Ok(Ended::Code(1));
            }
            ("uname", _) => match rest.first().map(String::as_str) {
                Some("-a") => format!("Linux {hostname} 6.1.0 #1 SMP x86_64 GNU/Linux\n"),
                Some("-m") => "x86_64\n".into(),
                Some("-n") => format!("{hostname}\n"),
                Some("-r") => "6.1.0\n".into(),
                _ => "Linux\n".into(),
            },
            // `whoami`
            _ => "root\n".into(),
        };
        streams.out(text).await?;
        Ok(Ended::Code(0))
    }
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
