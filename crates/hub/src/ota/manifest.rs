//! Static pods: which manifest a YurtStaticSet's config map has for the node, and its place among the kubelet's manifests. [`choose`] is
//! pure; [`Place`] writes. Nothing but plain files of one directory is read or written, whatever stands in a config map, and the
//! kubelet never sees half a manifest. It looks at no file whose name begins with a dot.
//!
//! Facts of OpenYurt: config map `yurt-static-set-NAME`, its data `MANIFEST: YAML`, the file `MANIFEST.yaml`, the annotation
//! `openyurt.io/static-pod-hash` on both.

use super::pod::{self, STATIC_HASH, digest};
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, openat, renameat, unlinkat},
    io::Errno,
};
use serde_json::Value;
use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

/// Longest manifest.
const MOST_BYTES: u64 = 1 << 20;
/// Longest name of a manifest.
const MOST_NAME: usize = 200;
/// The most files that are looked through.
const MOST_FILES: usize = 1000;

/// The config map of a static set.
pub fn config_map_of(set: &str) -> String {
    format!("yurt-static-set-{set}")
}

/// The static set that a node's static pod belongs to, by the pod's name.
pub fn set_of<'a>(pod: &'a str, node: &str) -> Option<&'a str> {
    pod.strip_suffix(node)?
        .strip_suffix('-')
        .filter(|set| !set.is_empty())
}

/// A manifest as the cluster wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its file's name without the extension.
    pub stem: String,
    /// The file.
    pub text: String,
    /// Hash of the template.
    pub hash: String,
}

/// Why a config map's manifest is not used. Whoever wrote it is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadManifest {
    /// It does not say what it is made of.
    #[error("the config map has no annotation {STATIC_HASH}")]
    NoHash,
    /// None of its entries fits.
    #[error("no manifest in the config map is usable: {0}")]
    None(String),
    /// More than one does.
    #[error("the config map has more than one manifest of this pod: {0}")]
    Many(String),
}

/// Whether a name may be one of a manifest.
fn is_plain(stem: &str) -> bool {
    !stem.is_empty()
        && stem.len() <= MOST_NAME
        && !stem.starts_with('.')
        && stem
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Why a text is not the manifest of this pod.
fn unfit(text: &str, namespace: &str, name: &str, hash: Option<&str>) -> Option<String> {
    if text.len() as u64 > MOST_BYTES {
        return Some(format!("longer than {MOST_BYTES} bytes"));
    }
    let pod: Value = match serde_saphyr::from_str(text) {
        Ok(pod) => pod,
        Err(error) => return Some(format!("not YAML: {error}")),
    };
    let field = |pointer: &str| {
        pod.pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let in_namespace = match field("/metadata/namespace") {
        "" => "default",
        namespace => namespace,
    };
    let containers = pod.pointer("/spec/containers").and_then(Value::as_array);
    if (field("/apiVersion"), field("/kind")) != ("v1", "Pod") {
        Some("not a Pod of v1".into())
    } else if (in_namespace, field("/metadata/name")) != (namespace, name) {
        Some(format!(
            "of pod {in_namespace}/{}, not {namespace}/{name}",
            field("/metadata/name")
        ))
    } else if containers.is_none_or(|containers| {
        containers.is_empty()
            || containers.iter().any(|container| {
                container
                    .get("image")
                    .and_then(Value::as_str)
                    .is_none_or(str::is_empty)
            })
    }) {
        Some("without containers and their images".into())
    } else if hash.is_some_and(|hash| pod::static_hash(&pod) != hash) {
        Some(format!(
            "its hash {:?} is not the one announced",
            pod::static_hash(&pod)
        ))
    } else {
        None
    }
}

/// The manifest of the static set `set` in `namespace` that a config map has: the one entry that is a Pod of that name with the hash
/// that the config map announces.
pub fn choose(config_map: &Value, namespace: &str, set: &str) -> Result<Manifest, BadManifest> {
    let hash = pod::static_hash(config_map);
    if hash.is_empty() {
        return Err(BadManifest::NoHash);
    }
    let entries = config_map.get("data").and_then(Value::as_object);
    let (mut fit, mut unusable) = (Vec::new(), Vec::new());
    for (stem, text) in entries.into_iter().flatten() {
        let text = text.as_str().unwrap_or_default();
        if !is_plain(stem) {
            unusable.push(format!("{stem:?}: not the name of a file"));
        } else if let Some(why) = unfit(text, namespace, set, Some(hash)) {
            unusable.push(format!("{stem}: {why}"));
        } else {
            fit.push(Manifest {
                stem: stem.clone(),
                text: text.to_owned(),
                hash: hash.to_owned(),
            });
        }
    }
    match fit.len() {
        0 if unusable.is_empty() => Err(BadManifest::None("it is empty".into())),
        0 => Err(BadManifest::None(unusable.join("; "))),
        1 => fit.pop().ok_or(BadManifest::NoHash),
        _ => {
            let names: Vec<&str> = fit.iter().map(|manifest| manifest.stem.as_str()).collect();
            Err(BadManifest::Many(names.join(", ")))
        }
    }
}

/// Why a manifest was not replaced; nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The directory or a file cannot be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{}: {why}", path.display())]
    Unfit {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// The place of one manifest.
#[derive(Debug)]
pub struct Place {
    directory: OwnedFd,
    path: PathBuf,
    name: String,
}

impl Place {
    /// Among the manifests of `directory`.
    pub fn of(directory: &Path, stem: &str) -> Result<Self, PlaceError> {
        let name = format!("{stem}.yaml");
        let path = directory.join(&name);
        if !is_plain(stem) {
            let why = "not the name of a manifest".to_owned();
            return Err(PlaceError::Unfit { path, why });
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(directory, flags, Mode::empty());
        match opened {
            Ok(directory) => Ok(Self {
                directory,
                path,
                name,
            }),
            Err(error) => Err(PlaceError::Io {
                path: directory.to_owned(),
                source: error.into(),
            }),
        }
    }

    fn before(&self) -> String {
        format!(".{}.before", self.name)
    }

    fn failed(&self, source: impl Into<io::Error>) -> PlaceError {
        PlaceError::Io {
            path: self.path.clone(),
            source: source.into(),
        }
    }

    fn unfit(&self, why: impl Into<String>) -> PlaceError {
        PlaceError::Unfit {
            path: self.path.clone(),
            why: why.into(),
        }
    }

    /// A file of the directory; `None` when there is none. Links and what else is no plain file are refused.
    fn read(&self, name: &str) -> Result<Option<(Vec<u8>, Mode)>, PlaceError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&self.directory, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(self.unfit("is a symbolic link")),
            Err(error) => return Err(self.failed(error)),
        };
        let stat = rustix::fs::fstat(&file).map_err(|error| self.failed(error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.unfit("is no plain file"));
        }
        let mut bytes = Vec::new();
        File::from(file)
            .take(MOST_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| self.failed(error))?;
        if bytes.len() as u64 > MOST_BYTES {
            return Err(self.unfit(format!("is longer than {MOST_BYTES} bytes")));
        }
        Ok(Some((bytes, Mode::from_raw_mode(stat.st_mode & 0o777))))
    }

    /// Writes a file of the directory: whole, on the disk, or not at all.
    fn write(&self, name: &str, bytes: &[u8], mode: Mode) -> Result<(), PlaceError> {
        let part = format!(".{}.part", self.name);
        let write = || -> io::Result<()> {
            match unlinkat(&self.directory, &part, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(openat(&self.directory, &part, flags, mode)?);
            file.write_all(bytes)?;
            file.sync_all()?;
            renameat(&self.directory, &part, &self.directory, name)?;
            rustix::fs::fsync(&self.directory)?;
            Ok(())
        };
        write().map_err(|error| self.failed(error))
    }

    /// Whether the manifest is the one of a digest.
    pub fn holds(&self, wanted: &str) -> Result<bool, PlaceError> {
        let current = self.read(&self.name)?;
        Ok(current.is_some_and(|(bytes, _)| digest(&bytes) == wanted))
    }

    /// Where there is no such file, another one of the same pod becomes it: a manifest that was renamed. There is one file of the pod
    /// at any time.
    pub fn adopt(&self, namespace: &str, set: &str) -> Result<(), PlaceError> {
        if self.read(&self.name)?.is_some() {
            return Ok(());
        }
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let entries = std::fs::read_dir(directory).map_err(|error| self.failed(error))?;
        for entry in entries.take(MOST_FILES) {
            let name = entry.map_err(|error| self.failed(error))?.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else {
                continue;
            };
            // What cannot be read is none of this pod's.
            let Ok(Some((bytes, _))) = self.read(name) else {
                continue;
            };
            if unfit(&String::from_utf8_lossy(&bytes), namespace, set, None).is_none() {
                renameat(&self.directory, name, &self.directory, &self.name)
                    .map_err(|error| self.failed(error))?;
                return rustix::fs::fsync(&self.directory).map_err(|error| self.failed(error));
            }
        }
        Ok(())
    }

    /// Puts a manifest in the place of the one of the same pod, which is kept beside it. Again is as once.
    pub fn replace(&self, new: &Manifest, namespace: &str, set: &str) -> Result<(), PlaceError> {
        let (old, mode) = self
            .read(&self.name)?
            .ok_or_else(|| self.unfit("is not there: the pod is run from another file"))?;
        if old == new.text.as_bytes() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&old);
        if let Some(why) = unfit(&text, namespace, set, None) {
            return Err(self.unfit(why));
        }
        self.write(&self.before(), &old, mode)?;
        self.write(&self.name, new.text.as_bytes(), mode)
    }

    /// Puts the old manifest back, when the new one (by its digest) is still there. Again is as once.
    pub fn restore(&self, new_digest: &str) -> Result<(), PlaceError> {
        let current = self.read(&self.name)?;
        let before = self.read(&self.before())?;
        let Some((before, mode)) = before else {
            return Err(self.unfit("the manifest of before is gone"));
        };
        match current {
            Some((current, _)) if current == before => Ok(()),
            Some((current, _)) if digest(&current) == new_digest => {
                self.write(&self.name, &before, mode)
            }
            _ => Err(self.unfit("somebody else changed the manifest meanwhile")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn yaml(hash: &str, image: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  namespace: d\n  annotations: {{{STATIC_HASH}: {hash}}}\n\
             spec:\n  containers:\n  - name: c\n    image: {image}\n"
        )
    }

    fn map(hash: &str, data: Value) -> Value {
        json!({"metadata": {"annotations": {STATIC_HASH: hash}}, "data": data})
    }

    #[test]
    fn the_one_manifest_of_the_announced_hash_is_chosen() {
        let chosen = choose(
            &map(
                "h2",
                json!({"web": yaml("h2", "a:2"), "old": yaml("h1", "a:1")}),
            ),
            "d",
            "web",
        )
        .unwrap();
        assert_eq!((chosen.stem.as_str(), chosen.hash.as_str()), ("web", "h2"));
        let refused = |map: Value| choose(&map, "d", "web").unwrap_err().to_string();
        for (map, why) in [
            (json!({"data": {"web": yaml("h2", "a")}}), "no annotation"),
            (map("h2", json!({})), "it is empty"),
            (
                map("h2", json!({"web": yaml("h1", "a")})),
                "not the one announced",
            ),
            (
                map(
                    "h2",
                    json!({"web": yaml("h2", "a"), "web2": yaml("h2", "b")}),
                ),
                "more than one",
            ),
            (map("h2", json!({"web": "{"})), "not YAML"),
            (map("h2", json!({"web": "kind: Pod"})), "not a Pod of v1"),
            (
                map(
                    "h2",
                    json!({"web": yaml("h2", "a").replace("web", "other")}),
                ),
                "of pod d/other",
            ),
            (
                map(
                    "h2",
                    json!({"web": yaml("h2", "a").replace("  namespace: d\n", "")}),
                ),
                "of pod default/web",
            ),
            (
                map("h2", json!({"web": yaml("h2", "''")})),
                "without containers",
            ),
            (
                map("h2", json!({"../../root/x": yaml("h2", "a")})),
                "not the name of a file",
            ),
            (
                map("h2", json!({".web": yaml("h2", "a")})),
                "not the name of a file",
            ),
        ] {
            let error = refused(map);
            assert!(error.contains(why), "{why}: {error}");
        }
    }

    #[test]
    fn a_static_pod_is_named_after_its_node() {
        assert_eq!(set_of("yurt-hub-edge-1", "edge-1"), Some("yurt-hub"));
        for other in ["yurt-hub-edge-2", "edge-1", "-edge-1", "yurt-hubedge-1"] {
            assert_eq!(set_of(other, "edge-1"), None, "{other}");
        }
    }

    fn manifest(hash: &str, image: &str) -> Manifest {
        Manifest {
            stem: "web".into(),
            text: yaml(hash, image),
            hash: hash.into(),
        }
    }

    #[test]
    fn a_manifest_is_replaced_and_restored_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.yaml");
        std::fs::write(&file, yaml("h1", "a:1")).unwrap();
        let place = Place::of(dir.path(), "web").unwrap();
        let new = manifest("h2", "a:2");
        for _ in 0..2 {
            place.replace(&new, "d", "web").unwrap();
            assert!(place.holds(&digest(new.text.as_bytes())).unwrap());
            assert_eq!(std::fs::read_to_string(&file).unwrap(), new.text);
        }
        // What the kubelet would see: one file.
        let visible = std::fs::read_dir(dir.path()).unwrap().filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            !name.to_string_lossy().starts_with('.')
        });
        assert_eq!(visible.count(), 1);
        let wrong = place.restore("another").unwrap_err().to_string();
        assert!(wrong.contains("somebody else"), "{wrong}");
        for _ in 0..2 {
            place.restore(&digest(new.text.as_bytes())).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), yaml("h1", "a:1"));
        }
    }

    #[test]
    fn only_a_plain_file_of_the_same_pod_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.yaml");
        let secret = dir.path().join("secret");
        std::fs::write(&secret, yaml("h1", "a:1")).unwrap();
        let place = Place::of(dir.path(), "web").unwrap();
        let refused = |place: &Place| {
            place
                .replace(&manifest("h2", "a:2"), "d", "web")
                .unwrap_err()
                .to_string()
        };
        assert!(refused(&place).contains("is not there"));
        std::os::unix::fs::symlink(&secret, &file).unwrap();
        assert!(refused(&place).contains("symbolic link"));
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), yaml("h1", "a:1"));
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert!(refused(&place).contains("no plain file"));
        std::fs::remove_dir(&file).unwrap();
        std::fs::write(&file, yaml("h1", "a:1").replace("web", "other")).unwrap();
        assert!(refused(&place).contains("of pod d/other"));
        // A link in the way of the part is not followed, and the manifest is replaced all the same.
        std::fs::write(&file, yaml("h1", "a:1")).unwrap();
        std::os::unix::fs::symlink(&secret, dir.path().join(".web.yaml.part")).unwrap();
        place.replace(&manifest("h2", "a:2"), "d", "web").unwrap();
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), yaml("h1", "a:1"));
        for stem in ["", "..", "../x", "a/b", ".x", "a b", "a\0"] {
            assert!(Place::of(dir.path(), stem).is_err(), "{stem:?}");
        }
        assert!(Place::of(&dir.path().join("nowhere"), "web").is_err());
    }

    proptest! {
        /// What a config map says never names a file outside of the directory, and never makes anything panic.
        #[test]
        fn any_config_map_is_refused_or_names_a_plain_file(stem in "[ -~]{0,30}", text in "[ -~\n]{0,200}", fits: bool) {
            let text = if fits { yaml("h", "a") } else { text };
            if let Ok(chosen) = choose(&map("h", json!({stem: text})), "d", "web") {
                prop_assert!(!chosen.stem.contains('/') && !chosen.stem.starts_with('.') && !chosen.stem.is_empty());
            }
        }
    }
}
