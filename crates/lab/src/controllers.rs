//! Which controllers a lab runs (`--controllers`): Kubernetes' native ones and the manager's, in one list.

use std::{fmt, str::FromStr, sync::LazyLock};
use yurt_controller::selection::{Selection, UnknownController};
use yurt_controlplane as native;
use yurt_manager as manager;

/// Which run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Controllers {
    /// Of kube-controller-manager and kube-scheduler.
    pub native: native::Selection,
    /// Of yurt-manager.
    pub manager: Selection,
}

/// Help of `--controllers`.
pub static HELP: LazyLock<String> = LazyLock::new(|| {
    let names: Vec<&str> = manager::names().map(|names| names.name).collect();
    format!(
        "{}. Of yurt-manager, which runs in this process too unless none of its controllers is left: {}",
        native::selection::HELP.as_str(),
        names.join(", ")
    )
});

impl Controllers {
    /// None at all.
    pub fn none() -> Self {
        Self {
            native: native::Selection::none(),
            manager: Selection::none(),
        }
    }

    /// Whether the manager has anything to do.
    pub fn have_manager(&self) -> bool {
        manager::names().any(|names| self.manager.includes(names.name))
    }
}

impl FromStr for Controllers {
    type Err = UnknownController;

    fn from_str(text: &str) -> Result<Self, UnknownController> {
        let is_managers = |item: &&str| {
            let name = item.trim().trim_start_matches('-');
            manager::names().any(|n| n.name == name || !n.alias.is_empty() && n.alias == name)
        };
        // What stands for all stands for all of both.
        let (ours, natives): (Vec<&str>, Vec<&str>) = text.split(',').partition(is_managers);
        let everywhere = natives
            .iter()
            .map(|item| item.trim())
            .filter(|item| matches!(*item, "*" | "-*"));
        let ours: Vec<&str> = everywhere.chain(ours.iter().copied()).collect();
        let native = natives
            .join(",")
            .parse()
            .map_err(|mut unknown: UnknownController| {
                unknown
                    .known
                    .extend(manager::names().map(|names| names.name));
                unknown
            })?;
        Ok(Self {
            native,
            manager: Selection::parse(&ours.join(","), manager::names())?,
        })
    }
}

impl fmt::Display for Controllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.native, self.manager)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_list_is_for_both() {
        let parse = |text: &str| text.parse::<Controllers>().expect("known");
        assert_eq!(parse("*"), Controllers::default());
        assert_eq!(parse("-*"), Controllers::none());
        let some = parse("*, -nodepool, -kube-scheduler");
        assert!(
            !some.manager.includes("nodepool-controller")
                && !some.native.includes("kube-scheduler")
        );
        assert!(
            some.manager.includes("hubleader-controller")
                && some.native.includes("replicaset-controller")
        );
        assert_eq!(parse(&some.to_string()), some);
        let one = parse("replicaset-controller");
        assert!(!one.have_manager() && one.native.includes("replicaset-controller"));
        assert!(parse("hubleader").have_manager());
        let without: Vec<String> = manager::names()
            .map(|names| format!("-{}", names.name))
            .collect();
        assert!(!parse(&format!("*,{}", without.join(","))).have_manager());
        let unknown = "*,nope".parse::<Controllers>().expect_err("unknown");
        assert!(
            unknown.known.contains(&"nodepool-controller")
                && unknown.known.contains(&"kube-scheduler")
        );
    }
}
