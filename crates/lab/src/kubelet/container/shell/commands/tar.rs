//! `tar`, by which `kubectl cp` copies.

use crate::kubelet::container::{
    archive,
    files::{parent, resolve},
    shell::{Ended, Shell},
    streams::Streams,
};
use std::io;

impl Shell {
    /// `tar cf - PATH...` and `tar xf - [-C DIR]`, with the flags of `kubectl cp`.
    pub(super) async fn tar(&self, rest: &[String], streams: &Streams) -> io::Result<Ended> {
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
