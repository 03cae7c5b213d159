//! What a kubeadm-style kubelet is told, and by which files. Pure.
//!
//! Facts: kubeadm's drop-in names the kubeconfig in `KUBELET_KUBECONFIG_ARGS` and appends `KUBELET_KUBEADM_ARGS` of
//! `/var/lib/kubelet/kubeadm-flags.env`; of a flag given twice the last counts. OpenYurt (yurtadm, node-servant) appends
//! [`redirection`] to that variable, and takes back exactly this text.

use super::fault::Fault;
use serde_json::Value;

const VARIABLE: &str = "KUBELET_KUBEADM_ARGS";

/// The kubeconfig that a kubelet behind a hub has.
pub(super) const BEHIND_HUB: &str = "apiVersion: v1
kind: Config
clusters:
- name: default-cluster
  cluster:
    server: http://127.0.0.1:10261
contexts:
- name: default-context
  context:
    cluster: default-cluster
    namespace: default
    user: default-auth
current-context: default-context
preferences: {}
";

/// What is appended to the kubelet's flags. `kubeconfig`: path of [`BEHIND_HUB`].
pub(super) fn redirection(kubeconfig: &str) -> String {
    format!(" --kubeconfig={kubeconfig} --bootstrap-kubeconfig= ")
}

/// The value of a flag among others, up to white space or a quote.
pub(super) fn flag<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let of_line = |line: &'a str| {
        let (_, rest) = line.rsplit_once(&format!("{name}="))?;
        rest.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\''))
            .next()
    };
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    lines.filter_map(of_line).rfind(|value| !value.is_empty())
}

/// `kubeadm-flags.env` with the kubelet sent to its hub.
pub(super) fn with_redirection(flags: &str, kubeconfig: &str) -> Result<String, Fault> {
    let added = redirection(kubeconfig);
    let is_it = |line: &&str| line.trim_start().starts_with(&format!("{VARIABLE}="));
    let Some(line) = flags.lines().rfind(is_it) else {
        return Err(Fault::Unfit(format!(
            "{VARIABLE} is not set in kubeadm-flags.env"
        )));
    };
    let (name, value) = line.split_once('=').unwrap_or((line, ""));
    let value = value.trim();
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
    let inner = match quote {
        None => value,
        Some(quote) => value
            .strip_prefix(quote)
            .and_then(|rest| rest.strip_suffix(quote))
            .ok_or_else(|| {
                Fault::Unfit(format!(
                    "{VARIABLE} in kubeadm-flags.env has a quote that does not end"
                ))
            })?,
    };
    let quote = quote.unwrap_or('"');
    let new = format!("{name}={quote}{inner} {added}{quote}");
    // The last line that is it, as the last assignment counts.
    let at = flags.rfind(line).unwrap_or_default();
    let (head, tail) = flags.split_at_checked(at).unwrap_or((flags, ""));
    let tail = tail.get(line.len()..).unwrap_or_default();
    Ok(format!("{head}{new}{tail}"))
}

/// `kubeadm-flags.env` as it was, when somebody else changed it meanwhile, or OpenYurt wrote it.
pub(super) fn without_redirection(flags: &str, kubeconfig: &str) -> String {
    let added = redirection(kubeconfig);
    flags.replace(&format!(" {added}"), "").replace(&added, "")
}

/// Whom a kubeconfig names, and how the kubelet shows who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Kubeconfig {
    pub(super) server: String,
    pub(super) ca_file: Option<String>,
    pub(super) client_cert: Option<String>,
    pub(super) client_key: Option<String>,
}

/// Reads one: its current context, or the first cluster and user.
pub(super) fn kubeconfig(text: &str) -> Result<Kubeconfig, Fault> {
    let config: Value = serde_saphyr::from_str(text).map_err(|error| {
        Fault::Unfit(format!("the kubelet's kubeconfig cannot be read: {error}"))
    })?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let list = |name: &str| {
        config
            .get(name)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let named = |list: Vec<Value>, name: Option<String>| {
        let found = list
            .iter()
            .find(|entry| text(&entry["name"]) == name)
            .cloned();
        found
            .or_else(|| list.into_iter().next())
            .unwrap_or_default()
    };
    let context = named(list("contexts"), text(&config["current-context"]));
    let cluster = named(list("clusters"), text(&context["context"]["cluster"]));
    let user = named(list("users"), text(&context["context"]["user"]));
    let file = |value: &Value| text(value).filter(|path| !path.is_empty());
    Ok(Kubeconfig {
        server: text(&cluster["cluster"]["server"])
            .ok_or_else(|| Fault::Unfit("the kubelet's kubeconfig names no server".into()))?,
        ca_file: file(&cluster["cluster"]["certificate-authority"]),
        client_cert: file(&user["user"]["client-certificate"]),
        client_key: file(&user["user"]["client-key"]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DROP_IN: &str = r#"# --kubeconfig=/no
[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf"
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
"#;

    #[test]
    fn flags_of_drop_ins() {
        assert_eq!(
            flag(DROP_IN, " --kubeconfig"),
            Some("/etc/kubernetes/kubelet.conf")
        );
        assert_eq!(flag(DROP_IN, "--hostname-override"), None);
        assert_eq!(
            flag("A=\"--hostname-override=n1\"", "--hostname-override"),
            Some("n1")
        );
    }

    #[test]
    fn a_redirection_is_openyurts() {
        let with = with_redirection(
            "KUBELET_KUBEADM_ARGS=\"--a=b\"\n",
            "/var/lib/openyurt/kubelet.conf",
        );
        assert_eq!(
            with.unwrap(),
            "KUBELET_KUBEADM_ARGS=\"--a=b  --kubeconfig=/var/lib/openyurt/kubelet.conf --bootstrap-kubeconfig= \"\n"
        );
        for wrong in [
            "",
            "KUBELET_KUBEADM_ARGS=\"--a",
            "# KUBELET_KUBEADM_ARGS=\"\"",
        ] {
            assert!(with_redirection(wrong, "/k").is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_redirection_is_taken_back(
            before in "[A-Z#=\n]{0,8}\n", value in "(--[a-z]{1,4}=[a-z]{0,4} ?){0,3}", after in "(\n[A-Z]{0,4}=[a-z]{0,4})?\n?",
            quote in "[\"']",
        ) {
            let flags = format!("{before}{VARIABLE}={quote}{value}{quote}{after}");
            let with = with_redirection(&flags, "/x/kubelet.conf").unwrap();
            prop_assert_eq!(flag(&with, " --kubeconfig"), Some("/x/kubelet.conf"));
            prop_assert_eq!(without_redirection(&with, "/x/kubelet.conf"), flags);
        }
    }

    #[test]
    fn kubeconfigs() {
        let text = "clusters:\n- {name: a, cluster: {server: 'https://a:1'}}\n- name: b\n  cluster: {server: 'https://b:1', \
                    certificate-authority: /ca}\ncontexts: [{name: x, context: {cluster: b, user: u}}]\ncurrent-context: x\n\
                    users: [{name: u, user: {client-certificate: /c, client-key: /k}}]\n";
        let read = kubeconfig(text).unwrap();
        assert_eq!(
            (read.server.as_str(), read.ca_file.as_deref()),
            ("https://b:1", Some("/ca"))
        );
        assert_eq!(
            (read.client_cert.as_deref(), read.client_key.as_deref()),
            (Some("/c"), Some("/k"))
        );
        assert_eq!(
            kubeconfig(BEHIND_HUB).unwrap().server,
            "http://127.0.0.1:10261"
        );
        for wrong in ["", "{", "clusters: 3", "clusters: [{}]"] {
            assert!(kubeconfig(wrong).is_err(), "{wrong}");
        }
    }
}
