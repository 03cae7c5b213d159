//! Commands that go through any number of bytes once.

use crate::kubelet::container::{
    content::Content,
    files::{FileError, resolve},
    shell::{Ended, Shell},
    streams::Streams,
};
use bytes::Bytes;
use ring::digest::{Context, SHA256};
use std::io;

/// Bytes of a piece of the standard input.
const PIECE: usize = 64 << 10;

/// What a command reads, piece by piece.
pub(super) enum Input<'a> {
    Stdin(&'a Streams),
    File(Content, u64),
}

impl Input<'_> {
    /// What comes next; nothing at the end.
    pub(super) async fn next(&mut self) -> io::Result<Bytes> {
        match self {
            Self::Stdin(streams) => streams.piece(PIECE).await,
            Self::File(content, at) => {
                let piece = content.piece(*at).await?;
                *at += piece.len() as u64;
                Ok(piece)
            }
        }
    }
}

/// `100`, `64K`, `1G`.
fn bytes_of(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "k" | "K" | "KiB" => 10,
        "m" | "M" | "MiB" => 20,
        "g" | "G" | "GiB" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

impl Shell {
    /// A file, or the standard input for `-` and where nothing is named.
    pub(super) async fn input<'a>(
        &self,
        word: Option<&str>,
        streams: &'a Streams,
    ) -> Result<Input<'a>, FileError> {
        match word {
            None | Some("-") => Ok(Input::Stdin(streams)),
            Some(word) => {
                let content = self.container.open(&resolve(&self.directory, word)).await?;
                Ok(Input::File(content, 0))
            }
        }
    }

    /// `head -c`.
    pub(super) async fn first_bytes(
        &self,
        count: &str,
        word: Option<&str>,
        streams: &Streams,
    ) -> io::Result<Ended> {
        let Some(mut left) = bytes_of(count) else {
            let why = format!("head: invalid number of bytes: '{count}'");
            streams.complain(why).await?;
            return Ok(Ended::Code(1));
        };
        let mut input = match self.input(word, streams).await {
            Ok(input) => input,
            Err(error) => {
                let word = word.unwrap_or_default();
                return Ok(self.refuse("head", word, error, streams).await);
            }
        };
        while left > 0 {
            let mut piece = input.next().await?;
            if piece.is_empty() {
                break;
            }
            piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left -= piece.len() as u64;
            streams.out(piece).await?;
        }
        Ok(Ended::Code(0))
    }

    /// `wc [-l|-w|-c]` and `sha256sum`.
    pub(super) async fn measure(
        &self,
        name: &str,
        rest: &[String],
        streams: &Streams,
    ) -> io::Result<Ended> {
        let options: String = rest
            .iter()
            .filter_map(|word| word.strip_prefix('-'))
            .collect();
        let files = rest
            .iter()
            .filter(|word| *word == "-" || !word.starts_with('-'));
        let mut files: Vec<Option<&str>> = files.map(|word| Some(word.as_str())).collect();
        if files.is_empty() {
            files.push(None);
        }
        let mut code = 0;
        for file in files {
            let mut input = match self.input(file, streams).await {
                Ok(input) => input,
                Err(error) => {
                    let file = file.unwrap_or_default();
                    code = self.refuse(name, file, error, streams).await.code();
                    continue;
                }
            };
            let found = match name {
                "wc" => counted(&mut input, &options).await?,
                _ => digest(&mut input).await?,
            };
            let line = match (name, file) {
                ("wc", None) => found,
                ("wc", Some(file)) => format!("{found} {file}"),
                (_, file) => format!("{found}  {}", file.unwrap_or("-")),
            };
            streams.out(line + "\n").await?;
        }
        Ok(Ended::Code(code))
    }
}

async fn counted(input: &mut Input<'_>, options: &str) -> io::Result<String> {
    let (mut lines, mut words, mut bytes) = (0u64, 0u64, 0u64);
    let mut between = true;
    loop {
        let piece = input.next().await?;
        if piece.is_empty() {
            break;
        }
        bytes += piece.len() as u64;
        for byte in &piece {
            lines += u64::from(*byte == b'\n');
            let space = byte.is_ascii_whitespace();
            words += u64::from(between && !space);
            between = space;
        }
    }
    let all = [('l', lines), ('w', words), ('c', bytes)];
    let wanted = |option| options.is_empty() || options.contains(option);
    let shown = all.iter().filter(|(option, _)| wanted(*option));
    let shown: Vec<String> = shown.map(|(_, count)| count.to_string()).collect();
    Ok(shown.join(" "))
}

async fn digest(input: &mut Input<'_>) -> io::Result<String> {
    let mut context = Context::new(&SHA256);
    loop {
        let piece = input.next().await?;
        if piece.is_empty() {
            break;
        }
        context.update(&piece);
    }
    let digest = context.finish();
    let hex = digest.as_ref().iter().map(|byte| format!("{byte:02x}"));
    Ok(hex.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes_of("7"), Some(7));
        assert_eq!(bytes_of("1G"), Some(1 << 30));
        for wrong in ["", "G", "1x", "-1", "18446744073709551615K"] {
            assert_eq!(bytes_of(wrong), None, "{wrong}");
        }
    }
}
