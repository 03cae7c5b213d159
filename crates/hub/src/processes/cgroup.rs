//! Where a process lives, by its cgroups.

use super::Place;
use std::{
    collections::{HashMap, HashSet},
    os::unix::fs::DirEntryExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// Longest `/proc/PID/cgroup` that is read.
const MOST_TEXT: usize = 64 << 10;
/// Cgroups that are looked at in one walk.
const MOST_CGROUPS: usize = 16 << 10;
/// Cgroups remembered not to be in the tree.
const MOST_MISSED: usize = 256;
/// Where the unified hierarchy is mounted.
const UNIFIED: &str = "/sys/fs/cgroup";

/// The cgroups of a process, as `/proc/PID/cgroup` has them: one path a hierarchy, as seen from the hub's cgroup namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cgroups(Vec<(String, String)>);

impl Cgroups {
    /// Those of a process; `None` when they cannot be seen.
    pub(super) fn of(proc: &Path, pid: &str) -> Option<Self> {
        let text = std::fs::read_to_string(proc.join(pid).join("cgroup")).ok()?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Option<Self> {
        if text.len() > MOST_TEXT {
            return None;
        }
        let lines: Vec<(String, String)> = text
            .lines()
            .filter_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
            })
            .collect();
        (!lines.is_empty()).then_some(Self(lines))
    }

    /// The path in the unified hierarchy, when it is the only one.
    fn unified(&self) -> Option<&str> {
        match self.0.as_slice() {
            [(controllers, path)] if controllers.is_empty() => Some(path),
            _ => None,
        }
    }

    /// Where a process of these cgroups is for a hub whose own are `own`. One hierarchy that says container is enough.
    pub(super) fn place(&self, own: &Self) -> Place {
        let contained = self.0.iter().any(|(hierarchy, path)| {
            let own = own.0.iter().find(|(known, _)| known == hierarchy);
            place(path, own.map_or("", |(_, path)| path)) == Place::Container
        });
        if contained {
            Place::Container
        } else {
            Place::Node
        }
    }
}

/// Where a cgroup is for a hub in the cgroup `own`. The hub may be in a container itself (a node that is a container, a static pod):
/// what is beside it in there is the node, and so is what is outside of all containers.
fn place(path: &str, own: &str) -> Place {
    let container = innermost_container(own);
    let rest = match path.strip_prefix(container) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest,
        _ => path,
    };
    if innermost_container(rest).is_empty() {
        Place::Node
    } else {
        Place::Container
    }
}

/// The path of the innermost container that a cgroup is in; empty when it is in none.
fn innermost_container(path: &str) -> &str {
    let mut end = 0;
    let mut at = 0;
    for segment in path.split('/') {
        at += segment.len();
        if is_container(segment) {
            end = at;
        }
        at += 1;
    }
    path.get(..end).unwrap_or_default()
}

/// Whether a cgroup's name is one that kubelets and container runtimes give: `kubepods*`, `pod<uid>`, scopes of runtimes, and
/// container ids as the cgroupfs driver uses them.
fn is_container(segment: &str) -> bool {
    const SCOPES: [&str; 5] = ["cri-containerd-", "crio-", "docker-", "libpod-", "nerdctl-"];
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    let uid = |text: &str| {
        text.len() >= 32
            && text
                .bytes()
                .all(|b| b.is_ascii_hexdigit() || b == b'-' || b == b'_')
    };
    segment.contains("kubepods")
        || segment.strip_prefix("pod").is_some_and(uid)
        || segment
            .strip_suffix(".scope")
            .is_some_and(|scope| SCOPES.iter().any(|prefix| scope.starts_with(prefix)))
        || segment.starts_with("lxc.payload")
        || (segment.len() == 64 && hex(segment))
}

/// The unified hierarchy, by the ids of its cgroups: what a socket's cgroup is known by. Ids are not used twice.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    own: String,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    places: HashMap<u64, Place>,
    missed: HashSet<u64>,
}

impl Tree {
    /// The tree that a hub in these cgroups sees; `None` where other hierarchies are in use beside it, because containers need not be
    /// in the unified one then.
    pub(super) fn seen_by(own: &Cgroups) -> Option<Self> {
        let path = own.unified()?;
        Path::new(UNIFIED)
            .join("cgroup.controllers")
            .exists()
            .then(|| Self::at(UNIFIED.into(), path))
    }

    fn at(root: PathBuf, own: &str) -> Self {
        Self {
            root,
            own: own.to_owned(),
            known: Mutex::default(),
        }
    }

    /// Where the cgroup of an id is; `None` when the hub does not see it. The root says nothing: kernels name it for sockets whose
    /// cgroup they do not know.
    pub(super) fn place(&self, id: u64) -> Option<Place> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = known.places.get(&id) {
            return Some(*place);
        }
        if known.missed.contains(&id) {
            return None;
        }
        known.places = self.walk();
        let found = known.places.get(&id).copied();
        if found.is_none() {
            if known.missed.len() >= MOST_MISSED {
                known.missed.clear();
            }
            known.missed.insert(id);
        }
        found
    }

    fn walk(&self) -> HashMap<u64, Place> {
        let mut places = HashMap::new();
        let mut waiting = vec![(self.root.clone(), String::new())];
        while let Some((directory, path)) = waiting.pop() {
            let Ok(entries) = std::fs::read_dir(directory) else {
                continue;
            };
            for entry in entries.flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                if places.len() >= MOST_CGROUPS {
                    return places;
                }
                let path = format!("{path}/{}", entry.file_name().to_string_lossy());
                places.insert(entry.ino(), place(&path, &self.own));
                waiting.push((entry.path(), path));
            }
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "3f1f88b2c00dfd68e66d08c9d035c776c8a5835b3f1f88b2c00dfd68e66d08c9";
    const UID: &str = "pod8a1d6b51_6a32_4a59_9f86_0e7a3f1b2c3d";

    #[test]
    fn containers_are_known_by_the_names_of_their_cgroups() {
        let contained = [
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-{UID}.slice/cri-containerd-{ID}.scope"
            ),
            format!("/kubepods/besteffort/{}/{ID}", UID.replace('_', "-")),
            format!("/kubepods.slice/kubepods-{UID}.slice/crio-{ID}.scope/container"),
            format!("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-{UID}.slice"),
            format!("/system.slice/docker-{ID}.scope"),
            format!("/docker/{ID}"),
            format!("/default/{ID}"),
            format!("/machine.slice/libpod-{ID}.scope/container"),
            "/lxc.payload.x/system.slice".into(),
            // As seen from the cgroup namespace of a static pod.
            format!("/../../{UID}/{ID}"),
            format!("/../cri-containerd-{ID}.scope"),
        ];
        for path in contained {
            assert_eq!(place(&path, "/"), Place::Container, "{path}");
            assert_eq!(
                place(&path, "/system.slice/yurthub.service"),
                Place::Container,
                "{path}"
            );
        }
        for path in [
            "/",
            "/system.slice/kubelet.service",
            "/system.slice/docker.service",
            "/system.slice/containerd.service",
            "/system.slice/crio.service",
            "/user.slice/user-0.slice/session-1.scope",
            "/podruntime/kubelet",
            "/../../../../system.slice/kubelet.service",
            "/../../../..",
            "/process_api/0e4577b870f70223ee68f4562408acc6",
        ] {
            assert_eq!(
                place(path, "/system.slice/yurthub.service"),
                Place::Node,
                "{path}"
            );
        }
    }

    #[test]
    fn beside_the_hub_in_its_container_is_the_node() {
        let node = format!("/docker/{ID}");
        let own = format!("{node}/system.slice/yurthub.service");
        for (path, expected) in [
            (format!("{node}/system.slice/kubelet.service"), Place::Node),
            (node.clone(), Place::Node),
            (
                format!("{node}/kubelet.slice/kubelet-kubepods.slice/{UID}"),
                Place::Container,
            ),
            (
                format!("/docker/{}", ID.replace('3', "4")),
                Place::Container,
            ),
            ("/system.slice/sshd.service".into(), Place::Node),
        ] {
            assert_eq!(place(&path, &own), expected, "{path}");
        }
        // A static pod: its own container, and the node, but no other pod.
        let pod = format!("/kubepods.slice/kubepods-{UID}.slice");
        let own = format!("{pod}/cri-containerd-{ID}.scope");
        assert_eq!(place(&own, &own), Place::Node);
        assert_eq!(place("/system.slice/kubelet.service", &own), Place::Node);
        let sidecar = format!("{pod}/cri-containerd-{}.scope", ID.replace('3', "4"));
        assert_eq!(place(&sidecar, &own), Place::Container);
    }

    #[test]
    fn one_hierarchy_that_says_container_is_enough() {
        let cgroups = |text: &str| Cgroups::parse(text).unwrap();
        let own =
            cgroups("2:cpu:/system.slice/yurthub.service\n0::/system.slice/yurthub.service\n");
        let kubelet = cgroups("2:cpu:/system.slice/kubelet.service\n0::/\n");
        assert_eq!(kubelet.place(&own), Place::Node);
        let pod = cgroups(&format!("2:cpu:/kubepods/{UID}\n0::/\n"));
        assert_eq!(pod.place(&own), Place::Container);
        // A hierarchy that the hub is not in counts as well.
        let pod = cgroups(&format!("7:pids:/kubepods/{UID}\n0::/\n"));
        assert_eq!(pod.place(&own), Place::Container);
        assert_eq!(own.unified(), None);
        assert_eq!(cgroups("0::/a:b\n").unified(), Some("/a:b"));
        assert_eq!(Cgroups::parse(""), None);
        assert_eq!(Cgroups::parse("nonsense\n"), None);
    }

    #[test]
    fn cgroups_are_found_by_their_ids() {
        use std::os::unix::fs::MetadataExt;
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::metadata(path).unwrap().ino()
        };
        let kubelet = make("system.slice/kubelet.service");
        let pod = make(&format!("kubepods.slice/{UID}"));
        let tree = Tree::at(root.path().into(), "/system.slice/yurthub.service");
        assert_eq!(tree.place(kubelet), Some(Place::Node));
        assert_eq!(tree.place(pod), Some(Place::Container));
        let of_root = std::fs::metadata(root.path()).unwrap().ino();
        assert_eq!(tree.place(of_root), None);
        assert_eq!(tree.place(u64::MAX), None);
        // One that comes later is found as well.
        let later = make(&format!("kubepods.slice/{UID}/{ID}"));
        assert_eq!(tree.place(later), Some(Place::Container));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "[ -~\n]{0,200}", own in "[ -~]{0,80}") {
            if let Some(cgroups) = Cgroups::parse(&text) {
                cgroups.place(&cgroups);
            }
            place(&text, &own);
        }

        /// Whatever the hub's own cgroup is, a pod beside it is none of the node.
        #[test]
        fn a_pod_is_no_node(own in "(/[a-z.]{1,12}){0,4}", above in "(/[a-z.]{1,12}){0,3}") {
            let path = format!("{above}/kubepods/{UID}/{ID}");
            prop_assert_eq!(place(&path, &own), Place::Container);
        }
    }
}
