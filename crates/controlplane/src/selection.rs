//! Which native controllers run (`--controllers`).

use crate::CONTROLLERS;
use std::{fmt, ops::Deref, str::FromStr, sync::LazyLock};
use yurt_apiserver::BuiltinControllers;
use yurt_controller::selection::{self, Names, UnknownController};

/// A list as kube-controller-manager's `--controllers` takes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection(selection::Selection);

/// Help of `--controllers`.
pub static HELP: LazyLock<String> = LazyLock::new(|| {
    let names: Vec<&str> = known().map(|names| names.name).collect();
    format!(
        "Which native controllers run, as kube-controller-manager takes it: `*` for all, `name` for one, `-name` for not that one, \
         so that a real kube-controller-manager or kube-scheduler can do it instead. There are: {}",
        names.join(", ")
    )
});

fn known() -> impl Iterator<Item = Names> {
    CONTROLLERS.iter().map(|entry| Names {
        name: entry.name,
        alias: "",
    })
}

/// Controllers whose work the API server does.
pub(crate) const NAMESPACE: &str = "namespace-controller";
pub(crate) const SERVICE_ACCOUNT: &str = "serviceaccount-controller";
pub(crate) const ROOT_CA_PUBLISHER: &str = "root-ca-certificate-publisher-controller";
pub(crate) const CLUSTER_ROLE_AGGREGATION: &str = "clusterrole-aggregation-controller";
pub(crate) const SERVICE_ACCOUNT_TOKEN: &str = "serviceaccount-token-controller";
pub(crate) const BOOTSTRAP_SIGNER: &str = "bootstrap-signer-controller";
pub(crate) const TOKEN_CLEANER: &str = "token-cleaner-controller";

impl Selection {
    /// No controller at all.
    pub fn none() -> Self {
        Self(selection::Selection::none())
    }

    /// What the API server is to do itself.
    pub fn within_server(&self) -> BuiltinControllers {
        BuiltinControllers {
            namespace: self.includes(NAMESPACE),
            service_account: self.includes(SERVICE_ACCOUNT),
            root_ca_publisher: self.includes(ROOT_CA_PUBLISHER),
            cluster_role_aggregation: self.includes(CLUSTER_ROLE_AGGREGATION),
            service_account_tokens: self.includes(SERVICE_ACCOUNT_TOKEN),
            bootstrap_signer: self.includes(BOOTSTRAP_SIGNER),
            token_cleaner: self.includes(TOKEN_CLEANER),
        }
    }
}

impl Deref for Selection {
    type Target = selection::Selection;

    fn deref(&self) -> &selection::Selection {
        &self.0
    }
}

impl FromStr for Selection {
    type Err = UnknownController;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        selection::Selection::parse(text, known()).map(Self)
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_stays_out_of_the_server_too() {
        let selection: Selection = "*,-namespace-controller".parse().expect("known");
        let within = selection.within_server();
        assert!(!within.namespace && within.service_account && within.root_ca_publisher);
        let one: Selection = ROOT_CA_PUBLISHER.parse().expect("known");
        let within = one.within_server();
        assert!(within.root_ca_publisher && !within.cluster_role_aggregation);
        assert!("no-such-controller".parse::<Selection>().is_err());
    }
}
