//! Which controllers run (`--controllers`).

use super::CONTROLLERS;
use std::{fmt, str::FromStr, sync::LazyLock};
use yurt_apiserver::BuiltinControllers;

/// A list as kube-controller-manager's `--controllers` takes it: `*` for all, `name` for one, `-name` for not that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    all: bool,
    named: Vec<String>,
    without: Vec<String>,
}

/// A name that no controller has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no controller `{name}`; there are: {}", names().join(", "))]
pub struct UnknownController {
    /// The name.
    pub name: String,
}

/// Help of `--controllers`.
pub(crate) static HELP: LazyLock<String> = LazyLock::new(|| {
    format!(
        "Which native controllers run, as kube-controller-manager takes it: `*` for all, `name` for one, `-name` for not that one, \
         so that a real kube-controller-manager or kube-scheduler can do it instead. There are: {}",
        names().join(", ")
    )
});

fn names() -> Vec<&'static str> {
    CONTROLLERS.iter().map(|entry| entry.name).collect()
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            all: true,
            named: Vec::new(),
            without: Vec::new(),
        }
    }
}

impl Selection {
    /// No controller at all.
    pub fn none() -> Self {
        Self {
            all: false,
            ..Self::default()
        }
    }

    /// Whether a controller is to run. What is left out by name stays out, whatever else is said.
    pub fn includes(&self, name: &str) -> bool {
        let lists = |list: &[String]| list.iter().any(|n| n == name);
        !lists(&self.without) && (self.all || lists(&self.named))
    }
}

/// Controllers whose work the API server does.
pub(super) const NAMESPACE: &str = "namespace-controller";
pub(super) const SERVICE_ACCOUNT: &str = "serviceaccount-controller";
pub(super) const ROOT_CA_PUBLISHER: &str = "root-ca-certificate-publisher-controller";
pub(super) const CLUSTER_ROLE_AGGREGATION: &str = "clusterrole-aggregation-controller";
pub(super) const SERVICE_ACCOUNT_TOKEN: &str = "serviceaccount-token-controller";
pub(super) const BOOTSTRAP_SIGNER: &str = "bootstrap-signer-controller";
pub(super) const TOKEN_CLEANER: &str = "token-cleaner-controller";

impl Selection {
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

impl FromStr for Selection {
    type Err = UnknownController;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut selection = Self::none();
        for item in text.split(',').map(str::trim).filter(|i| !i.is_empty()) {
            let (name, list) = match item.strip_prefix('-') {
                _ if item == "*" => {
                    selection.all = true;
                    continue;
                }
                // `-*`: nothing, as one would guess.
                Some("*") => continue,
                Some(name) => (name, &mut selection.without),
                None => (item, &mut selection.named),
            };
            if !names().contains(&name) {
                return Err(UnknownController { name: name.into() });
            }
            list.push(name.into());
        }
        Ok(selection)
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut items: Vec<String> = Vec::new();
        if self.all {
            items.push("*".into());
        }
        items.extend(self.named.iter().cloned());
        items.extend(self.without.iter().map(|name| format!("-{name}")));
        if items.is_empty() {
            items.push("-*".into());
        }
        f.write_str(&items.join(","))
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
