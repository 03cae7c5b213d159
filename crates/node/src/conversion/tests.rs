use super::{
    carry_out::{Done, convert, facts, node_name, preview, revert},
    fault::Fault,
    machine::{Hub, Kind, Machine},
    plan::{CA, DATA, FLAGS, Form, PAIR, PROGRAM, UNIT, UNIT_FILE, WANTED, tests::wish},
};
use proptest::prelude::*;
use std::{collections::BTreeMap, time::Duration};

const DROP_IN: &str = "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf";
const KUBECONFIG: &str = "/etc/kubernetes/kubelet.conf";
const STATIC: &str = "/etc/kubernetes/manifests/yurt-hub.yaml";
const WAIT: Duration = Duration::from_secs(300);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File(String, u32),
    Link(String),
}

/// What goes wrong on a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Trouble {
    #[default]
    None,
    /// The hub's certificate is no good.
    HubNeverReady,
    /// The kubelet does not start with its new flags.
    KubeletFails,
    /// It starts, and goes on with the API server.
    KubeletElsewhere,
    /// It starts under no circumstances.
    KubeletNeverAgain,
}

/// A machine in memory: what runs follows from its files, as systemd and a kubelet have it.
#[derive(Clone, Debug)]
struct Fake {
    files: BTreeMap<String, Node>,
    /// How many changes and commands it still does before it is ended.
    fuel: usize,
    trouble: Trouble,
    hub_runs: bool,
    /// The kubeconfig that the kubelet was started with; `None` when it does not run.
    kubelet: Option<String>,
}

impl Fake {
    fn new(more: &[(&str, &str)]) -> Self {
        let mut fake = Self {
            files: BTreeMap::new(),
            fuel: usize::MAX,
            trouble: Trouble::None,
            hub_runs: false,
            kubelet: Some(KUBECONFIG.into()),
        };
        let base = [
            (
                DROP_IN,
                "Environment=\"KUBELET_KUBECONFIG_ARGS=--kubeconfig=/etc/kubernetes/kubelet.conf\"\nExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_KUBEADM_ARGS\n",
            ),
            (
                KUBECONFIG,
                "clusters: [{name: c, cluster: {server: 'https://10.0.0.1:6443'}}]\n",
            ),
            (FLAGS, "KUBELET_KUBEADM_ARGS=\"--a=b\"\n"),
            (CA, "ca"),
            (PAIR, "pair"),
            ("/etc/hostname", "Host-1\n"),
            ("/usr/local/bin/kubectl", "kubectl"),
            (
                "/etc/systemd/system/multi-user.target.wants/kubelet.service",
                "unit",
            ),
            ("/run/x", ""),
            ("/var/lib/x", ""),
        ];
        for (path, text) in base.iter().chain(more) {
            fake.put(path, Node::File((*text).into(), 0o640));
        }
        fake.put("/etc/kubernetes/manifests/x", Node::Directory);
        fake
    }

    fn put(&mut self, path: &str, node: Node) {
        for (at, _) in path.match_indices('/').filter(|(at, _)| *at > 0) {
            self.files
                .entry(path[..at].to_owned())
                .or_insert(Node::Directory);
        }
        self.files.insert(path.to_owned(), node);
    }

    fn burn(&mut self) -> Result<(), Fault> {
        self.fuel = self.fuel.checked_sub(1).ok_or(Fault::Ended)?;
        Ok(())
    }

    fn error(path: &str, kind: std::io::ErrorKind) -> Fault {
        Fault::file(path)(kind.into())
    }

    fn place(&mut self, path: &str, node: Node) -> Result<(), Fault> {
        self.burn()?;
        let parent = path.rsplit_once('/').unwrap().0;
        if self.files.get(parent) != Some(&Node::Directory) {
            return Err(Self::error(path, std::io::ErrorKind::NotFound));
        }
        self.files.insert(path.to_owned(), node);
        Ok(())
    }

    /// A hub makes its directories when it starts.
    fn start_hub(&mut self) {
        self.hub_runs = true;
        self.put("/var/lib/yurthub/pki/key", Node::File("k".into(), 0o600));
        self.put(
            "/etc/kubernetes/cache/segment",
            Node::File("s".into(), 0o600),
        );
    }

    fn text(&self, path: &str) -> String {
        match self.files.get(path) {
            Some(Node::File(text, _)) => text.clone(),
            other => format!("{other:?}"),
        }
    }

    async fn convert(&mut self, form: Form) -> Result<Done, Fault> {
        convert(self, wish(form), &[DROP_IN.into()], WAIT, &|_| {}).await
    }

    async fn revert(&mut self) -> Result<Done, Fault> {
        revert(self, wish(Form::Systemd), &|_| {}).await
    }

    /// Files, without directories that nothing is in, and without what hubs wrote in directories of
    /// their own that `before` had already.
    fn all_files(&self, before: &Fake) -> BTreeMap<&String, &Node> {
        let of_hubs = |path: &str| {
            DATA.iter()
                .any(|dir| path.starts_with(dir) && before.files.contains_key(*dir))
        };
        let files = self
            .files
            .iter()
            .filter(|(_, node)| **node != Node::Directory);
        files.filter(|(path, _)| !of_hubs(path)).collect()
    }
}

impl Machine for Fake {
    fn kind(&self, path: &str) -> Result<Kind, Fault> {
        Ok(match self.files.get(path) {
            None => Kind::Nothing,
            Some(Node::Directory) => Kind::Directory,
            Some(_) => Kind::File,
        })
    }

    fn read(&self, path: &str) -> Result<Option<String>, Fault> {
        match self.files.get(path) {
            Some(Node::File(text, _)) => Ok(Some(text.clone())),
            Some(_) => Err(Self::error(path, std::io::ErrorKind::IsADirectory)),
            None => Ok(None),
        }
    }

    fn write(&mut self, path: &str, text: &str, mode: Option<u32>) -> Result<(), Fault> {
        let kept = match self.files.get(path) {
            Some(Node::File(_, mode)) => *mode,
            _ => 0o600,
        };
        self.place(path, Node::File(text.into(), mode.unwrap_or(kept)))
    }

    fn link(&mut self, path: &str, target: &str) -> Result<(), Fault> {
        self.place(path, Node::Link(target.into()))
    }

    fn install(&mut self, path: &str) -> Result<(), Fault> {
        self.place(path, Node::File("yurt".into(), 0o755))
    }

    fn copy(&mut self, from: &str, to: &str) -> Result<(), Fault> {
        let node = self.files.get(from).cloned();
        self.place(
            to,
            node.ok_or_else(|| Self::error(from, std::io::ErrorKind::NotFound))?,
        )
    }

    fn remove(&mut self, path: &str) -> Result<(), Fault> {
        self.burn()?;
        if path == STATIC {
            self.hub_runs = false;
        }
        self.files.remove(path);
        Ok(())
    }

    fn remove_all(&mut self, path: &str) -> Result<(), Fault> {
        self.burn()?;
        self.files
            .retain(|known, _| known != path && !known.starts_with(&format!("{path}/")));
        Ok(())
    }

    fn make_directory(&mut self, path: &str) -> Result<(), Fault> {
        self.burn()?;
        self.put(path, Node::Directory);
        Ok(())
    }

    fn remove_empty(&mut self, path: &str) -> Result<(), Fault> {
        self.burn()?;
        if !self
            .files
            .keys()
            .any(|known| known.starts_with(&format!("{path}/")))
        {
            self.files.remove(path);
        }
        Ok(())
    }

    async fn systemctl(&mut self, words: &[&str]) -> Result<(), Fault> {
        self.burn()?;
        let failed = || Fault::Command {
            command: words.join(" "),
            said: "failed".into(),
        };
        match words {
            ["daemon-reload"] => Ok(()),
            ["stop", UNIT] if self.files.contains_key(UNIT_FILE) => {
                self.hub_runs = false;
                Ok(())
            }
            ["restart" | "start", UNIT] if self.files.contains_key(UNIT_FILE) => {
                self.start_hub();
                Ok(())
            }
            ["restart", "kubelet"] => {
                let flags = self.text(FLAGS);
                let behind = flags.contains("--kubeconfig=/var/lib/openyurt/kubelet.conf");
                let fails = self.trouble == Trouble::KubeletNeverAgain
                    || behind
                        && (self.trouble == Trouble::KubeletFails
                            || !self.files.contains_key("/var/lib/openyurt/kubelet.conf"));
                self.kubelet = (!fails).then(|| if behind { "hub" } else { KUBECONFIG }.to_owned());
                Ok(())
            }
            _ => Err(failed()),
        }
    }

    async fn is_active(&mut self, unit: &str) -> bool {
        match unit {
            UNIT => self.hub_runs && self.files.contains_key(UNIT_FILE),
            _ => self.kubelet.is_some(),
        }
    }

    async fn hub(&mut self) -> Hub {
        // The kubelet runs what stands in its directory.
        if self.files.contains_key(STATIC) && !self.hub_runs {
            self.start_hub();
        }
        if !self.hub_runs || self.trouble == Trouble::HubNeverReady {
            return Hub::Silent("refused".into());
        }
        let elsewhere = self.trouble == Trouble::KubeletElsewhere;
        match self.kubelet.as_deref() {
            Some("hub") if !elsewhere => Hub::Used,
            _ => Hub::Ready,
        }
    }
}

/// What may be on a node before.
fn some_files() -> impl Strategy<Value = Fake> {
    let maybe = |path: &'static str| prop::option::of(Just((path, "of before")));
    let choices = (
        maybe(PROGRAM),
        maybe("/var/lib/openyurt/other"),
        maybe("/var/lib/yurthub/pki/old"),
        maybe(UNIT_FILE),
        maybe("/var/lib/openyurt/kubelet.conf"),
    );
    (choices, any::<bool>()).prop_map(|((a, b, c, d, e), linked)| {
        let more: Vec<_> = [a, b, c, d, e].into_iter().flatten().collect();
        let mut fake = Fake::new(&more);
        if linked {
            fake.put(PROGRAM, Node::Link("yurt".into()));
        }
        fake
    })
}

fn run<T>(doing: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(doing)
}

fn form() -> impl Strategy<Value = Form> {
    prop_oneof![Just(Form::Systemd), Just(Form::StaticPod)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn ended_anywhere_and_reverted_a_node_is_byte_for_byte_as_before(
        before in some_files(), form in form(), fuel in 0usize..45, again in 0usize..30, third in 0usize..30,
    ) {
        let mut node = before.clone();
        node.fuel = fuel;
        let first = run(node.convert(form));
        prop_assert!(matches!(first, Ok(Done::Converted) | Err(Fault::Ended)), "{first:?}");
        // Ended within going back as well, twice.
        for fuel in [again, third] {
            node.fuel = fuel;
            let ended = run(node.revert());
            prop_assert!(matches!(ended, Ok(Done::Reverted | Done::Nothing) | Err(Fault::Ended)), "{ended:?}");
        }
        node.fuel = usize::MAX;
        run(node.revert()).unwrap();
        prop_assert_eq!(node.all_files(&before), before.all_files(&before));
        prop_assert_eq!(node.kubelet.as_deref(), Some(KUBECONFIG));
        prop_assert!(!node.hub_runs);
    }

    #[test]
    fn ended_anywhere_a_conversion_goes_on(before in some_files(), form in form(), fuel in 0usize..45) {
        let mut node = before.clone();
        node.fuel = fuel;
        let _ = run(node.convert(form));
        node.fuel = usize::MAX;
        let done = run(node.convert(form));
        prop_assert!(matches!(done, Ok(Done::Converted | Done::Already)), "{done:?}");
        prop_assert_eq!(node.kubelet.as_deref(), Some("hub"));
        let mut straight = before.clone();
        run(straight.convert(form)).unwrap();
        // Which directories there were not is known to the first run only.
        let mut seen = node.clone();
        for node in [&mut seen, &mut straight] {
            prop_assert!(node.files.remove("/var/lib/openyurt/conversion/journal.json").is_some());
        }
        prop_assert_eq!(seen.all_files(&before), straight.all_files(&before));
        // Again changes nothing.
        prop_assert_eq!(run(node.convert(form)).unwrap(), Done::Already);
        run(node.revert()).unwrap();
        prop_assert_eq!(node.all_files(&before), before.all_files(&before));
    }

    #[test]
    fn what_fails_is_undone_whole(before in some_files(), form in form(), trouble in 1usize..4) {
        let mut node = before.clone();
        node.trouble = [Trouble::HubNeverReady, Trouble::KubeletFails, Trouble::KubeletElsewhere][trouble - 1];
        let fault = run(node.convert(form)).unwrap_err();
        prop_assert!(matches!(fault, Fault::RolledBack { .. }), "{fault}");
        prop_assert_eq!(node.all_files(&before), before.all_files(&before));
        prop_assert_eq!(node.kubelet.as_deref(), Some(KUBECONFIG));
        prop_assert!(!node.hub_runs);
    }
}

#[test]
fn a_node_is_converted_and_reverted() {
    for form in [Form::Systemd, Form::StaticPod] {
        let before = Fake::new(&[]);
        let mut node = before.clone();
        assert_eq!(run(node.convert(form)).unwrap(), Done::Converted);
        assert_eq!(node.kubelet.as_deref(), Some("hub"));
        assert!(
            node.text(FLAGS)
                .contains("--a=b  --kubeconfig=/var/lib/openyurt/kubelet.conf")
        );
        assert_eq!(node.files.contains_key(WANTED), form == Form::Systemd);
        let other = super::plan::Wish {
            server: Some("https://b:1".into()),
            ..wish(form)
        };
        let refused = run(convert(&mut node, other, &[DROP_IN.into()], WAIT, &|_| {}));
        assert!(refused.unwrap_err().to_string().contains("revert` first"));
        assert_eq!(run(node.revert()).unwrap(), Done::Reverted);
        assert_eq!(node.files, before.files);
        assert_eq!(run(node.revert()).unwrap(), Done::Nothing);
    }
}

#[test]
fn who_changed_the_kubelets_flags_meanwhile_keeps_the_change() {
    let mut node = Fake::new(&[]);
    run(node.convert(Form::Systemd)).unwrap();
    let changed = node.text(FLAGS).replace("--a=b", "--a=c");
    node.put(FLAGS, Node::File(changed, 0o644));
    let refused = run(node.convert(Form::Systemd)).unwrap_err().to_string();
    assert!(refused.contains(FLAGS), "{refused}");
    run(node.revert()).unwrap();
    assert_eq!(node.text(FLAGS), "KUBELET_KUBEADM_ARGS=\"--a=c\"\n");
}

#[test]
fn a_kubelet_that_starts_no_more_is_told_and_gone_on_with() {
    let before = Fake::new(&[]);
    let mut node = before.clone();
    node.trouble = Trouble::KubeletNeverAgain;
    let fault = run(node.convert(Form::Systemd)).unwrap_err();
    assert!(matches!(fault, Fault::Stuck { .. }), "{fault}");
    assert!(fault.to_string().contains("journalctl"));
    node.trouble = Trouble::None;
    assert_eq!(run(node.revert()).unwrap(), Done::Reverted);
    assert_eq!(node.files, before.files);
}

#[test]
fn a_node_that_openyurt_converted_is_left_and_can_be_reverted() {
    let with = super::kubelet::with_redirection(
        "KUBELET_KUBEADM_ARGS=\"--a=b\"\n",
        "/var/lib/openyurt/kubelet.conf",
    )
    .unwrap();
    let mut node = Fake::new(&[
        (PROGRAM, "openyurt"),
        (UNIT_FILE, "unit"),
        (super::plan::UNIT_DROP_IN, "drop-in"),
        (WANTED, "unit"),
        ("/var/lib/openyurt/kubelet.conf", "c"),
        (FLAGS, &with),
    ]);
    node.start_hub();
    let before = node.clone();
    assert_eq!(run(node.convert(Form::Systemd)).unwrap(), Done::ByOpenYurt);
    assert_eq!(node.files, before.files);
    assert_eq!(run(node.revert()).unwrap(), Done::Reverted);
    assert_eq!(node.files, Fake::new(&[]).files);
    assert!(!node.hub_runs);
}

#[test]
fn a_node_that_does_not_fit_is_left() {
    let refused = |change: fn(&mut Fake)| {
        let mut node = Fake::new(&[]);
        change(&mut node);
        let before = node.files.clone();
        let fault = run(node.convert(Form::Systemd)).unwrap_err();
        assert_eq!(node.files, before);
        fault.to_string()
    };
    assert!(refused(|node| drop(node.files.remove(DROP_IN))).contains("kubeadm"));
    assert!(refused(|node| drop(node.files.remove(FLAGS))).contains(FLAGS));
    assert!(refused(|node| drop(node.files.remove(KUBECONFIG))).contains(KUBECONFIG));
    assert!(refused(|node| node.put(UNIT_FILE, Node::Directory)).contains("is a directory"));
    // A hub of somebody else's.
    assert!(
        refused(|node| {
            node.put(STATIC, Node::File("x".into(), 0o600));
            node.start_hub();
        })
        .contains("a hub answers")
    );
}

#[test]
fn what_a_node_is_called() {
    let mut node = Fake::new(&[]);
    let name = |node: &Fake| node_name(node, &[DROP_IN.into()]).unwrap();
    assert_eq!(name(&node), "host-1");
    node.put(
        FLAGS,
        Node::File(
            "KUBELET_KUBEADM_ARGS=\"--hostname-override=edge-1\"\n".into(),
            0o644,
        ),
    );
    assert_eq!(name(&node), "edge-1");
    let found = facts(&node, &["/none".into(), DROP_IN.into()]).unwrap();
    assert_eq!(found.kubeconfig.server, "https://10.0.0.1:6443");
    let steps = run(preview(&mut node, &wish(Form::Systemd), &[DROP_IN.into()])).unwrap();
    assert_eq!(
        steps[0].to_string(),
        "install this program as /usr/local/bin/yurthub"
    );
}
