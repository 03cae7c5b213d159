//! Converts and reverts a machine, by a plan and a journal. It may be ended at any point: the next run goes on, or undoes.

use super::{
    fault::Fault,
    journal::{Journal, Phase},
    kubelet,
    machine::{Hub, Kind, Machine},
    plan::{
        CA, Content, FLAGS, Facts, Form, PAIR, PROGRAM, Step, UNIT, UNIT_DROP_IN, UNIT_FILE,
        WANTED, Wish, kubeconfig_in, plan,
    },
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between looks.
const LOOK: Duration = Duration::from_secs(1);
/// So many looks in a row the kubelet is to talk through the hub.
const ENOUGH: u8 = 3;
/// How long a kubelet may take to run again, and a hub to end.
const SETTLES: Duration = Duration::from_secs(60);

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Done {
    Converted,
    /// It was before.
    Already,
    /// By OpenYurt, which keeps no journal.
    ByOpenYurt,
    Reverted,
    /// There was nothing to revert.
    Nothing,
}

/// What is told meanwhile.
pub(super) type Tell<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// Whether OpenYurt, or a conversion whose journal is lost, sent the kubelet to its hub.
fn is_redirected(machine: &impl Machine, dir: &str) -> Result<bool, Fault> {
    let flags = machine.read(FLAGS)?.unwrap_or_default();
    Ok(flags.contains(kubelet::redirection(&kubeconfig_in(dir)).trim()))
}

/// What the node is. `drop_ins`: where kubeadm's drop-in may be, the first that is there.
pub(super) fn facts(machine: &impl Machine, drop_ins: &[String]) -> Result<Facts, Fault> {
    let read = |path: &str| machine.read(path);
    let mut drop_in = None;
    for path in drop_ins {
        drop_in = drop_in.or(read(path)?);
    }
    let unfit = |why: String| Fault::Unfit(why);
    let drop_in = drop_in.ok_or_else(|| {
        unfit(format!(
            "none of {} is there: is this a node of kubeadm? --kubeadm-conf-path says where",
            drop_ins.join(", ")
        ))
    })?;
    let flags = read(FLAGS)?.ok_or_else(|| unfit(format!("{FLAGS} is not there")))?;
    // Flags of the kubelet's own file win over the drop-in's.
    let path =
        kubelet::flag(&flags, " --kubeconfig").or_else(|| kubelet::flag(&drop_in, "--kubeconfig"));
    let path = path.unwrap_or("/etc/kubernetes/kubelet.conf");
    let text = read(path)?
        .ok_or_else(|| unfit(format!("the kubelet's kubeconfig {path} is not there")))?;
    let config = read("/var/lib/kubelet/config.yaml")?.unwrap_or_default();
    let config: serde_json::Value = serde_saphyr::from_str(&config).unwrap_or_default();
    let manifests = config["staticPodPath"]
        .as_str()
        .unwrap_or("/etc/kubernetes/manifests");
    Ok(Facts {
        kubeconfig: kubelet::kubeconfig(&text)?,
        has_ca: machine.kind(CA)? == Kind::File,
        has_pair: machine.kind(PAIR)? == Kind::File,
        manifests: manifests.trim_end_matches('/').to_owned(),
        drop_in,
        flags,
    })
}

/// The node's name, where nobody says it: what the kubelet is told, or the machine's.
pub(super) fn node_name(machine: &impl Machine, drop_ins: &[String]) -> Result<String, Fault> {
    let files = drop_ins.iter().map(String::as_str).chain([FLAGS]);
    for path in files {
        let text = machine.read(path)?.unwrap_or_default();
        if let Some(name) = kubelet::flag(&text, "--hostname-override") {
            return Ok(name.to_owned());
        }
    }
    let name = machine.read("/etc/hostname")?.unwrap_or_default();
    Ok(name.trim().to_ascii_lowercase())
}

/// The steps that a conversion would take.
pub(super) async fn preview(
    machine: &mut impl Machine,
    wish: &Wish,
    drop_ins: &[String],
) -> Result<Vec<Step>, Fault> {
    if let Hub::Ready | Hub::Used = machine.hub().await
        && !machine.is_active(UNIT).await
    {
        return Err(Fault::Unfit(
            "a hub answers on this node already, and is no unit yurthub.service: it is to be taken away first".into(),
        ));
    }
    plan(wish, &facts(machine, drop_ins)?)
}

/// Makes a node work through a hub, whole or not at all.
pub(super) async fn convert(
    machine: &mut impl Machine,
    wish: Wish,
    drop_ins: &[String],
    wait: Duration,
    tell: Tell<'_>,
) -> Result<Done, Fault> {
    let journal = match Journal::read(machine, &wish.dir)? {
        Some(journal) if journal.phase == Phase::Converted => {
            return stands(machine, &journal, &wish);
        }
        Some(journal) if journal.phase == Phase::Converting && journal.wish == wish => {
            tell("going on with a conversion that was ended in the middle");
            Some(journal)
        }
        Some(journal) => {
            tell("undoing what was ended in the middle");
            undo(machine, journal, tell).await?;
            None
        }
        None => None,
    };
    let journal = match journal {
        Some(journal) => journal,
        None if is_redirected(machine, &wish.dir)? => return Ok(Done::ByOpenYurt),
        None => {
            Journal::sweep(machine, &wish.dir)?;
            let steps = preview(machine, &wish, drop_ins).await?;
            let dir = wish.dir.clone();
            match Journal::begin(machine, wish, steps).await {
                Err(why) if !matches!(why, Fault::Ended) => {
                    Journal::sweep(machine, &dir)?;
                    return Err(why);
                }
                begun => begun?,
            }
        }
    };
    let mut journal = journal;
    for number in 0..journal.steps.len() {
        let Some(step) = journal.steps.get(number).cloned() else {
            break;
        };
        tell(&step.to_string());
        match take(machine, &mut journal, &step, wait).await {
            Ok(()) => {}
            Err(Fault::Ended) => return Err(Fault::Ended),
            Err(why) => {
                tell(&format!("{why}: going back"));
                let (step, said) = (step.to_string(), why.to_string());
                return Err(match undo(machine, journal, tell).await {
                    Ok(()) => Fault::RolledBack {
                        step,
                        why: Box::new(why),
                    },
                    Err(Fault::Ended) => Fault::Ended,
                    Err(undoing) => Fault::Stuck {
                        why: format!("{step}: {said}"),
                        undoing: Box::new(undoing),
                    },
                });
            }
        }
    }
    journal.phase = Phase::Converted;
    journal.write(machine)?;
    Ok(Done::Converted)
}

/// Whether a converted node is still as it was left, for the same wish.
fn stands(machine: &impl Machine, journal: &Journal, wish: &Wish) -> Result<Done, Fault> {
    let same = Wish {
        pool: wish.pool.clone(),
        ..journal.wish.clone()
    };
    if same != *wish {
        return Err(Fault::Unfit(
            "the node is converted in another way; `yurt node revert` first".into(),
        ));
    }
    for step in &journal.steps {
        if let Step::Write {
            path,
            content: Content::Text { text, .. },
        } = step
            && machine.read(path)?.as_deref() != Some(text)
        {
            return Err(Fault::Unfit(format!(
                "the node is converted, but {path} was changed since; `yurt node revert` first"
            )));
        }
    }
    Ok(Done::Already)
}

/// Takes one step. Again does no harm.
async fn take(
    machine: &mut impl Machine,
    journal: &mut Journal,
    step: &Step,
    wait: Duration,
) -> Result<(), Fault> {
    match step {
        Step::Write { path, content } => {
            if path == FLAGS && !journal.is_kubelet_touched {
                journal.is_kubelet_touched = true;
                journal.write(machine)?;
            }
            if let Some((parent, _)) = path.rsplit_once('/') {
                machine.make_directory(parent)?;
            }
            match content {
                Content::Text { text, mode } => machine.write(path, text, *mode),
                Content::Link(target) => machine.link(path, target),
                Content::Program => machine.install(path),
            }
        }
        Step::Reload => machine.systemctl(&["daemon-reload"]).await,
        Step::StartHub => machine.systemctl(&["restart", UNIT]).await,
        Step::RestartKubelet => machine.systemctl(&["restart", "kubelet"]).await,
        Step::AwaitHub => {
            until(machine, wait, 1, async |machine| {
                match machine.hub().await {
                    Hub::Silent(why) => Err(format!("the hub is not ready: {why}")),
                    Hub::Ready | Hub::Used => Ok(()),
                }
            })
            .await
        }
        Step::AwaitKubelet => {
            until(machine, wait, ENOUGH, async |machine| {
                if !machine.is_active("kubelet").await {
                    return Err("the kubelet does not run (journalctl -u kubelet)".into());
                }
                match machine.hub().await {
                    Hub::Used => Ok(()),
                    Hub::Ready => Err("the kubelet did not talk through the hub".into()),
                    Hub::Silent(why) => Err(format!("the hub went away: {why}")),
                }
            })
            .await
        }
    }
}

/// Looks until it is so at some looks in a row, for a bounded time.
async fn until<M: Machine>(
    machine: &mut M,
    wait: Duration,
    enough: u8,
    look: impl AsyncFn(&mut M) -> Result<(), String>,
) -> Result<(), Fault> {
    let deadline = Instant::now() + wait;
    let mut good = 0;
    loop {
        let why = match look(machine).await {
            Ok(()) => {
                good += 1;
                if good == enough {
                    return Ok(());
                }
                "it was not so for long enough".to_owned()
            }
            Err(why) => {
                good = 0;
                why
            }
        };
        if Instant::now() >= deadline {
            return Err(Fault::Late {
                seconds: wait.as_secs(),
                why,
            });
        }
        sleep(LOOK).await;
    }
}

/// Undoes a conversion, wherever it is.
pub(super) async fn revert(
    machine: &mut impl Machine,
    wish: Wish,
    tell: Tell<'_>,
) -> Result<Done, Fault> {
    let journal = match Journal::read(machine, &wish.dir)? {
        Some(journal) => journal,
        None if is_redirected(machine, &wish.dir)? => {
            tell("the node was converted by OpenYurt, which keeps no journal: what it makes goes");
            let flags = machine.read(FLAGS)?.unwrap_or_default();
            let flags = kubelet::without_redirection(&flags, &kubeconfig_in(&wish.dir));
            let made = [PROGRAM, UNIT_FILE, UNIT_DROP_IN, WANTED];
            Journal::of_openyurt(machine, wish, &made, &flags)?
        }
        None => {
            Journal::sweep(machine, &wish.dir)?;
            return Ok(Done::Nothing);
        }
    };
    undo(machine, journal, tell).await?;
    Ok(Done::Reverted)
}

/// Restores a path.
fn restore(machine: &mut impl Machine, journal: &Journal, path: &str) -> Result<(), Fault> {
    let Some(before) = journal.before.iter().find(|before| before.path == path) else {
        return Ok(());
    };
    match &before.kept {
        Some(kept) => machine.copy(kept, path),
        None => machine.remove(path),
    }
}

/// Restores the kubelet's flags. Who changed them since keeps the change.
fn restore_flags(machine: &mut impl Machine, journal: &Journal) -> Result<(), Fault> {
    let now = machine.read(FLAGS)?;
    let ours = match journal.written(FLAGS) {
        Some(Content::Text { text, .. }) => Some(text),
        _ => None,
    };
    let kept = journal.before.iter().find(|before| before.path == FLAGS);
    let kept = kept.and_then(|before| before.kept.as_deref());
    let before = match kept {
        Some(kept) => machine.read(kept)?,
        None => None,
    };
    match (now, ours) {
        (Some(now), Some(ours)) if now != *ours && Some(&now) != before.as_ref() => {
            let kubeconfig = kubeconfig_in(&journal.wish.dir);
            machine.write(
                FLAGS,
                &kubelet::without_redirection(&now, &kubeconfig),
                None,
            )
        }
        _ => restore(machine, journal, FLAGS),
    }
}

/// Makes the node what it was: the kubelet first, so that it is never without a server.
async fn undo(
    machine: &mut impl Machine,
    mut journal: Journal,
    tell: Tell<'_>,
) -> Result<(), Fault> {
    if journal.phase != Phase::Reverting {
        journal.phase = Phase::Reverting;
        journal.write(machine)?;
    }
    if journal.is_kubelet_touched {
        tell("the kubelet goes back to its own kubeconfig");
        restore_flags(machine, &journal)?;
        machine.systemctl(&["daemon-reload"]).await?;
        machine.systemctl(&["restart", "kubelet"]).await?;
        until(machine, SETTLES, 1, async |machine| {
            let active = machine.is_active("kubelet").await;
            active
                .then_some(())
                .ok_or_else(|| "the kubelet does not run (journalctl -u kubelet)".to_owned())
        })
        .await?;
    }
    tell("the hub ends");
    let is_unit = journal.wish.form == Form::Systemd;
    if is_unit && machine.kind(UNIT_FILE)? == Kind::File {
        machine.systemctl(&["stop", UNIT]).await?;
    }
    let paths: Vec<String> = journal
        .before
        .iter()
        .map(|before| before.path.clone())
        .collect();
    for path in paths.iter().rev().filter(|path| *path != FLAGS) {
        restore(machine, &journal, path)?;
    }
    if is_unit {
        machine.systemctl(&["daemon-reload"]).await?;
        if journal.ran_before {
            machine.systemctl(&["start", UNIT]).await?;
        }
    } else {
        until(machine, SETTLES, 1, async |machine| {
            match machine.hub().await {
                Hub::Silent(_) => Ok(()),
                Hub::Ready | Hub::Used => Err("the hub's pod has not ended".to_owned()),
            }
        })
        .await?;
    }
    for path in &journal.data {
        machine.remove_all(path)?;
    }
    journal.end(machine)
}
