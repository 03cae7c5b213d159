//! Commands that make something of lines.

use crate::kubelet::container::{
    files::resolve,
    shell::{Ended, Shell},
    streams::Streams,
};
use std::io;

impl Shell {
    /// `head`, `tail`, `sort` and `grep`.
    pub(super) async fn filter(
        &self,
        name: &str,
        rest: &[String],
        streams: &Streams,
    ) -> io::Result<Ended> {
        let mut count = 10;
        let mut words = Vec::new();
        let mut options = rest.iter();
        let mut inverted = false;
        let mut bytes = None;
        while let Some(word) = options.next() {
            match word.strip_prefix('-') {
                Some("n") if matches!(name, "head" | "tail") => {
                    count = options.next().and_then(|n| n.parse().ok()).unwrap_or(count);
                }
                Some("c") if name == "head" => bytes = options.next().map(String::as_str),
                Some(flag) if name == "head" && flag.starts_with('c') => bytes = flag.get(1..),
                Some(flag) if !flag.is_empty() => {
                    count = flag.trim_start_matches('n').parse().unwrap_or(count);
                    inverted |= flag.contains('v');
                }
                _ => words.push(word),
            }
        }
        if let Some(bytes) = bytes {
            let word = words.first().map(|word| word.as_str());
            return self.first_bytes(bytes, word, streams).await;
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
            // `grep`
            _ => lines.retain(|line| line.contains(&pattern) != inverted),
        }
        let code = i32::from(name == "grep" && lines.is_empty());
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        streams.out(text).await?;
        Ok(Ended::Code(code))
    }
}
