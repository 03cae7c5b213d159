//! Upgrades that the node's owner decides about, by REST on the node, with DaemonSets of `OnDelete`.

use crate::fixture::{Lab, eventually};
use serde_json::Value;
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

const NODE: &str = "a-1";
const PAUSE: Duration = Duration::from_secs(40);

fn daemons(image: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: agent
  annotations: {{apps.openyurt.io/update-strategy: OTA}}
spec:
  selector: {{matchLabels: {{app: agent}}}}
  updateStrategy: {{type: OnDelete}}
  template:
    metadata: {{labels: {{app: agent}}}}
    spec:
      containers: [{{name: main, image: "{image}"}}]
"#
    )
}

/// The admin port of a node, and the token of its owner.
pub(crate) struct Owner {
    address: String,
    token: String,
}

impl Owner {
    pub(crate) fn of(lab: &Lab, node: &str) -> Self {
        let address = lab.lab(&["status", node])[0]["address"]
            .as_str()
            .unwrap()
            .to_owned();
        let file = lab.dir().join("nodes").join(node).join("ota.token");
        let token = std::fs::read_to_string(file).unwrap().trim().to_owned();
        Self { address, token }
    }

    /// Code and body of an answer.
    fn call(&self, method: &str, path: &str, token: &str) -> (u16, String) {
        let mut stream = TcpStream::connect((self.address.as_str(), 10267)).unwrap();
        stream.set_read_timeout(Some(PAUSE)).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (code.unwrap_or_default(), body.to_owned())
    }

    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        self.call("GET", path, &self.token)
    }

    pub(crate) fn post(&self, path: &str) -> (u16, String) {
        self.call("POST", path, &self.token)
    }
}

/// The daemon's pod on the node, as the cloud knows it.
fn pod(lab: &Lab) -> Value {
    let field = format!("spec.nodeName={NODE}");
    let list = lab.cloud().ok(&[
        "get",
        "pods",
        "-l",
        "app=agent",
        "--field-selector",
        &field,
        "-o",
        "json",
    ]);
    let list: Value = serde_json::from_str(&list).unwrap();
    let mut pods = list["items"].as_array().cloned().unwrap_or_default();
    pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    pods.pop().unwrap_or_default()
}

fn name(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap_or_default()
}

fn condition<'p>(pod: &'p Value, kind: &str) -> Option<&'p str> {
    let mut conditions = pod["status"]["conditions"].as_array()?.iter();
    conditions.find(|condition| condition["type"] == kind)?["status"].as_str()
}

fn runs(pod: &Value, image: &str) -> bool {
    pod["spec"]["containers"][0]["image"] == image && condition(pod, "Ready") == Some("True")
}

fn path(pod: &Value, what: &str) -> String {
    format!(
        "/openyurt.io/v1/namespaces/default/pods/{}/{what}",
        name(pod)
    )
}

/// A new template is told to the node; nothing else happens.
fn offer(lab: &Lab, owner: &Owner, image: &str) -> Value {
    let before = pod(lab);
    lab.cloud().feed(&["apply", "-f", "-"], &daemons(image));
    eventually("the node knows that there is something newer", || {
        let (code, list) = owner.get("/pods");
        assert_eq!(code, 200, "{list}");
        let list: Value = serde_json::from_str(&list).unwrap();
        let pods = list["items"].as_array().unwrap();
        pods.iter().any(|known| {
            let message = known["status"]["conditions"].to_string();
            name(known) == name(&before)
                && condition(known, "PodNeedUpgrade") == Some("True")
                && condition(&pod(lab), "PodNeedUpgrade") == Some("True")
                && message.contains("controllerrevision: ")
        })
    });
    let after = pod(lab);
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    after
}

/// The last upgrade that was asked for.
fn last_job(owner: &Owner) -> Value {
    let (_, jobs) = owner.get("/openyurt.io/v1/upgrades");
    let jobs: Value = serde_json::from_str(&jobs).unwrap();
    jobs["items"]
        .as_array()
        .and_then(|jobs| jobs.last())
        .cloned()
        .unwrap_or_default()
}

#[test]
fn the_owner_of_a_node_upgrades_its_daemons() {
    let Some(lab) = Lab::start("a=2") else { return };
    lab.cloud()
        .feed(&["apply", "-f", "-"], &daemons("registry.lab/agent:1"));
    eventually("the daemon runs", || {
        runs(&pod(&lab), "registry.lab/agent:1")
    });
    let owner = Owner::of(&lab, NODE);
    let first = offer(&lab, &owner, "registry.lab/agent:2");

    // Nobody else may.
    let upgrade = path(&first, "upgrade");
    for wrong in ["yurt-ota-wrong", "nonsense"] {
        let (code, said) = owner.call("POST", &upgrade, wrong);
        assert_eq!(code, 401, "{said}");
    }
    lab.cloud().ok(&["create", "serviceaccount", "reader"]);
    let reader = lab.cloud().ok(&["create", "token", "reader"]);
    let (code, said) = owner.call("POST", &upgrade, reader.trim());
    assert_eq!(code, 403, "{said}");
    let (code, said) = owner.post("/openyurt.io/v1/namespaces/default/pods/none/upgrade");
    assert!(code >= 400, "{code} {said}");
    assert_eq!(pod(&lab)["metadata"]["uid"], first["metadata"]["uid"]);

    // Its images come first, where the owner wants that.
    let (code, said) = owner.post(&path(&first, "imagepull"));
    assert_eq!(
        (code, said.trim()),
        (
            200,
            format!("Image pre-pull requested for pod default/{}", name(&first)).as_str()
        )
    );
    eventually("the images are there", || {
        condition(&pod(&lab), "PodImageReady") == Some("True")
    });
    let (code, said) = owner.post(&upgrade);
    assert_eq!(
        (code, said.trim()),
        (
            200,
            format!("Start updating pod default/{}", name(&first)).as_str()
        )
    );
    eventually("the new one runs", || {
        runs(&pod(&lab), "registry.lab/agent:2")
    });
    eventually("it is not due any more", || {
        condition(&pod(&lab), "PodNeedUpgrade") == Some("False")
    });
    let (code, said) = owner.post(&path(&pod(&lab), "upgrade"));
    assert_eq!(code, 403, "{said}");
    // The other node's owner did not ask.
    let others = lab.cloud().ok(&[
        "get",
        "pods",
        "-l",
        "app=agent",
        "-o",
        "jsonpath={.items[*].spec.containers[0].image}",
    ]);
    assert_eq!(
        others
            .split(' ')
            .filter(|image| image.ends_with(":1"))
            .count(),
        1,
        "{others}"
    );

    // While the node is cut off, it is kept.
    let second = offer(&lab, &owner, "registry.lab/agent:3");
    lab.lab(&["cut", NODE]);
    lab.wait_hub(NODE, "offline");
    let upgrade = path(&second, "upgrade");
    let (code, said) = owner.post(&format!("{upgrade}?queue=false"));
    assert_eq!(
        (code, said.trim()),
        (
            503,
            "OTA upgrade is not allowed when node is disconnected to cloud"
        )
    );
    let (code, said) = owner.post(&upgrade);
    assert_eq!(code, 202, "{said}");
    let job: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(job["state"], "waiting-for-link", "{job}");
    lab.lab(&["kill", NODE]);
    eventually("the hub is back", || {
        lab.lab(&["status", NODE])[0]["hub_restarts"] == 1
    });
    lab.wait_hub(NODE, "offline");
    assert_eq!(pod(&lab)["metadata"]["uid"], second["metadata"]["uid"]);
    lab.lab(&["heal", NODE]);
    eventually("it is carried out", || {
        runs(&pod(&lab), "registry.lab/agent:3")
    });
    eventually("and over", || last_job(&owner)["state"] == "done");
}

#[test]
fn an_upgrade_that_does_not_become_ready_is_taken_back() {
    let Some(lab) = Lab::start("a=1") else { return };
    lab.cloud()
        .feed(&["apply", "-f", "-"], &daemons("registry.lab/agent:1"));
    eventually("the daemon runs", || {
        runs(&pod(&lab), "registry.lab/agent:1")
    });
    let owner = Owner::of(&lab, NODE);
    let dir = lab.dir().join("nodes").join(NODE);
    std::fs::write(dir.join("ota-policy.yaml"), "readyTimeout: 3s\n").unwrap();
    let old = offer(&lab, &owner, "nowhere.lab/agent:2");
    // Asked for by a user who may set the images of pods again.
    let kubeconfig = std::fs::read(dir.join("kubeconfig")).unwrap();
    let kubeconfig: Value = serde_json::from_slice(&kubeconfig).unwrap();
    let user = kubeconfig["users"][0]["user"]["token"].as_str().unwrap();
    let (code, said) = owner.call("POST", &path(&old, "upgrade"), user);
    assert_eq!(code, 200, "{said}");
    eventually("it is taken back", || {
        last_job(&owner)["state"] == "rolled-back"
    });
    let new = pod(&lab);
    assert!(runs(&new, "registry.lab/agent:1"), "{new:#}");
    assert_ne!(new["metadata"]["uid"], old["metadata"]["uid"]);
}
