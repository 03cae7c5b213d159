//! The files of a simulated container: a few of a minimal system, those of its volumes, and what was written since it began.

use super::{
    super::lock,
    Container,
    content::{Content, Draft, Room, Taken},
    spec_of,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex},
};
use tokio::io::AsyncWriteExt as _;

/// Directories that are always there.
const DIRECTORIES: [&str; 12] = [
    "/", "/bin", "/dev", "/etc", "/home", "/proc", "/root", "/run", "/tmp", "/usr", "/var",
    "/var/run",
];

/// Why a file cannot be had, in the words of the C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FileError {
    /// ENOENT.
    #[error("No such file or directory")]
    Missing,
    /// EISDIR.
    #[error("Is a directory")]
    Directory,
    /// ENOTDIR.
    #[error("Not a directory")]
    NotDirectory,
    /// EROFS.
    #[error("Read-only file system")]
    ReadOnly,
    /// ENOSPC.
    #[error("No space left on device")]
    Full,
    /// EFBIG: more than a simulated command holds.
    #[error("File too large")]
    TooLarge,
    /// EIO: this machine's disk failed.
    #[error("Input/output error")]
    Unreadable,
}

impl From<FileError> for io::Error {
    fn from(error: FileError) -> Self {
        let kind = match error {
            FileError::Missing => io::ErrorKind::NotFound,
            FileError::Directory => io::ErrorKind::IsADirectory,
            FileError::NotDirectory => io::ErrorKind::NotADirectory,
            FileError::ReadOnly => io::ErrorKind::ReadOnlyFilesystem,
            FileError::Full => io::ErrorKind::StorageFull,
            FileError::TooLarge => io::ErrorKind::FileTooLarge,
            FileError::Unreadable => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull => Self::Full,
            _ => Self::Unreadable,
        }
    }
}

/// What was written at a path.
#[derive(Debug)]
struct Entry {
    /// `None` for a directory.
    content: Option<Content>,
    _name: Taken,
}

/// The writable files of a container, shared by all that runs in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files {
    written: Arc<Mutex<BTreeMap<String, Entry>>>,
    room: Arc<Room>,
}

impl Files {
    #[cfg(test)]
    pub(super) fn within(room: Arc<Room>) -> Self {
        let written = Arc::default();
        Self { written, room }
    }

    pub(super) fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// What was written at a path: `Some(None)` for a directory.
    pub(super) fn get(&self, path: &str) -> Option<Option<Content>> {
        let written = lock(&self.written);
        written.get(path).map(|entry| entry.content.clone())
    }

    /// Puts a file or a directory in the place of what is there.
    pub(super) fn put(
        &self,
        path: &str,
        content: impl Into<Option<Content>>,
    ) -> Result<(), FileError> {
        let mut written = lock(&self.written);
        // What was there gives its room back first.
        written.remove(path);
        let mut name = Taken::nothing(&self.room);
        name.memory(path.len())?;
        let entry = Entry {
            content: content.into(),
            _name: name,
        };
        written.insert(path.to_owned(), entry);
        Ok(())
    }

    /// Removes what is at a path and below; whether there was anything.
    pub(super) fn remove(&self, path: &str) -> bool {
        let below = format!("{path}/");
        let mut written = lock(&self.written);
        let before = written.len();
        written.retain(|at, _| at != path && !at.starts_with(&below));
        written.len() < before
    }
}

/// `..`, `.` and double slashes resolved, as seen from `directory`.
pub(crate) fn resolve(directory: &str, path: &str) -> String {
    let joined = match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("{directory}/{path}"),
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The directory a path is in.
pub(crate) fn parent(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((parent, _)) => parent,
    }
}

/// The volume a path is in: the volume and the rest of the path. The longest mount counts.
fn volume<'a>(container: &'a Container, path: &str) -> Option<(&'a Value, String)> {
    let spec = spec_of(&container.pod, &container.name)?;
    let mounts = spec["volumeMounts"].as_array()?;
    let (mount, rest) = mounts
        .iter()
        .filter_map(|mount| {
            let at = mount["mountPath"].as_str()?.trim_end_matches('/');
            let rest = path.strip_prefix(at)?;
            (rest.is_empty() || rest.starts_with('/')).then_some((mount, rest))
        })
        .min_by_key(|(_, rest)| rest.len())?;
    let volumes = container.pod["spec"]["volumes"].as_array()?;
    let volume = volumes.iter().find(|v| v["name"] == mount["name"])?;
    let inside = match mount["subPath"].as_str() {
        Some(sub) => format!("{}{rest}", sub.trim_matches('/')),
        None => rest.trim_start_matches('/').to_owned(),
    };
    Some((volume, inside))
}

/// Whether the node fills a volume, so that nobody writes there.
fn is_filled(volume: &Value) -> bool {
    ["configMap", "secret", "projected", "downwardAPI"]
        .iter()
        .any(|kind| volume[kind].is_object())
}

/// The files of a source of a volume, by the keys it chooses.
async fn source(container: &Container, source: &Value, into: &mut BTreeMap<String, Vec<u8>>) {
    for (field, resource) in [("configMap", "configmaps"), ("secret", "secrets")] {
        let reference = &source[field];
        let name = reference["name"]
            .as_str()
            .or(reference["secretName"].as_str());
        let Some(name) = name else { continue };
        let data = container.data(resource, name).await.unwrap_or_default();
        match reference["items"].as_array() {
            None => into.extend(data),
            Some(items) => into.extend(items.iter().filter_map(|item| {
                let bytes = data.get(item["key"].as_str()?)?;
                Some((item["path"].as_str()?.to_owned(), bytes.clone()))
            })),
        }
    }
    for item in source["downwardAPI"]["items"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let field = item["fieldRef"]["fieldPath"].as_str();
        if let (Some(path), Some(field)) = (item["path"].as_str(), field) {
            into.insert(path.to_owned(), container.field(field).into_bytes());
        }
    }
    let token = &source["serviceAccountToken"];
    if token.is_object()
        && let Some((path, request)) = super::super::pod::token_request(&container.pod)
        && let Ok(answer) = container.api.create(&path, &request).await
    {
        let text = answer["status"]["token"].as_str().unwrap_or_default();
        let at = token["path"].as_str().unwrap_or("token");
        into.insert(at.to_owned(), text.into());
    }
}

/// The files of a volume that the node fills.
async fn contents(container: &Container, volume: &Value) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    source(container, volume, &mut found).await;
    for projected in volume["projected"]["sources"]
        .as_array()
        .into_iter()
        .flatten()
    {
        source(container, projected, &mut found).await;
    }
    found
}

/// Files of the system itself.
fn system(container: &Container, path: &str) -> Option<Vec<u8>> {
    let hostname = container.hostname();
    Some(match path {
        "/dev/null" => Vec::new(),
        "/etc/hostname" => format!("{hostname}\n").into_bytes(),
        "/etc/hosts" => {
            let ip = container.pod["status"]["podIP"]
                .as_str()
                .unwrap_or("127.0.0.1");
            format!("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n{ip}\t{hostname}\n")
                .into_bytes()
        }
        "/etc/resolv.conf" => {
            let namespace = container.namespace();
            format!("search {namespace}.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n").into_bytes()
        }
        "/etc/os-release" => b"NAME=\"Yurt simulated container\"\nID=yurt\n".to_vec(),
        _ => return None,
    })
}

const SYSTEM: [&str; 6] = [
    "/dev/null",
    "/dev/zero",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/os-release",
    "/etc/resolv.conf",
];

impl Container {
    /// What is in a file that is not large.
    pub(crate) async fn read(&self, path: &str) -> Result<Vec<u8>, FileError> {
        self.open(path).await?.whole().await
    }

    /// What is in a file.
    pub(crate) async fn open(&self, path: &str) -> Result<Content, FileError> {
        match self.files.get(path) {
            Some(Some(content)) => return Ok(content),
            Some(None) => return Err(FileError::Directory),
            None if path == "/dev/zero" => return Ok(Content::zeros()),
            None => {}
        }
        if let Some((volume, inside)) = volume(self, path)
            && is_filled(volume)
        {
            let mut files = contents(self, volume).await;
            if let Some(bytes) = files.remove(&inside) {
                return Ok(bytes.into());
            }
        }
        match system(self, path) {
            Some(bytes) => Ok(bytes.into()),
            None if self.is_directory(path).await => Err(FileError::Directory),
            None => Err(FileError::Missing),
        }
    }

    /// Whether there is such a directory.
    pub(crate) async fn is_directory(&self, path: &str) -> bool {
        if DIRECTORIES.contains(&path) || path == self.working_directory() {
            return true;
        }
        let below = format!("{path}/");
        let written = {
            let files = lock(&self.files.written);
            let at = files.get(path);
            at.is_some_and(|entry| entry.content.is_none())
                || files.keys().any(|at| at.starts_with(&below))
        };
        if written {
            return true;
        }
        let mounts = self.spec()["volumeMounts"].as_array();
        let mounted = mounts.into_iter().flatten().any(|mount| {
            let at = mount["mountPath"].as_str().unwrap_or_default();
            at.trim_end_matches('/') == path && !mount["subPath"].is_string()
                || at.starts_with(&below)
        });
        if mounted {
            return true;
        }
        match volume(self, path) {
            Some((volume, inside)) if is_filled(volume) => {
                let below = format!("{inside}/");
                let files = contents(self, volume).await;
                files.keys().any(|at| at.starts_with(&below))
            }
            _ => false,
        }
    }

    /// The names in a directory.
    pub(crate) async fn list(&self, path: &str) -> Result<BTreeSet<String>, FileError> {
        if !self.is_directory(path).await {
            return match self.open(path).await {
                Ok(_) => Err(FileError::NotDirectory),
                Err(error) => Err(error),
            };
        }
        let below = match path {
            "/" => "/".to_owned(),
            path => format!("{path}/"),
        };
        let mut names = BTreeSet::new();
        let mut add = |path: &str| {
            let rest = path.strip_prefix(&below).filter(|rest| !rest.is_empty());
            let name = rest.and_then(|rest| rest.split('/').next());
            names.extend(name.map(str::to_owned));
        };
        for path in DIRECTORIES.iter().chain(&SYSTEM) {
            add(path);
        }
        for mount in self.spec()["volumeMounts"].as_array().into_iter().flatten() {
            add(mount["mountPath"].as_str().unwrap_or_default());
        }
        for path in lock(&self.files.written).keys() {
            add(path);
        }
        if let Some((volume, inside)) = volume(self, path)
            && is_filled(volume)
        {
            let prefix = match inside.as_str() {
                "" => String::new(),
                inside => format!("{inside}/"),
            };
            for file in contents(self, volume).await.keys() {
                if let Some(rest) = file.strip_prefix(&prefix) {
                    add(&format!("{below}{rest}"));
                }
            }
        }
        Ok(names)
    }

    /// Writes a file, whole or at its end.
    pub(crate) async fn write(
        &self,
        path: &str,
        bytes: &[u8],
        append: bool,
    ) -> Result<(), FileError> {
        let mut file = self.create(path, append).await?;
        file.write_all(bytes).await?;
        Ok(file.shutdown().await?)
    }

    /// Begins a file anew, or goes on at its end. It is there, empty, when it was not.
    pub(crate) async fn create(&self, path: &str, append: bool) -> Result<Draft, FileError> {
        if ["/dev/null", "/dev/zero"].contains(&path) {
            return Ok(Draft::new(&self.files, None));
        }
        self.writable(path)?;
        if self.is_directory(path).await {
            return Err(FileError::Directory);
        }
        if !self.is_directory(parent(path)).await {
            return Err(FileError::Missing);
        }
        let before = match append {
            true => self.open(path).await.ok(),
            false => None,
        };
        if before.is_none() {
            self.files.put(path, Content::from(Vec::new()))?;
        }
        let mut draft = Draft::new(&self.files, Some(path.to_owned()));
        if let Some(before) = before {
            let mut at = 0;
            loop {
                let piece = before.piece(at).await?;
                if piece.is_empty() {
                    break;
                }
                at += piece.len() as u64;
                draft.write_all(&piece).await?;
            }
        }
        Ok(draft)
    }

    /// Makes a directory and those above it.
    pub(crate) async fn make_directory(&self, path: &str) -> Result<(), FileError> {
        if self.is_directory(path).await {
            return Ok(());
        }
        self.writable(path)?;
        match self.files.get(path) {
            Some(Some(_)) => Err(FileError::NotDirectory),
            _ => self.files.put(path, None),
        }
    }

    /// Removes what was written, directories with what is in them.
    pub(crate) async fn remove(&self, path: &str) -> Result<(), FileError> {
        self.writable(path)?;
        match self.files.remove(path) {
            true => Ok(()),
            false if system(self, path).is_some() => Err(FileError::ReadOnly),
            false => Err(FileError::Missing),
        }
    }

    fn writable(&self, path: &str) -> Result<(), FileError> {
        match volume(self, path) {
            Some((volume, _)) if is_filled(volume) => Err(FileError::ReadOnly),
            _ => Ok(()),
        }
    }

    /// Files below a path with their contents, and directories, by their whole paths.
    pub(crate) async fn tree(
        &self,
        path: &str,
    ) -> Result<Vec<(String, Option<Content>)>, FileError> {
        let mut found = Vec::new();
        let mut waiting = vec![path.to_owned()];
        while let Some(path) = waiting.pop() {
            match self.open(&path).await {
                // A device has nothing to be copied.
                Ok(content) if content.length().is_none() => {}
                Ok(content) => found.push((path, Some(content))),
                Err(FileError::Directory) => {
                    let names = self.list(&path).await?;
                    let base = path.trim_end_matches('/').to_owned();
                    waiting.extend(names.iter().rev().map(|name| format!("{base}/{name}")));
                    found.push((path, None));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

/// A container without volumes, for tests.
#[cfg(test)]
pub(crate) fn example() -> Container {
    Container {
        pod: Arc::new(serde_json::json!({
            "metadata": {"name": "p", "namespace": "d"},
            "spec": {"containers": [{"name": "c", "env": [{"name": "A", "value": "1"}]}]},
        })),
        name: "c".into(),
        files: Files::default(),
        api: super::super::api::Api::new("127.0.0.1:1", yurt_wire::Encoding::Json),
        output: None,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::content::MEMORY, *};

    #[test]
    fn paths_are_resolved() {
        assert_eq!(resolve("/tmp", "a"), "/tmp/a");
        assert_eq!(resolve("/tmp", "../etc//./hosts"), "/etc/hosts");
        assert_eq!(resolve("/", "../.."), "/");
    }

    #[tokio::test]
    async fn what_is_written_is_read() {
        let container = example();
        container.write("/tmp/a", b"1", false).await.unwrap();
        container.write("/tmp/a", b"2", true).await.unwrap();
        assert_eq!(container.read("/tmp/a").await.unwrap(), b"12");
        let lost = container.write("/none/a", b"1", false).await;
        assert_eq!(lost, Err(FileError::Missing));
        container.make_directory("/tmp/d/e").await.unwrap();
        assert!(container.is_directory("/tmp/d").await);
        let names: Vec<String> = container.list("/tmp").await.unwrap().into_iter().collect();
        assert_eq!(names, ["a", "d"]);
        container.remove("/tmp/d").await.unwrap();
        assert_eq!(container.list("/tmp/d").await, Err(FileError::Missing));
        assert_eq!(container.read("/etc/hostname").await.unwrap(), b"p\n");
        assert_eq!(container.read("/etc").await, Err(FileError::Directory));
        let long = format!("/tmp/{}", "a".repeat(MEMORY as usize));
        assert_eq!(
            container.write(&long, b"", false).await,
            Err(FileError::Full)
        );
        container.write("/dev/null", b"1", false).await.unwrap();
        assert_eq!(container.read("/dev/null").await.unwrap(), b"");
        assert_eq!(container.read("/dev/zero").await, Err(FileError::TooLarge));
    }
}
