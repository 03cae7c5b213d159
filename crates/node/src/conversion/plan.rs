//! What is done to a node so that it works through a hub: a function of what was asked for and what the node is. Pure.

use super::{
    fault::Fault,
    kubelet::{self, BEHIND_HUB, Kubeconfig},
};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt;

/// How the hub runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(super) enum Form {
    /// As a unit of systemd, which needs neither the kubelet nor an image.
    Systemd,
    /// As a static pod.
    StaticPod,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wish {
    pub(super) node: String,
    /// For messages: the hub follows the Node's label, so that a node that moves needs no other conversion.
    pub(super) pool: String,
    pub(super) form: Form,
    /// The hub's image, for a static pod.
    pub(super) image: String,
    /// In place of what the kubelet's kubeconfig says.
    pub(super) server: Option<String>,
    /// Where the kubelet's new kubeconfig and the journal are.
    pub(super) dir: String,
}

/// What the node is.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// kubeadm's drop-in of the kubelet's unit.
    pub(super) drop_in: String,
    /// `kubeadm-flags.env`.
    pub(super) flags: String,
    /// What the kubelet's present kubeconfig says.
    pub(super) kubeconfig: Kubeconfig,
    /// Whether kubeadm's CA is where hubs look for it.
    pub(super) has_ca: bool,
    /// Whether the kubelet's own pair is where hubs look for it.
    pub(super) has_pair: bool,
    /// Where the kubelet looks for static pods.
    pub(super) manifests: String,
}

pub(super) const FLAGS: &str = "/var/lib/kubelet/kubeadm-flags.env";
pub(super) const CA: &str = "/etc/kubernetes/pki/ca.crt";
pub(super) const PAIR: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";
/// Names of OpenYurt.
pub(super) const UNIT: &str = "yurthub.service";
pub(super) const UNIT_FILE: &str = "/etc/systemd/system/yurthub.service";
pub(super) const UNIT_DROP_IN: &str = "/etc/systemd/system/yurthub.service.d/10-yurthub.conf";
pub(super) const WANTED: &str = "/etc/systemd/system/multi-user.target.wants/yurthub.service";
pub(super) const PROGRAM: &str = "/usr/local/bin/yurthub";
/// What a hub writes.
pub(super) const DATA: [&str; 2] = ["/var/lib/yurthub", "/etc/kubernetes/cache"];
const MANIFEST: &str = "yurt-hub.yaml";

/// What becomes of one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Content {
    /// A file.
    Text {
        text: String,
        /// `None`: as before.
        mode: Option<u32>,
    },
    /// A symbolic link.
    Link(String),
    /// This program.
    Program,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Step {
    Write {
        path: String,
        content: Content,
    },
    /// systemd reads its units again.
    Reload,
    StartHub,
    /// The hub says that it can serve a kubelet.
    AwaitHub,
    RestartKubelet,
    /// The kubelet runs and talks through the hub.
    AwaitKubelet,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { path, content } => match content {
                Content::Text { .. } => write!(f, "write {path}"),
                Content::Link(target) => write!(f, "link {path} to {target}"),
                Content::Program => write!(f, "install this program as {path}"),
            },
            Self::Reload => f.write_str("systemctl daemon-reload"),
            Self::StartHub => write!(f, "systemctl restart {UNIT}"),
            Self::AwaitHub => f.write_str("wait until the hub is ready"),
            Self::RestartKubelet => f.write_str("systemctl restart kubelet"),
            Self::AwaitKubelet => f.write_str("wait until the kubelet talks through the hub"),
        }
    }
}

/// Whether a text may stand in a unit, a manifest and a path without meaning anything else there.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 512
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._:/@[],".contains(&b))
}

fn plain(what: &str, text: &str) -> Result<(), Fault> {
    if is_plain(text) {
        return Ok(());
    }
    Err(Fault::Unfit(format!("{what} {text:?} is none")))
}

/// The kubelet's kubeconfig in a directory.
pub(super) fn kubeconfig_in(dir: &str) -> String {
    format!("{dir}/kubelet.conf")
}

/// The API servers that the hub is to have, with their scheme.
fn servers(wish: &Wish, facts: &Facts) -> Result<String, Fault> {
    let given = wish.server.as_ref().unwrap_or(&facts.kubeconfig.server);
    let all = given.split(',').map(str::trim).map(|server| {
        let server = match server.split_once("://") {
            None => format!("https://{server}"),
            Some(_) => server.to_owned(),
        };
        plain("the API server", &server)?;
        if !server.starts_with("https://") {
            return Err(Fault::Unfit(format!(
                "{server} is no API server that a hub may have (https only); --server-addr says which is"
            )));
        }
        Ok(server.trim_end_matches('/').to_owned())
    });
    Ok(all.collect::<Result<Vec<_>, _>>()?.join(","))
}

/// How the hub shows who the node is: as the kubelet does.
fn credentials(facts: &Facts) -> Result<Vec<String>, Fault> {
    let config = &facts.kubeconfig;
    let mut flags = match (&config.client_cert, &config.client_key) {
        (Some(cert), Some(key)) if cert != PAIR => {
            vec![
                format!("--client-cert={cert}"),
                format!("--client-key={key}"),
            ]
        }
        _ if facts.has_pair => vec!["--bootstrap-mode=kubeletcertificate".to_owned()],
        _ => {
            return Err(Fault::Unfit(format!(
                "the kubelet has no certificate of its own: neither its kubeconfig names files nor is there {PAIR}"
            )));
        }
    };
    match &config.ca_file {
        Some(ca) => flags.push(format!("--ca-file={ca}")),
        None if facts.has_ca => {}
        None => {
            return Err(Fault::Unfit(format!(
                "there is no {CA}, and the kubelet's kubeconfig names no file with the CA"
            )));
        }
    }
    for flag in &flags {
        plain(
            "the flag",
            flag.trim_start_matches("--").replacen('=', "", 1).as_str(),
        )?;
    }
    Ok(flags)
}

/// The drop-in of the hub's unit: OpenYurt's variables, so that what edits them goes on working.
fn unit_drop_in(credentials: &str, node: &str, servers: &str) -> String {
    format!(
        "# Made by `yurt node convert`; `yurt node revert` takes it away.\n[Service]\n\
         Environment=\"YURTHUB_BOOTSTRAP_ARGS={credentials}\"\n\
         Environment=\"YURTHUB_CONFIG_ARGS=--node-name={node} --server-addr={servers} --working-mode=edge\"\n\
         Environment=\"YURTHUB_EXTRA_ARGS=\"\nExecStart=\n\
         ExecStart={PROGRAM} $YURTHUB_BOOTSTRAP_ARGS $YURTHUB_CONFIG_ARGS $YURTHUB_EXTRA_ARGS\n"
    )
}

/// The manifest of the hub's static pod: the one that is shipped, filled in. JSON, which is YAML too.
fn manifest(image: &str, arguments: &[String]) -> Result<String, Fault> {
    let shipped = include_str!("../../../../deploy/yurt-hub.yaml");
    let mut pod: Value = serde_saphyr::from_str(shipped)
        .map_err(|error| Fault::Unfit(format!("the shipped manifest: {error}")))?;
    let mut command = vec!["/usr/local/bin/yurt".to_owned(), "hub".to_owned()];
    command.extend_from_slice(arguments);
    if let Some(container) = pod.pointer_mut("/spec/containers/0") {
        container["image"] = image.into();
        container["command"] = command.into();
        if let Some(mounts) = container["volumeMounts"].as_array_mut() {
            mounts.push(
                json!({"name": "kubelet", "mountPath": "/var/lib/kubelet/pki", "readOnly": true}),
            );
        }
    }
    if let Some(volumes) = pod
        .pointer_mut("/spec/volumes")
        .and_then(Value::as_array_mut)
    {
        volumes.push(json!({"name": "kubelet", "hostPath": {"path": "/var/lib/kubelet/pki", "type": "Directory"}}));
    }
    Ok(format!("{pod:#}\n"))
}

/// The steps.
pub(super) fn plan(wish: &Wish, facts: &Facts) -> Result<Vec<Step>, Fault> {
    plain("the node's name", &wish.node)?;
    plain("the directory", &wish.dir)?;
    if !facts.drop_in.contains("$KUBELET_KUBEADM_ARGS") {
        return Err(Fault::Unfit(
            "the kubelet's unit does not use $KUBELET_KUBEADM_ARGS: this is no node of kubeadm"
                .into(),
        ));
    }
    let servers = servers(wish, facts)?;
    let credentials = credentials(facts)?;
    let write = |path: &str, text: String, mode: Option<u32>| Step::Write {
        path: path.to_owned(),
        content: Content::Text { text, mode },
    };
    let mut steps = match wish.form {
        Form::Systemd => vec![
            Step::Write {
                path: PROGRAM.into(),
                content: Content::Program,
            },
            write(
                UNIT_FILE,
                include_str!("../../../../deploy/yurt-hub.service").into(),
                Some(0o644),
            ),
            write(
                UNIT_DROP_IN,
                unit_drop_in(&credentials.join(" "), &wish.node, &servers),
                Some(0o644),
            ),
            Step::Write {
                path: WANTED.into(),
                content: Content::Link(UNIT_FILE.into()),
            },
            Step::Reload,
            Step::StartHub,
        ],
        Form::StaticPod => {
            plain("--hub-image", &wish.image)?;
            plain("the directory of static pods", &facts.manifests)?;
            let mut arguments = vec![
                format!("--node-name={}", wish.node),
                format!("--server-addr={servers}"),
                "--working-mode=edge".to_owned(),
            ];
            arguments.extend(credentials);
            let path = format!("{}/{MANIFEST}", facts.manifests);
            vec![write(
                &path,
                manifest(&wish.image, &arguments)?,
                Some(0o600),
            )]
        }
    };
    let kubeconfig = kubeconfig_in(&wish.dir);
    let flags = kubelet::with_redirection(&facts.flags, &kubeconfig)?;
    steps.extend([
        Step::AwaitHub,
        write(&kubeconfig, BEHIND_HUB.into(), Some(0o600)),
        write(FLAGS, flags, None),
        Step::Reload,
        Step::RestartKubelet,
        Step::AwaitKubelet,
    ]);
    Ok(steps)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn wish(form: Form) -> Wish {
        Wish {
            node: "n1".into(),
            pool: "p".into(),
            form,
            image: "registry.example/yurt:1".into(),
            server: None,
            dir: "/var/lib/openyurt".into(),
        }
    }

    fn facts() -> Facts {
        Facts {
            drop_in: "ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_KUBEADM_ARGS"
                .into(),
            flags: "KUBELET_KUBEADM_ARGS=\"\"\n".into(),
            kubeconfig: Kubeconfig {
                server: "https://10.0.0.1:6443".into(),
                ..Kubeconfig::default()
            },
            has_ca: true,
            has_pair: true,
            manifests: "/etc/kubernetes/manifests".into(),
        }
    }

    fn text(steps: &[Step], wanted: &str) -> String {
        let found = steps.iter().find_map(|step| match step {
            Step::Write {
                path,
                content: Content::Text { text, .. },
            } if path == wanted => Some(text),
            _ => None,
        });
        found.cloned().unwrap_or_default()
    }

    #[test]
    fn the_kubelet_is_sent_to_a_hub_that_is_ready() {
        for form in [Form::Systemd, Form::StaticPod] {
            let steps = plan(&wish(form), &facts()).unwrap();
            let at = |wanted: &dyn Fn(&Step) -> bool| steps.iter().position(wanted).unwrap();
            let ready = at(&|step| *step == Step::AwaitHub);
            let sent = at(&|step| matches!(step, Step::Write { path, .. } if path == FLAGS));
            let restarted = at(&|step| *step == Step::RestartKubelet);
            assert!(ready < sent && sent < restarted, "{steps:?}");
            assert_eq!(steps.last(), Some(&Step::AwaitKubelet));
        }
    }

    #[test]
    fn the_hub_is_given_what_the_kubelet_has() {
        let steps = plan(&wish(Form::Systemd), &facts()).unwrap();
        let drop_in = text(&steps, UNIT_DROP_IN);
        assert!(drop_in.contains("--node-name=n1 --server-addr=https://10.0.0.1:6443"));
        assert!(drop_in.contains("BOOTSTRAP_ARGS=--bootstrap-mode=kubeletcertificate\""));
        let mut other = facts();
        other.kubeconfig.ca_file = Some("/ca.crt".into());
        other.kubeconfig.client_cert = Some("/c.pem".into());
        other.kubeconfig.client_key = Some("/k.pem".into());
        (other.has_ca, other.has_pair) = (false, false);
        let asked = Wish {
            server: Some("10.0.0.2:6443,https://10.0.0.3".into()),
            ..wish(Form::Systemd)
        };
        let drop_in = text(&plan(&asked, &other).unwrap(), UNIT_DROP_IN);
        assert!(drop_in.contains("--client-cert=/c.pem --client-key=/k.pem --ca-file=/ca.crt"));
        assert!(drop_in.contains("--server-addr=https://10.0.0.2:6443,https://10.0.0.3 "));
        let steps = plan(&wish(Form::StaticPod), &facts()).unwrap();
        let pod: Value =
            serde_saphyr::from_str(&text(&steps, "/etc/kubernetes/manifests/yurt-hub.yaml"))
                .unwrap();
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["image"], "registry.example/yurt:1");
        assert_eq!(container["command"][2], "--node-name=n1");
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let change = |change: fn(&mut Wish, &mut Facts)| {
            let (mut wish, mut facts) = (wish(Form::StaticPod), facts());
            change(&mut wish, &mut facts);
            plan(&wish, &facts).unwrap_err().to_string()
        };
        assert!(change(|w, _| w.node = "a b".into()).contains("name"));
        assert!(change(|w, _| w.image = "i\"".into()).contains("--hub-image"));
        assert!(change(|_, f| f.drop_in.clear()).contains("kubeadm"));
        assert!(change(|_, f| f.flags.clear()).contains("kubeadm-flags.env"));
        assert!(change(|_, f| f.has_pair = false).contains("certificate"));
        assert!(change(|_, f| f.has_ca = false).contains("CA"));
        assert!(change(|_, f| f.kubeconfig.ca_file = Some("/a%i".into())).contains("flag"));
        assert!(
            change(|_, f| f.kubeconfig.server = "http://127.0.0.1:10261".into())
                .contains("--server-addr")
        );
    }
}
