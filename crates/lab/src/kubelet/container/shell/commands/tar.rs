//! `tar`, by which `kubectl cp` copies.

use crate::kubelet::container::{
    archive::{self, ArchiveError, Member, Reader},
    content::Content,
    files::{parent, resolve},
    shell::{Ended, Shell},
    streams::Streams,
};
use std::io;
use tokio::io::AsyncWriteExt as _;

/// What GNU tar ends with after an error.
const FAILED: i32 = 2;

/// A command line of `tar`, as far as `kubectl cp` goes.
struct Asked {
    directory: String,
    paths: Vec<String>,
}

impl Shell {
    /// `tar cf - PATH...` and `tar xf - [-C DIR]`, with the flags of `kubectl cp`.
    pub(super) async fn tar(&self, rest: &[String], streams: &Streams) -> io::Result<Ended> {
        let mut words = rest.iter();
        let flags = words
            .next()
            .map_or("", |flags| flags.trim_start_matches('-'));
        let mut asked = Asked {
            directory: self.directory.clone(),
            paths: Vec::new(),
        };
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
                        asked.directory = resolve(&asked.directory, dir);
                    }
                }
                option if option.starts_with("--") => {}
                path => asked.paths.push(path.to_owned()),
            }
        }
        let code = match (to.as_str(), flags.contains('c'), flags.contains('x')) {
            ("-", true, _) => self.pack(&asked, streams).await?,
            ("-", _, true) => self.unpack(&asked, streams).await?,
            _ => {
                let why = "tar: only archives on standard input and output are simulated";
                streams.complain(why).await?;
                FAILED
            }
        };
        if code != 0 {
            let last = "tar: Exiting with failure status due to previous errors";
            streams.complain(last).await?;
        }
        Ok(Ended::Code(code))
    }

    async fn pack(&self, asked: &Asked, streams: &Streams) -> io::Result<i32> {
        let mut found = Vec::new();
        for path in &asked.paths {
            let tree = self.container.tree(&resolve(&asked.directory, path)).await;
            match tree {
                Ok(tree) => found.extend(tree),
                Err(error) => {
                    self.refuse("tar", path, error, streams).await;
                    return Ok(FAILED);
                }
            }
        }
        // Names as they were given: relative ones stay so.
        let base = format!("{}/", asked.directory.trim_end_matches('/'));
        let relative = asked.paths.iter().all(|path| !path.starts_with('/'));
        let mut code = 0;
        for (path, content) in found {
            let inside = path.strip_prefix(&base).filter(|_| relative);
            let member = Member {
                name: inside.unwrap_or(&path).to_owned(),
                size: content.as_ref().and_then(Content::length),
            };
            let Some(head) = member.head() else {
                self.refuse("tar", &path, "does not fit into an archive", streams)
                    .await;
                code = FAILED;
                continue;
            };
            streams.out(head).await?;
            if let Some(content) = content {
                let mut at = 0;
                loop {
                    let piece = content.piece(at).await?;
                    if piece.is_empty() {
                        break;
                    }
                    at += piece.len() as u64;
                    streams.out(piece).await?;
                }
            }
            streams.out(member.padding()).await?;
        }
        streams.out(archive::END).await?;
        Ok(code)
    }

    async fn unpack(&self, asked: &Asked, streams: &Streams) -> io::Result<i32> {
        let mut stdin = streams.stdin.lock().await;
        let mut archive = Reader::new(&mut *stdin);
        loop {
            let member = match archive.next().await {
                Ok(Some(member)) => member,
                Ok(None) => return Ok(0),
                Err(error) => return cut(error, streams).await,
            };
            let path = resolve(&asked.directory, member.name.trim_start_matches('/'));
            let above = match member.size {
                Some(_) => parent(&path),
                None => &path,
            };
            let mut opened = self.container.make_directory(above).await.map(|()| None);
            if opened.is_ok() && member.size.is_some() {
                opened = self.container.create(&path, false).await.map(Some);
            }
            let mut file = match opened {
                Ok(None) => continue,
                Ok(Some(file)) => file,
                Err(error) => {
                    let what = format!("{}: Cannot open", member.name);
                    self.refuse("tar", &what, error, streams).await;
                    return Ok(FAILED);
                }
            };
            loop {
                let piece = match archive.piece().await {
                    Ok(piece) => piece,
                    Err(error) => return cut(error, streams).await,
                };
                let (written, over) = match piece.is_empty() {
                    true => (file.shutdown().await, true),
                    false => (file.write_all(&piece).await, false),
                };
                if let Err(error) = written {
                    let what = format!("{}: Cannot write", member.name);
                    self.refuse("tar", &what, error, streams).await;
                    return Ok(FAILED);
                }
                if over {
                    break;
                }
            }
        }
    }
}

async fn cut(error: ArchiveError, streams: &Streams) -> io::Result<i32> {
    match error {
        ArchiveError::Io(error) => Err(error),
        ArchiveError::Malformed(why) => {
            streams.complain(format!("tar: {why}")).await?;
            Ok(FAILED)
        }
    }
}
