//! What a conversion has to know to go on or to undo: written before anything else is, gone when the node is as it was.

use super::{
    fault::Fault,
    machine::{Kind, Machine},
    plan::{Content, DATA, FLAGS, Form, Step, UNIT, Wish, kubeconfig_in},
};
use serde::{Deserialize, Serialize};

/// Where a conversion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    Converting,
    Converted,
    Reverting,
}

/// What was at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Before {
    pub(super) path: String,
    /// Where it is kept; `None` when there was nothing.
    pub(super) kept: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    pub(super) phase: Phase,
    pub(super) wish: Wish,
    pub(super) steps: Vec<Step>,
    pub(super) before: Vec<Before>,
    /// Directories that there were not, parents first.
    pub(super) directories: Vec<String>,
    /// Directories of the hub that there were not.
    pub(super) data: Vec<String>,
    /// Whether a unit of the hub's name ran before.
    pub(super) ran_before: bool,
    /// Whether the kubelet's flags may have been changed, so that it is to be restarted.
    pub(super) is_kubelet_touched: bool,
}

fn directory(dir: &str) -> String {
    format!("{dir}/conversion")
}

fn file(dir: &str) -> String {
    format!("{}/journal.json", directory(dir))
}

/// The directories above a path, outermost first, without `/`.
fn above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/')
        .filter_map(|(at, _)| path.get(..at))
        .filter(|parent| !parent.is_empty())
}

impl Journal {
    /// The journal of the node, if it is converted or about to be.
    pub(super) fn read(machine: &impl Machine, dir: &str) -> Result<Option<Self>, Fault> {
        let path = file(dir);
        let Some(text) = machine.read(&path)? else {
            return Ok(None);
        };
        let read = serde_json::from_str(&text);
        read.map(Some)
            .map_err(|error| Fault::file(path)(error.into()))
    }

    pub(super) fn write(&self, machine: &mut impl Machine) -> Result<(), Fault> {
        let path = file(&self.wish.dir);
        let text = serde_json::to_string_pretty(self);
        let text = text.map_err(|error| Fault::file(path.clone())(error.into()))?;
        machine.write(&path, &text, Some(0o600))
    }

    /// Keeps what the steps will change, and writes the journal. Nothing of the node is changed yet.
    pub(super) async fn begin(
        machine: &mut impl Machine,
        wish: Wish,
        steps: Vec<Step>,
    ) -> Result<Self, Fault> {
        let kept_in = directory(&wish.dir);
        let mut directories = Vec::new();
        let written = steps.iter().filter_map(|step| match step {
            Step::Write { path, .. } => Some(path.clone()),
            _ => None,
        });
        let written: Vec<String> = written.collect();
        for path in [file(&wish.dir)].iter().chain(&written) {
            for parent in above(path) {
                let known = directories.iter().any(|known| known == parent);
                if !known && machine.kind(parent)? == Kind::Nothing {
                    directories.push(parent.to_owned());
                }
            }
        }
        let mut data = Vec::new();
        for path in DATA {
            if machine.kind(path)? == Kind::Nothing {
                data.push(path.to_owned());
            }
        }
        let ran_before = wish.form == Form::Systemd && machine.is_active(UNIT).await;
        let mut before = Vec::new();
        for (number, path) in written.into_iter().enumerate() {
            let kept = match machine.kind(&path)? {
                Kind::Nothing => None,
                Kind::File => Some(format!("{kept_in}/{number}")),
                Kind::Directory => return Err(Fault::Unfit(format!("{path} is a directory"))),
            };
            before.push(Before { path, kept });
        }
        machine.make_directory(&kept_in)?;
        for Before { path, kept } in &before {
            if let Some(kept) = kept {
                machine.copy(path, kept)?;
            }
        }
        let journal = Self {
            phase: Phase::Converting,
            wish,
            steps,
            before,
            directories,
            data,
            ran_before,
            is_kubelet_touched: false,
        };
        journal.write(machine)?;
        Ok(journal)
    }

    /// The journal of a node that OpenYurt converted: everything it makes goes, as its own `revert` has it.
    pub(super) fn of_openyurt(
        machine: &mut impl Machine,
        wish: Wish,
        made: &[&str],
        flags: &str,
    ) -> Result<Self, Fault> {
        let kept_in = directory(&wish.dir);
        machine.make_directory(&kept_in)?;
        let kept = format!("{kept_in}/flags");
        machine.copy(FLAGS, &kept)?;
        machine.write(&kept, flags, None)?;
        let kubeconfig = kubeconfig_in(&wish.dir);
        let gone = made.iter().copied().chain([kubeconfig.as_str()]);
        let mut before: Vec<Before> = gone
            .map(|path| Before {
                path: path.to_owned(),
                kept: None,
            })
            .collect();
        before.push(Before {
            path: FLAGS.into(),
            kept: Some(kept),
        });
        let mut directories: Vec<String> = above(&file(&wish.dir)).map(str::to_owned).collect();
        directories.retain(|path| path.starts_with(&wish.dir));
        let unit_directory = "/etc/systemd/system/yurthub.service.d";
        directories.push(unit_directory.to_owned());
        let journal = Self {
            phase: Phase::Reverting,
            wish,
            steps: Vec::new(),
            before,
            directories,
            data: DATA.map(str::to_owned).to_vec(),
            ran_before: false,
            is_kubelet_touched: true,
        };
        journal.write(machine)?;
        Ok(journal)
    }

    /// What the steps write at a path.
    pub(super) fn written(&self, wanted: &str) -> Option<&Content> {
        self.steps.iter().find_map(|step| match step {
            Step::Write { path, content } if path == wanted => Some(content),
            _ => None,
        })
    }

    /// What a beginning that was ended before its journal was written left.
    pub(super) fn sweep(machine: &mut impl Machine, dir: &str) -> Result<(), Fault> {
        machine.remove_all(&directory(dir))
    }

    /// The node is as it was: the journal goes first, as without it there is nothing to undo.
    pub(super) fn end(self, machine: &mut impl Machine) -> Result<(), Fault> {
        Self::remove_empty(&self.directories, machine)?;
        machine.remove(&file(&self.wish.dir))?;
        Self::sweep(machine, &self.wish.dir)?;
        // What the journal itself was in.
        Self::remove_empty(&self.directories, machine)
    }

    fn remove_empty(directories: &[String], machine: &mut impl Machine) -> Result<(), Fault> {
        let mut innermost_first = directories.iter().rev();
        innermost_first.try_for_each(|path| machine.remove_empty(path))
    }
}
