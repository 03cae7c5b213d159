//! `inclusterconfig`: kube-proxy goes to the API server by what its pod says (and so to the hub), not by the kubeconfig that kubeadm puts
//! into its config map.

use super::{Context, Filter, Scope, Verdict};
use serde_json::Value;
use yurt_wire::{Object, ObjectMeta, Verb};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-proxy";
const POINTER: &str = "/data/config.conf";
const KEY: &str = "kubeconfig";

/// Takes the kubeconfig out of kube-proxy's configuration.
#[derive(Debug)]
pub(super) struct InClusterConfig;

impl Filter for InClusterConfig {
    fn name(&self) -> &'static str {
        "inclusterconfig"
    }

    fn scope(&self) -> Scope {
        let verbs = [Verb::Get, Verb::List, Verb::Watch];
        Scope::of(&["kubelet"], &[("", "configmaps")], &verbs).only(NAMESPACE, NAME)
    }

    fn concerns(&self, _: &Object, meta: &ObjectMeta, _: &Context) -> bool {
        meta.namespace == NAMESPACE && meta.name == NAME
    }

    fn apply(&self, object: &mut Value, _: &Context) -> Verdict {
        let Some(Value::String(config)) = object.pointer_mut(POINTER) else {
            return Verdict::Kept;
        };
        let changed = without_kubeconfig(config);
        if changed == *config {
            return Verdict::Kept;
        }
        *config = changed;
        Verdict::Changed
    }
}

/// The YAML with the member `kubeconfig` commented out where it has lines of its own, and empty where it shares one (`{...}`).
fn without_kubeconfig(yaml: &str) -> String {
    let mut out = String::with_capacity(yaml.len() + 4);
    // The indentation of a member that was commented out, while what follows may belong to it.
    let mut within: Option<usize> = None;
    for line in yaml.split_inclusive('\n') {
        let text = line.trim_start_matches([' ', '\t']);
        let indent = line.len() - text.len();
        let blank = text.trim().is_empty();
        if within.is_some_and(|outer| indent > outer && !blank) {
            comment(&mut out, line, indent);
            continue;
        }
        if !blank {
            within = None;
        }
        match value_of_key(text) {
            Some(_) => {
                comment(&mut out, line, indent);
                within = Some(indent);
            }
            None => emptied(&mut out, line),
        }
    }
    out
}

fn comment(out: &mut String, line: &str, indent: usize) {
    let (space, text) = line.split_at(indent);
    out.push_str(space);
    out.push('#');
    out.push_str(text);
}

/// What follows the key, when the text begins with it: `kubeconfig: x`, `"kubeconfig" : x`.
fn value_of_key(text: &str) -> Option<&str> {
    let rest = match text.as_bytes().first()? {
        quote @ (b'"' | b'\'') => {
            let rest = text.get(1..)?.strip_prefix(KEY)?;
            rest.strip_prefix(char::from(*quote))?
        }
        _ => text.strip_prefix(KEY)?,
    };
    let rest = rest.trim_start_matches([' ', '\t']).strip_prefix(':')?;
    Some(rest)
}

/// A line with the member in a flow mapping (`{kubeconfig: x, ...}`; JSON is YAML as well): its value becomes empty.
fn emptied(out: &mut String, line: &str) {
    let mut rest = line;
    let mut open = 0_usize;
    let mut quote = None;
    let mut previous = ' ';
    while let Some(char) = rest.chars().next() {
        let (head, tail) = rest.split_at(char.len_utf8());
        out.push_str(head);
        rest = tail;
        match (quote, char) {
            (Some('"'), '\\') => {
                let len = rest.chars().next().map_or(0, char::len_utf8);
                let (escaped, tail) = rest.split_at(len);
                out.push_str(escaped);
                rest = tail;
            }
            (Some(end), _) if char == end => quote = None,
            (Some(_), _) => {}
            (None, '#') if open == 0 => break,
            (None, '"' | '\'') if open > 0 || previous == ' ' => quote = Some(char),
            (None, '{') => open += 1,
            (None, '}') => open = open.saturating_sub(1),
            _ => {}
        }
        previous = char;
        if quote.is_none() && open > 0 && matches!(char, '{' | ',') {
            let start = rest.trim_start();
            if let Some(value) = value_of_key(start) {
                out.push_str(&rest[..rest.len() - value.len()]);
                out.push_str(" \"\"");
                rest = &value[scalar_len(value)..];
            }
        }
    }
    out.push_str(rest);
}

/// The length of a scalar within a flow mapping, with the space before it.
fn scalar_len(text: &str) -> usize {
    let lead = text.len() - text.trim_start().len();
    let value = &text[lead..];
    let Some(quote @ ('"' | '\'')) = value.chars().next() else {
        return value
            .find([',', '}', '\n'])
            .map_or(text.len(), |len| lead + len);
    };
    let mut escaped = false;
    for (at, char) in value.char_indices().skip(1) {
        match char {
            _ if escaped => escaped = false,
            '\\' if quote == '"' => escaped = true,
            _ if char == quote => return lead + at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_of_any_shape() {
        for (yaml, expected) in [
            (
                "a:\n  kubeconfig: /x\n  b: 1\n",
                "a:\n  #kubeconfig: /x\n  b: 1\n",
            ),
            ("kubeconfig: https://h:1/p", "#kubeconfig: https://h:1/p"),
            ("  \"kubeconfig\" : '/x'\n", "  #\"kubeconfig\" : '/x'\n"),
            (
                "'kubeconfig':\t/x # why: not\r\nb: 1",
                "#'kubeconfig':\t/x # why: not\r\nb: 1",
            ),
            (
                "kubeconfig: >-\n  /x\n\n  /y\nb: 1\n",
                "#kubeconfig: >-\n  #/x\n\n  #/y\nb: 1\n",
            ),
            ("kubeconfig:\n  /x\nb: 1\n", "#kubeconfig:\n  #/x\nb: 1\n"),
            (
                "c: {kubeconfig: /x, qps: 5}\n",
                "c: {kubeconfig: \"\", qps: 5}\n",
            ),
            (
                "c: {qps: 5, \"kubeconfig\" : \"/x,}\\\"\"}",
                "c: {qps: 5, \"kubeconfig\" : \"\"}",
            ),
            (
                r#"{"c":{"kubeconfig":"/x:y","qps":5}}"#,
                r#"{"c":{"kubeconfig": "","qps":5}}"#,
            ),
            // Something else.
            ("# kubeconfig: /x\n", "# kubeconfig: /x\n"),
            ("kubeconfigs: /x\n", "kubeconfigs: /x\n"),
            ("mykubeconfig: /x\n", "mykubeconfig: /x\n"),
            ("a: kubeconfig: x\n", "a: kubeconfig: x\n"),
            ("a: \"{kubeconfig: x}\"\n", "a: \"{kubeconfig: x}\"\n"),
            ("a: it's {kubeconfig: x}\n", "a: it's {kubeconfig: \"\"}\n"),
            ("kubeconfig\n", "kubeconfig\n"),
            ("", ""),
        ] {
            assert_eq!(without_kubeconfig(yaml), expected);
        }
    }

    proptest! {
        /// Any text at all: no panic, nothing of it lost but values of the member.
        #[test]
        fn other_texts_stay(text in "[a-z{}\"'#:, \\n\\\\é]{0,60}") {
            prop_assume!(!text.contains(KEY));
            prop_assert_eq!(without_kubeconfig(&text), text);
        }

        #[test]
        fn once_is_enough(text in "(kubeconfig|[{}\"':, \\n\\\\é#]){0,24}") {
            let once = without_kubeconfig(&text);
            prop_assert_eq!(without_kubeconfig(&once), once);
        }
    }
}
