//! The templates of the Helm charts: the same objects, with expressions where the plain manifests have values.
//!
//! An expression stands in a string between [`OPEN`] and [`CLOSE`]; in the YAML it becomes Helm's, without the quotes that the string
//! would have.

use super::{Component, Tunnel, Values, yaml};
use serde_json::Value;

const OPEN: &str = "<<<";
const CLOSE: &str = ">>>";
/// Before an expression for a whole map or list.
const BLOCK: &str = "block ";
/// Before an expression for more items of a list.
const ITEMS: &str = "items ";

/// A chart that is shipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chart {
    /// What every cluster needs.
    Manager,
    /// The tunnel.
    Tunnel,
}

/// A generated file of a chart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Its path in the chart.
    pub path: String,
    /// What it holds.
    pub text: String,
}

fn expression(text: &str) -> String {
    format!("{OPEN}{text}{CLOSE}")
}

fn value(path: &str) -> String {
    expression(&format!(".Values.{path}"))
}

fn block(path: &str) -> Value {
    expression(&format!("{BLOCK}.Values.{path}")).into()
}

/// `registry/repository:tag` of the values at a path.
fn image(path: &str) -> String {
    let part = |name: &str| value(&format!("{path}.{name}"));
    format!(
        "{}/{}:{}",
        part("registry"),
        part("repository"),
        part("tag")
    )
}

fn values() -> Values {
    Values {
        namespace: expression(".Release.Namespace"),
        name: expression("include \"yurt-manager.name\" ."),
        instance: expression(".Release.Name"),
        image: image("image"),
        pull_secrets: block("image.pullSecrets"),
        replicas: value("replicaCount").into(),
        ports: ["metrics", "healthProbe", "webhook"]
            .map(|port| value(&format!("ports.{port}")).into()),
        verbosity: value("log.level").into(),
        controllers: value("controllers"),
        disabled_webhooks: value("disableIndependentWebhooks"),
        lease: value("leaderElectResourceName"),
        node_servant_image: image("nodeServant.image"),
        cache_agents: expression(".Values.yurthub.cacheAgents | quote"),
        extra_args: items("extraArgs"),
        resources: block("resources"),
        affinity: block("affinity"),
        tunnel: tunnel(),
    }
}

fn items(path: &str) -> Vec<String> {
    vec![expression(&format!("{ITEMS}.Values.{path}"))]
}

fn tunnel() -> Tunnel {
    let quoted = |path: &str| expression(&format!(".Values.{path} | quote"));
    Tunnel {
        server_image: image("server.image"),
        agent_image: image("agent.image"),
        replicas: value("server.replicaCount").into(),
        node_port: value("service.nodePort").into(),
        service_type: value("service.type"),
        service_annotations: block("service.annotations"),
        verbosity: value("log.level").into(),
        ports: ["http", "https", "localhost"].map(|ports| quoted(&format!("ports.{ports}"))),
        server_args: items("server.extraArgs"),
        agent_args: items("agent.extraArgs"),
        server_resources: block("server.resources"),
        agent_resources: block("agent.resources"),
        node_selector: block("server.nodeSelector"),
    }
}

/// One line of YAML with Helm's expressions. What Helm would take for one of its own is told apart first.
fn line(text: &str) -> String {
    let text = text.replace("{{", "{{ \"{{\" }}");
    let indent = text.len() - text.trim_start().len();
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once(OPEN) {
        let Some((inner, after)) = after.split_once(CLOSE) else {
            break;
        };
        let inner = inner.replace("\\\"", "\"");
        if let Some(path) = inner.strip_prefix(ITEMS) {
            return format!(
                "{:indent$}{{{{- with {path} }}}}{{{{ toYaml . | nindent {indent} }}}}{{{{- end }}}}",
                ""
            );
        }
        // Quotes around nothing but the expression go: it says itself whether it is a string.
        let quote = before
            .chars()
            .last()
            .filter(|c| matches!(c, '"' | '\'') && after.starts_with(*c));
        let (before, after) = match quote {
            Some(quote) => (
                before.strip_suffix(quote).unwrap_or(before),
                after.strip_prefix(quote).unwrap_or(after),
            ),
            None => (before, after),
        };
        out.push_str(before);
        match inner.strip_prefix(BLOCK) {
            Some(path) => {
                let deeper = indent + 2;
                out.push_str(&format!("{{{{- toYaml {path} | nindent {deeper} }}}}"));
            }
            None => out.push_str(&format!("{{{{ {inner} }}}}")),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn template(yaml: &str) -> String {
    yaml.lines().map(|text| line(text) + "\n").collect()
}

impl Chart {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Manager, Self::Tunnel];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Manager => "yurt-manager",
            Self::Tunnel => "yurt-tunnel",
        }
    }

    /// What it installs.
    pub fn components(self) -> &'static [Component] {
        match self {
            Self::Manager => &Component::USUAL,
            Self::Tunnel => &[Component::Tunnel],
        }
    }

    /// Its generated files. Within a tokio runtime.
    pub fn templates(self) -> Result<Vec<Template>, serde_saphyr::ser::Error> {
        let values = values();
        let files = self.components().iter().map(|component| {
            let mut objects = component.objects(&values);
            if *component == Component::Crds {
                for object in &mut objects {
                    // Who takes the chart away keeps what was made with it.
                    object["metadata"]["annotations"]["helm.sh/resource-policy"] = "keep".into();
                }
            }
            let text = template(&yaml(&objects)?);
            Ok(Template {
                path: format!("templates/{}.yaml", component.name()),
                text: format!("# Made by `yurt manifests --chart`; not to be edited.\n{text}"),
            })
        });
        files.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_become_helms() {
        for (yaml, helm) in [
            ("a: <<<.Values.a>>>", "a: {{ .Values.a }}"),
            ("  a: \"<<<.Values.a>>>\"", "  a: {{ .Values.a }}"),
            ("- '--a=:<<<.Values.a>>>'", "- '--a=:{{ .Values.a }}'"),
            (
                "- '<<<.Values.a>>>/<<<.Values.b>>>'",
                "- '{{ .Values.a }}/{{ .Values.b }}'",
            ),
            (
                "a: \"<<<include \\\"n\\\" .>>>\"",
                "a: {{ include \"n\" . }}",
            ),
            (
                "  a: <<<block .Values.a>>>",
                "  a: {{- toYaml .Values.a | nindent 4 }}",
            ),
            (
                "  - <<<items .Values.a>>>",
                "  {{- with .Values.a }}{{ toYaml . | nindent 2 }}{{- end }}",
            ),
            ("a: {{b}} <<<", "a: {{ \"{{\" }}b}} <<<"),
        ] {
            assert_eq!(line(yaml), helm);
        }
    }
}
