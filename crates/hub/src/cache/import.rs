//! A cache directory of OpenYurt's hub, taken over at the first start, before anything is served: so that a node whose hub is
//! replaced while the cloud is away goes on. The old files are read once, put into the store, and moved aside, never deleted.
//!
//! An import that was interrupted begins again: until it is marked done, nothing but it was written.

mod layout;

use super::{
    collect::today,
    record::{self, Stored, index_key},
    sealed::SealedStore,
};
use crate::{caller::Caller, query::Query};
use layout::{Claim, Second};
use serde::de::IgnoredAny;
use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};
use yurt_store::{Batch, StoreError};
use yurt_wire::{Encoding, Gvr, Object, ObjectKey};

/// Largest file read; etcd takes objects of 1.5 MiB.
const MOST_FILE: u64 = 4 << 20;
/// Files read.
const MOST_FILES: usize = 200_000;
/// Bytes of one batch.
const BATCH_BYTES: usize = 1 << 20;
/// Where the old files go, before the seconds.
const ASIDE: &str = "openyurt-imported-";
/// The revision of imported lists: at which one they were complete nobody knows. A watch that goes on from it begins anew with
/// the cloud.
const UNKNOWN_REVISION: u64 = 1;
const BEGUN: &[u8] = b"begun";
const DONE: &[u8] = b"done";

/// What an import took over and what it left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Objects.
    pub objects: usize,
    /// Complete lists.
    pub lists: usize,
    /// Documents: `/version`, discovery.
    pub documents: usize,
    /// Files that are broken, truncated, too large, or hold another object than their path says.
    pub broken: usize,
    /// Entries that are of no use or no plain files: links, partial metadata, events, what lies at a wrong depth.
    pub ignored: usize,
    /// Where the old files are now.
    pub aside: Option<PathBuf>,
}

/// Takes over what an older hub left in `dir`. `None` when there is nothing to do.
pub(super) fn take_over(
    store: &SealedStore,
    dir: &Path,
    node: &str,
) -> Result<Option<Imported>, StoreError> {
    let io = |source| StoreError::Io {
        dir: dir.display().to_string(),
        source,
    };
    let old = old_entries(dir).map_err(io)?;
    if old.is_empty() {
        return Ok(None);
    }
    let mark = store.get(record::IMPORT_KEY)?;
    let mut imported = Imported::default();
    match mark.as_deref() {
        // All is durable; only the files were not all moved.
        Some(DONE) => {}
        None if !store.keys(record::OBJECTS).is_empty() => {
            tracing::warn!(dir = %dir.display(), "files of OpenYurt's hub beside a cache that is in use; they are left alone");
            return Ok(None);
        }
        _ => {
            set_mark(store, BEGUN)?;
            let mut import = Import {
                store,
                node,
                custom_kinds: custom_kinds(&old),
                batch: Batch::default(),
                known: HashMap::new(),
                files: 0,
                done: &mut imported,
            };
            import.run(&old)?;
            let rest = std::mem::take(&mut import.batch);
            store.commit(rest).wait()?;
            set_mark(store, DONE)?;
        }
    }
    imported.aside = move_aside(dir, &old);
    tracing::info!(
        objects = imported.objects,
        lists = imported.lists,
        documents = imported.documents,
        broken = imported.broken,
        ignored = imported.ignored,
        aside = ?imported.aside,
        "the cache of OpenYurt's hub was taken over"
    );
    Ok(Some(imported))
}

fn set_mark(store: &SealedStore, mark: &[u8]) -> Result<(), StoreError> {
    let mut batch = Batch::default();
    batch.put(record::IMPORT_KEY, mark.to_vec());
    store.commit(batch).wait()
}

/// What lies in a directory: its own name, its path, whether it is a directory. Links and other oddities are `None`.
type Entries = BTreeMap<String, (PathBuf, Option<bool>)>;

fn entries(dir: &Path) -> io::Result<Entries> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // Of the entry itself: a link is not followed.
        let kind = entry.file_type()?;
        let kind = (kind.is_dir() || kind.is_file()).then_some(kind.is_dir());
        // Names of Kubernetes are ASCII.
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, (entry.path(), kind)));
        }
        if found.len() > MOST_FILES {
            break;
        }
    }
    Ok(layout::effective(found))
}

/// What an older hub left at the top: directories of components, and documents. The store's own files are no directories.
fn old_entries(dir: &Path) -> io::Result<Entries> {
    let mut old = entries(dir)?;
    old.retain(|name, (_, is_dir)| match is_dir {
        Some(true) => !name.starts_with(ASIDE) && name != "lost+found",
        Some(false) => layout::document(name).is_some(),
        None => false,
    });
    Ok(old)
}

fn custom_kinds(old: &Entries) -> BTreeMap<String, String> {
    let Some((internal, Some(true))) = old.get(layout::INTERNAL) else {
        return BTreeMap::new();
    };
    let file = internal.join(layout::KINDS);
    match fs::symlink_metadata(&file) {
        Ok(meta) if meta.is_file() && meta.len() <= MOST_FILE => fs::read(&file)
            .map(|file| layout::custom_kinds(&file))
            .unwrap_or_default(),
        _ => BTreeMap::new(),
    }
}

/// Moves the old files out of the way; what cannot be moved now is tried again at the next start.
fn move_aside(dir: &Path, old: &Entries) -> Option<PathBuf> {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let aside = dir.join(format!("{ASIDE}{seconds}"));
    let made = fs::create_dir_all(&aside);
    let twins = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?;
        let other = match name.strip_prefix("tmp_") {
            Some(name) => name.to_owned(),
            None => format!("tmp_{name}"),
        };
        Some(path.with_file_name(other)).filter(|other| other.exists())
    };
    let moved = made.and_then(|()| {
        for (path, _) in old.values() {
            for path in [Some(path.clone()), twins(path)].into_iter().flatten() {
                if let Some(name) = path.file_name() {
                    fs::rename(&path, aside.join(name))?;
                }
            }
        }
        Ok(())
    });
    match moved {
        Ok(()) => Some(aside),
        Err(error) => {
            tracing::warn!(aside = %aside.display(), %error, "the old files cannot be moved aside");
            None
        }
    }
}

/// An import under way.
struct Import<'a> {
    store: &'a SealedStore,
    node: &'a str,
    custom_kinds: BTreeMap<String, String>,
    batch: Batch,
    /// Revisions of what was taken over so far: components cached the same objects.
    known: HashMap<Vec<u8>, u64>,
    files: usize,
    done: &'a mut Imported,
}

/// What one directory of a resource turned out to hold.
#[derive(Default)]
struct Found {
    objects: Vec<(String, String)>,
    kind: String,
    /// Something in it could not be read: it is not complete.
    torn: bool,
}

impl Import<'_> {
    fn run(&mut self, old: &Entries) -> Result<(), StoreError> {
        // The kubelet's last: the original changed services for it before it cached them, so that of two copies of one
        // revision the other is better.
        let (kubelet, others): (Vec<_>, Vec<_>) =
            old.iter().partition(|(name, _)| *name == "kubelet");
        for (name, (path, is_dir)) in others.into_iter().chain(kubelet) {
            match is_dir {
                Some(true) if name == layout::INTERNAL => {}
                Some(true) => self.component(name, path)?,
                _ => self.document(name, path)?,
            }
        }
        Ok(())
    }

    fn put(&mut self, key: Vec<u8>, value: bytes::Bytes) -> Result<(), StoreError> {
        self.store.put(&mut self.batch, key, value)?;
        if self.batch.bytes() >= BATCH_BYTES {
            self.store.commit(std::mem::take(&mut self.batch)).wait()?;
        }
        Ok(())
    }

    /// The content of a file that is whole JSON; counted as broken otherwise.
    fn read(&mut self, path: &Path) -> Option<Vec<u8>> {
        self.files += 1;
        let read = || -> io::Result<Vec<u8>> {
            let meta = fs::symlink_metadata(path)?;
            if !meta.is_file() || meta.len() > MOST_FILE {
                return Err(io::ErrorKind::InvalidData.into());
            }
            fs::read(path)
        };
        let content = if self.files > MOST_FILES {
            None
        } else {
            read().ok()
        };
        let whole = content.filter(|content| serde_json::from_slice::<IgnoredAny>(content).is_ok());
        if whole.is_none() {
            self.done.broken += 1;
            tracing::debug!(file = %path.display(), "left out of the import: not readable as an object");
        }
        whole
    }

    fn document(&mut self, name: &str, path: &Path) -> Result<(), StoreError> {
        let Some(of) = layout::document(name) else {
            self.done.ignored += 1;
            return Ok(());
        };
        if let Some(body) = self.read(path) {
            let key = [record::DOCUMENTS, of.as_bytes(), b"#json"].concat();
            self.put(key, [b"application/json\n", &body[..]].concat().into())?;
            self.done.documents += 1;
        }
        Ok(())
    }

    fn component(&mut self, component: &str, dir: &Path) -> Result<(), StoreError> {
        let Ok(resources) = entries(dir) else {
            self.done.ignored += 1;
            return Ok(());
        };
        for (name, (path, is_dir)) in resources {
            match (layout::second(&name), is_dir) {
                (Some(Second::Resource(gvr)), Some(true)) => {
                    self.resource(component, Some(gvr), &name, &path)?;
                }
                (Some(Second::Bare(resource)), Some(true)) => {
                    self.resource(component, None, &resource, &path)?;
                }
                _ => self.done.ignored += 1,
            }
        }
        Ok(())
    }

    /// The directory of one resource of one component. Without `gvr` its objects tell group and version.
    fn resource(
        &mut self,
        component: &str,
        gvr: Option<Gvr>,
        name: &str,
        dir: &Path,
    ) -> Result<(), StoreError> {
        let Ok(top) = entries(dir) else {
            self.done.ignored += 1;
            return Ok(());
        };
        let mut found: BTreeMap<Gvr, Found> = BTreeMap::new();
        // Also of an empty directory something is known: there were none.
        if let Some(gvr) = gvr.clone().or_else(|| layout::built_in(name)) {
            found.entry(gvr).or_default();
        }
        let (mut torn, mut odd) = (false, false);
        let mut see = |import: &mut Self, namespace: &str, name: &str, path: &Path| {
            match import.object(component, gvr.as_ref(), dir, namespace, name, path)? {
                Some((gvr, kind)) => {
                    let of = found.entry(gvr).or_default();
                    of.kind = kind;
                    of.objects.push((namespace.to_owned(), name.to_owned()));
                }
                None => torn = true,
            }
            Ok::<_, StoreError>(())
        };
        let mut strange = false;
        for (name, (path, is_dir)) in top {
            match is_dir {
                Some(false) => see(self, "", &name, &path)?,
                Some(true) => match entries(&path) {
                    Ok(objects) => {
                        for (object, (path, is_dir)) in objects {
                            match is_dir {
                                Some(false) => see(self, &name, &object, &path)?,
                                _ => odd = true,
                            }
                        }
                    }
                    Err(_) => odd = true,
                },
                None => odd = true,
            }
            if std::mem::take(&mut odd) {
                // A link, a directory too deep: perhaps an object, but none that can be had.
                self.done.ignored += 1;
                strange = true;
            }
        }
        torn |= strange;
        // A directory that told no group may hold objects of several; the broken ones are of who knows which.
        for (gvr, mut of) in found {
            of.torn = torn;
            self.conclude(component, &gvr, &of)?;
        }
        Ok(())
    }

    /// One object; gives its resource and kind when it was taken over or is known in a newer state.
    fn object(
        &mut self,
        component: &str,
        gvr: Option<&Gvr>,
        dir: &Path,
        namespace: &str,
        name: &str,
        path: &Path,
    ) -> Result<Option<(Gvr, String)>, StoreError> {
        let bare = dir
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let nothing = |gvr: &Gvr| layout::claim(component, gvr, self.node) == Claim::Nothing;
        if gvr.map_or(bare == "events", nothing) {
            self.done.ignored += 1;
            return Ok(None);
        }
        let Some(content) = self.read(path) else {
            return Ok(None);
        };
        let object = Object {
            encoding: Encoding::Json,
            bytes: content.into(),
        };
        let Some((id, revision)) = super::learner::cacheable(&object)
            .filter(|(id, _)| is_at_its_place(id, namespace, name))
        else {
            self.done.broken += 1;
            return Ok(None);
        };
        let resource = bare.strip_prefix("tmp_").unwrap_or(bare);
        let Some(gvr) = gvr
            .cloned()
            .or_else(|| layout::gvr_of(resource, &id.api_version))
        else {
            self.done.broken += 1;
            return Ok(None);
        };
        let kind = id.kind.clone().into_owned();
        let key = record::object_record(record::OBJECTS, &gvr, &index_key(namespace, name));
        if self.known.get(&key).is_none_or(|known| *known < revision) {
            if self.known.insert(key.clone(), revision).is_none() {
                self.done.objects += 1;
            }
            let stored = Stored {
                // The original kept what its filters had made of an object: the cloud's own state of the same revision is news.
                revision: revision.saturating_sub(1).max(1),
                absent_from: Vec::new(),
                object,
            };
            self.put(key, stored.encode())?;
        }
        Ok(Some((gvr, kind)))
    }

    /// What follows from a directory as a whole.
    fn conclude(&mut self, component: &str, gvr: &Gvr, found: &Found) -> Result<(), StoreError> {
        let of_node = layout::is_of_node(component, gvr);
        let complete = match layout::claim(component, gvr, self.node) {
            Claim::Complete(query) => query,
            Claim::Named if of_node => {
                for (namespace, name) in &found.objects {
                    let grant = Query::named(gvr.clone(), namespace, name);
                    self.put(record::grant_record(&Caller::Node, &grant), "".into())?;
                }
                return Ok(());
            }
            Claim::Named | Claim::Nothing => return Ok(()),
        };
        if of_node {
            self.put(record::grant_record(&Caller::Node, &complete), "".into())?;
        }
        // As the original: no kubelet is told that it has no pods.
        let no_pods = gvr.resource == "pods" && found.objects.is_empty();
        if found.torn || no_pods {
            return Ok(());
        }
        let custom = format!("{}/{}/{}", gvr.group, gvr.version, gvr.resource);
        let kind = match found.kind.as_str() {
            "" => layout::kind_of(gvr)
                .or_else(|| self.custom_kinds.get(&custom).map(String::as_str))
                .unwrap_or_default(),
            kind => kind,
        };
        // A list without a kind cannot be told.
        if kind.is_empty() {
            return Ok(());
        }
        let value = serde_json::json!({
            "revision": UNKNOWN_REVISION,
            "kind": kind,
            "day": today(),
        });
        self.done.lists += 1;
        self.put(record::coverage_record(&complete), value.to_string().into())
    }
}

/// Whether an object is the one that its path names.
fn is_at_its_place(id: &ObjectKey<'_>, namespace: &str, name: &str) -> bool {
    id.name == name && id.namespace == namespace
}
