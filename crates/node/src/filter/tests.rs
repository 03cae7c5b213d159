//! What is printed, word by word.

use super::*;
use clap::Parser;

const RULES: &str = r#"- name: local-address
  components: [kube-proxy]
  match: {apiVersion: v1, kind: Service, labelSelector: app=web}
  patch:
  - {op: replace, path: /spec/clusterIP, value: 10.0.0.1}
  - {op: add, path: /metadata/annotations/by, createParents: true, expression: "node.name + ' of ' + pool.name"}
- name: fails
  match: {apiVersion: v1, kind: Service, expression: object.spec.nope == 1}
  drop: true
- name: hide-canary
  match: {apiVersion: v1, kind: Service, names: [canary]}
  drop: true
"#;
const SERVICES: &str = "kind: ServiceList
apiVersion: v1
items:
- {apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {clusterIP: 10.0.0.9}}
- {apiVersion: v1, kind: Service, metadata: {name: canary, namespace: shop}, spec: {}}
";

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    filter: FilterArgs,
}

fn explain_args(flags: &[&str]) -> ExplainArgs {
    let line = ["filter", "explain"].iter().chain(flags);
    match CommandLine::try_parse_from(line).unwrap().filter.command {
        FilterCommand::Explain(args) => *args,
        other => panic!("{other:?}"),
    }
}

/// A file of this test that goes with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("yurt-node-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn explanations_are_printed() {
    let file = Scratch::new("explained.yaml", RULES);
    let args = explain_args(&[
        "--rules",
        file.0.to_str().unwrap(),
        "--node=edge-1",
        "--pool=hangzhou",
        "--disabled-resource-filters=servicetopology,inclusterconfig,hostnetworkpropagation,nodeportisolation,forwardkubesvctraffic",
    ]);
    let question = Question {
        component: args.component.clone(),
        verb: args.verb.clone(),
        resource: None,
        objects: explain::objects(SERVICES).unwrap(),
    };
    let (told, sound) = suppose(&args.supposed, &question).unwrap();
    assert!(sound);
    let expected = r#"Service shop/web (v1), when kube-proxy lists services:
  discardcloudservice   not for this object
  masterservice         not for this request: it is for kubelet
  serviceenvupdater     not for this request: it is for kubelet
  local-address (file)  changes it
                          + /metadata/annotations: {"by":"edge-1 of hangzhou"}
                          ~ /spec/clusterIP: "10.0.0.9" -> "10.0.0.1"
  fails (file)          fails and leaves it: match.expression: no such key: nope
  hide-canary (file)    not for this object
  It is shown changed.

Service shop/canary (v1), when kube-proxy lists services:
  discardcloudservice   not for this object
  masterservice         not for this request: it is for kubelet
  serviceenvupdater     not for this request: it is for kubelet
  local-address (file)  not for this object
  fails (file)          fails and leaves it: match.expression: no such key: nope
  hide-canary (file)    hides it
  It is not shown.
"#;
    let printed = told::explanations(&told);
    assert_eq!(printed, expected, "\n{printed}");
    // What is told by the hub is read as it is written here.
    let json = serde_json::to_string(&told).unwrap();
    let again: Vec<Explanation> = serde_json::from_str(&json).unwrap();
    assert_eq!(again, told);
}

#[test]
fn files_are_checked() {
    let printed = |text: &str| told::checked("r.yaml", &Checked::of(rules::read(text)));
    assert_eq!(printed(RULES), "r.yaml: 3 rules make sense\n");
    let text = "- name: a\n  match: {kind: Service}\n  drop: true\n- name: b\n  match: {kind: X, expression: 'node.nmae'}\n  drp: true\n";
    let expected = "\
r.yaml:5:32: rule b: match.expression: ERROR: <input>:1:5: undefined field 'nmae'
     | node.nmae
     | ....^
r.yaml:4:3: rule b: does nothing: drop: true or a patch is missing
r.yaml:6:8: rule b: drp: is not known here; there are name, components, match, drop, patch, force
r.yaml: warning: rule a hides every object that it is about from every component: its match has no namespaces, names, selectors or expression
r.yaml: 1 rule makes sense, 3 complaints
";
    let told = printed(text);
    assert_eq!(told, expected, "\n{told}");
    assert!(
        printed("a: [").starts_with("r.yaml:1:"),
        "{}",
        printed("a: [")
    );
}

#[test]
fn control_characters_do_not_reach_a_terminal() {
    let text = "- name: \"a\\u001b[2J\"\n  match: {kind: X}\n  drop: true";
    let told = told::checked("r\u{1b}.yaml", &Checked::of(rules::read(text)));
    assert!(!told.contains('\u{1b}'), "{told:?}");
}

#[test]
fn a_running_hub_is_not_supposed_anything() {
    assert_eq!(explain_args(&["--hub"]).hub.as_deref(), Some(HUB));
    assert_eq!(
        explain_args(&["--hub=http://[::1]:1"]).hub.as_deref(),
        Some("http://[::1]:1")
    );
    for flag in ["--rules=x", "--pool=a", "--node=b", "--node-labels=a=b"] {
        let refused = CommandLine::try_parse_from(["filter", "explain", "--hub", flag]);
        assert!(refused.is_err(), "{flag}");
    }
    assert!(CommandLine::try_parse_from(["filter", "explain", "--verb=create"]).is_err());
    assert_eq!(
        explain_args(&["--node-labels=a=b,c="])
            .supposed
            .node_labels
            .len(),
        2
    );
}
