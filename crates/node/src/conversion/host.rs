//! The machine that this runs on.

use super::{
    fault::Fault,
    machine::{Hub as Seen, Kind, Machine},
};
use crate::{hub::Hub, render::Report};
use std::{
    fs::{self, File, Metadata, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::process::Command;

/// Largest file whose text is looked at.
const MOST_BYTES: u64 = 4 << 20;
/// How long systemctl may take.
const COMMAND: Duration = Duration::from_secs(120);
/// The most that is told of what it said.
const MOST_SAID: usize = 500;

/// A host, seen at a directory.
#[derive(Debug)]
pub(super) struct Host {
    /// `/`, but in tests.
    root: PathBuf,
    /// This program, opened before anything could replace it, or hide it by a chroot.
    program: File,
    systemctl: PathBuf,
    /// The hub's admin address.
    hub: String,
}

impl Host {
    pub(super) fn at(root: &Path, systemctl: &Path, hub: &str) -> Result<Self, Fault> {
        let program = "/proc/self/exe";
        Ok(Self {
            root: root.to_owned(),
            program: File::open(program).map_err(Fault::file(program))?,
            systemctl: systemctl.to_owned(),
            hub: hub.to_owned(),
        })
    }

    /// Makes a directory the root of this process: where a Job has the host's.
    pub(super) fn enter(root: &Path) -> Result<(), Fault> {
        let entered = rustix::process::chroot(root).and_then(|()| rustix::process::chdir("/"));
        entered.map_err(|error| Fault::file(root.display().to_string())(error.into()))
    }

    /// Holds the node against other conversions as long as the file is open.
    pub(super) fn lock(&self) -> Result<File, Fault> {
        let path = self.path("/run/yurt-node-conversion.lock");
        let name = path.display().to_string();
        let file = File::create(&path).map_err(Fault::file(name.clone()))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => Err(Fault::Busy),
            Err(fs::TryLockError::Error(error)) => Err(Fault::file(name)(error)),
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Makes a file whole beside `path`, then puts it in its place.
    fn replace(&self, path: &str, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), Fault> {
        let place = self.path(path);
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        // A kubelet looks at no file whose name begins with a dot.
        let part = place.with_file_name(format!(".{name}.yurt-new"));
        let replaced = absent(fs::remove_file(&part))
            .and_then(|()| make(&part))
            .and_then(|()| fs::rename(&part, &place))
            .and_then(|()| sync_directory_of(&place));
        replaced.map_err(|error| {
            // What is left of it is replaced or swept by the next run.
            let _ = fs::remove_file(&part);
            Fault::file(path)(error)
        })
    }
}

/// What is not there needs no removing.
fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn create(path: &Path, mode: u32) -> io::Result<File> {
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    // Whatever the umask.
    file.set_permissions(Permissions::from_mode(mode))?;
    Ok(file)
}

/// Gives a file the owner and mode of another.
fn become_like(other: &Metadata, path: &Path, file: &File) -> io::Result<()> {
    chown(path, Some(other.uid()), Some(other.gid()))?;
    file.set_permissions(other.permissions())
}

impl Machine for Host {
    fn kind(&self, path: &str) -> Result<Kind, Fault> {
        match fs::symlink_metadata(self.path(path)) {
            Ok(found) if found.is_dir() => Ok(Kind::Directory),
            Ok(found) if found.is_symlink() && self.path(path).is_dir() => Ok(Kind::Directory),
            Ok(_) => Ok(Kind::File),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kind::Nothing),
            Err(error) => Err(Fault::file(path)(error)),
        }
    }

    fn read(&self, path: &str) -> Result<Option<String>, Fault> {
        let file = match File::open(self.path(path)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Fault::file(path)(error)),
        };
        let mut text = String::new();
        let read = file.take(MOST_BYTES).read_to_string(&mut text);
        read.map_err(Fault::file(path))?;
        Ok(Some(text))
    }

    fn write(&mut self, path: &str, text: &str, mode: Option<u32>) -> Result<(), Fault> {
        let place = self.path(path);
        self.replace(path, |part| {
            let mut file = create(part, mode.unwrap_or(0o600))?;
            file.write_all(text.as_bytes())?;
            if mode.is_none() {
                become_like(&fs::metadata(&place)?, part, &file)?;
            }
            file.sync_all()
        })
    }

    fn link(&mut self, path: &str, target: &str) -> Result<(), Fault> {
        self.replace(path, |part| symlink(target, part))
    }

    fn install(&mut self, path: &str) -> Result<(), Fault> {
        self.replace(path, |part| {
            let mut program = self.program.try_clone()?;
            io::Seek::rewind(&mut program)?;
            let mut file = create(part, 0o755)?;
            io::copy(&mut program, &mut file)?;
            file.sync_all()
        })
    }

    fn copy(&mut self, from: &str, to: &str) -> Result<(), Fault> {
        let source = self.path(from);
        self.replace(to, |part| {
            let found = fs::symlink_metadata(&source)?;
            if found.is_symlink() {
                return symlink(fs::read_link(&source)?, part);
            }
            let mut file = create(part, 0o600)?;
            io::copy(&mut File::open(&source)?, &mut file)?;
            become_like(&found, part, &file)?;
            file.sync_all()
        })
    }

    fn remove(&mut self, path: &str) -> Result<(), Fault> {
        let place = self.path(path);
        let removed =
            absent(fs::remove_file(&place)).and_then(|()| absent(sync_directory_of(&place)));
        removed.map_err(Fault::file(path))
    }

    fn remove_all(&mut self, path: &str) -> Result<(), Fault> {
        let place = self.path(path);
        absent(fs::remove_dir_all(place)).map_err(Fault::file(path))
    }

    fn make_directory(&mut self, path: &str) -> Result<(), Fault> {
        let place = self.path(path);
        let made = fs::create_dir_all(&place).and_then(|()| sync_directory_of(&place));
        made.map_err(Fault::file(path))
    }

    fn remove_empty(&mut self, path: &str) -> Result<(), Fault> {
        match absent(fs::remove_dir(self.path(path))) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            other => other.map_err(Fault::file(path)),
        }
    }

    async fn systemctl(&mut self, words: &[&str]) -> Result<(), Fault> {
        let failed = |said: String| Fault::Command {
            command: format!("systemctl {}", words.join(" ")),
            said: said.trim().chars().take(MOST_SAID).collect(),
        };
        let mut command = Command::new(&self.systemctl);
        command.args(words).stdin(Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(COMMAND, command.output()).await {
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                Err(failed(format!("{}: {said}", output.status)))
            }
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed(format!("no end within {} s", COMMAND.as_secs()))),
        }
    }

    async fn is_active(&mut self, unit: &str) -> bool {
        self.systemctl(&["is-active", "--quiet", unit])
            .await
            .is_ok()
    }

    async fn hub(&mut self) -> Seen {
        let asked = async {
            let hub = Hub::at(&self.hub)?;
            hub.text("/v1/readyz").await?;
            hub.get::<Report>("/v1/doctor").await
        };
        match asked.await {
            Err(error) => Seen::Silent(error.to_string()),
            Ok((report, _)) if report.holds("kubelet") => Seen::Used,
            Ok(_) => Seen::Ready,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        carry_out::{self, Done},
        plan::{Form, tests::wish},
    };
    use super::*;

    const FLAGS: &str = "var/lib/kubelet/kubeadm-flags.env";
    const DROP_IN: &str = "etc/systemd/system/kubelet.service.d/10-kubeadm.conf";

    /// Everything under a directory: what it is, its mode, its bytes.
    fn all(root: &Path, at: &Path, found: &mut Vec<String>) {
        let mut entries: Vec<_> = fs::read_dir(at)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        entries.sort();
        for path in entries {
            let data = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            if data.is_dir() {
                found.push(name);
                all(root, &path, found);
            } else if data.is_symlink() {
                found.push(format!("{name} -> {:?}", fs::read_link(&path).unwrap()));
            } else {
                found.push(format!(
                    "{name} {:o} {:?}",
                    data.mode(),
                    fs::read(&path).unwrap()
                ));
            }
        }
    }

    fn listing(root: &Path) -> Vec<String> {
        let mut found = Vec::new();
        all(root, root, &mut found);
        found.retain(|entry| !entry.starts_with("run"));
        found
    }

    /// A node on the disk whose systemctl notes what it is asked for, and whose hub answers once its unit was started.
    #[tokio::test]
    async fn a_host_is_converted_and_is_as_before_after_a_revert() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let put = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put(
            DROP_IN,
            "ExecStart=/usr/bin/kubelet --kubeconfig=/etc/kubernetes/kubelet.conf $KUBELET_KUBEADM_ARGS\n",
        );
        put(
            "etc/kubernetes/kubelet.conf",
            "clusters: [{name: c, cluster: {server: 'https://10.0.0.1:6443'}}]\n",
        );
        put(FLAGS, "KUBELET_KUBEADM_ARGS=\"\"\n");
        put("etc/kubernetes/pki/ca.crt", "ca");
        put("var/lib/kubelet/pki/kubelet-client-current.pem", "pair");
        put("run/x", "");
        fs::create_dir_all(root.join("usr/local/bin")).unwrap();
        symlink("yurt", root.join("usr/local/bin/yurthub")).unwrap();
        fs::set_permissions(root.join(FLAGS), Permissions::from_mode(0o604)).unwrap();
        let before = listing(&root);

        let (script, log) = (dir.path().join("systemctl"), dir.path().join("log"));
        let text = format!(
            "#!/bin/sh\necho \"$@\" >> {log}\ncase \"$*\" in 'is-active --quiet yurthub.service') grep -q 'restart yurthub' {log};; esac\n",
            log = log.display()
        );
        fs::write(&log, "").unwrap();
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let stop = tokio_util::sync::CancellationToken::new();
        let told = log.clone();
        let handler = move |request: http::Request<_>| {
            let said = fs::read_to_string(&told).unwrap_or_default();
            let report = serde_json::json!({"node": "n1", "score": 1, "verdict": "", "checks": [
                {"id": "kubelet", "state": if said.contains("restart kubelet") { "ok" } else { "fail" }, "what": "", "why": ""}]});
            let mut answer = http::Response::new(yurt_transport::full(report.to_string()));
            if !said.contains("restart yurthub") {
                *answer.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
            }
            async move {
                drop(request);
                answer
            }
        };
        tokio::spawn(yurt_transport::serve(
            listener,
            None,
            yurt_transport::ServeOptions::default(),
            stop.clone(),
            handler,
        ));

        let mut host = Host::at(&root, &script, &address).unwrap();
        let lock = host.lock().unwrap();
        assert!(matches!(host.lock(), Err(Fault::Busy)));
        drop(lock);
        let drop_ins = [format!("/{DROP_IN}")];
        let done =
            carry_out::convert(&mut host, wish(Form::Systemd), &drop_ins, COMMAND, &|_| {}).await;
        assert_eq!(done.unwrap(), Done::Converted);
        let program = fs::read(root.join("usr/local/bin/yurthub")).unwrap();
        assert!(
            program == fs::read("/proc/self/exe").unwrap(),
            "another program was installed"
        );
        assert_eq!(
            fs::metadata(root.join(FLAGS)).unwrap().mode() & 0o777,
            0o604
        );
        let wanted = root.join("etc/systemd/system/multi-user.target.wants/yurthub.service");
        assert_eq!(
            fs::read_link(wanted).unwrap(),
            Path::new("/etc/systemd/system/yurthub.service")
        );
        let said = fs::read_to_string(&log).unwrap();
        let at = |wanted: &str| said.find(wanted).unwrap();
        assert!(
            at("restart yurthub.service") < at("restart kubelet"),
            "{said}"
        );

        let done = carry_out::revert(&mut host, wish(Form::Systemd), &|_| {}).await;
        assert_eq!(done.unwrap(), Done::Reverted);
        let after = listing(&root);
        assert!(after == before, "{after:#?}");
        // Nothing but the hub and the kubelet was touched: no container was restarted.
        let said = fs::read_to_string(&log).unwrap();
        let mut words: Vec<&str> = said
            .lines()
            .filter(|line| !line.starts_with("is-active"))
            .collect();
        words.sort_unstable();
        words.dedup();
        let asked = [
            "daemon-reload",
            "restart kubelet",
            "restart yurthub.service",
            "stop yurthub.service",
        ];
        assert_eq!(words, asked);
        stop.cancel();
    }

    #[tokio::test]
    async fn what_systemctl_says_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut host = Host::at(dir.path(), Path::new("false"), "http://127.0.0.1:1").unwrap();
        let fault = host.systemctl(&["restart", "kubelet"]).await.unwrap_err();
        assert!(
            fault
                .to_string()
                .starts_with("systemctl restart kubelet: exit status: 1"),
            "{fault}"
        );
        assert!(matches!(host.hub().await, Seen::Silent(_)));
    }
}
