//! A pool that coordinates itself, as an unmodified kubectl sees it: nodes that stay Ready without their link, a leader that
//! changes, and the same answers at every node.

use crate::{
    fixture::{Kubectl, Lab, eventually},
    topology::WEB,
};
use serde_json::Value;
use std::collections::BTreeSet;

const POOLS: &str = "a=3,b=2";
const A: [&str; 3] = ["a-1", "a-2", "a-3"];
/// The annotation of a lease that another renews.
const DELEGATED: &str = r"openyurt\.io/delegate-heartbeat";

/// A lab whose pools have found their leaders.
fn lab(arguments: &[&str]) -> Option<Lab> {
    let lab = Lab::start_with(POOLS, arguments)?;
    for pool in ["a", "b"] {
        eventually("a leader, and everybody else follows it", || {
            let roles = roles(&lab, pool);
            let of = |role: &str| roles.iter().filter(|(_, is)| is == role).count();
            of("leader") == 1 && of("follower") == roles.len() - 1
        });
    }
    Some(lab)
}

/// The nodes of a pool, and what each is to it by its own word.
fn roles(lab: &Lab, pool: &str) -> Vec<(String, String)> {
    let status = lab.lab(&["status", pool]);
    let nodes = status.as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    nodes
        .map(|node| (text(&node["name"]), text(&node["pool_role"])))
        .collect()
}

fn in_role(lab: &Lab, pool: &str, role: &str) -> Vec<String> {
    let roles = roles(lab, pool).into_iter();
    roles
        .filter(|(_, is)| is == role)
        .map(|(node, _)| node)
        .collect()
}

/// The one that leads.
fn leader(lab: &Lab, pool: &str) -> String {
    let leaders = in_role(lab, pool, "leader");
    assert_eq!(leaders.len(), 1, "{leaders:?}");
    leaders.into_iter().next().unwrap()
}

/// A node's way to the hub of another one of its pool.
fn at_peer(lab: &Lab, node: &str) -> Kubectl {
    lab.at(lab.dir().join("nodes").join(node).join("pool.kubeconfig"))
}

fn ready_condition(lab: &Lab, node: &str) -> String {
    let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    lab.cloud().ok(&["get", "node", node, "-o", path])
}

/// Who renews a node's lease in the cloud, and when that was.
fn renewal(lab: &Lab, node: &str) -> (bool, String) {
    let path = format!("jsonpath={{.metadata.annotations.{DELEGATED}}} {{.spec.renewTime}}");
    let told = lab
        .cloud()
        .ok(&["get", "lease", "-n", "kube-node-lease", node, "-o", &path]);
    let (delegated, time) = told.split_once(' ').unwrap();
    (delegated == "true", time.to_owned())
}

#[test]
fn a_cut_node_stays_ready_because_its_pool_vouches_for_it() {
    let quick = [
        "--heartbeat-interval-seconds=1",
        "--node-monitor-grace-period=8s",
        "--node-monitor-period=1s",
    ];
    let Some(lab) = lab(&quick) else { return };
    let cut = in_role(&lab, "a", "follower").remove(0);
    let watch = [
        "get",
        "nodes",
        "-w",
        "--output-watch-events",
        "-o",
        "jsonpath={.object.metadata.name}={.object.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}",
    ];
    let nodes = lab.cloud().follow(&watch);
    eventually("the watch tells of all", || nodes.lines().len() >= 5);
    lab.lab(&["cut", &cut]);
    // All of the other pool, for comparison: nobody is left who could tell the cloud.
    lab.lab(&["cut", "b"]);
    eventually("its lease is renewed for it", || renewal(&lab, &cut).0);
    eventually("nobody vouches for the others", || {
        ["b-1", "b-2"]
            .iter()
            .all(|node| ready_condition(&lab, node) == "Unknown")
    });
    // Longer than it took to give up the others: so many renewals, a second apart each.
    let mut times = BTreeSet::new();
    eventually("it is renewed again and again", || {
        let (delegated, time) = renewal(&lab, &cut);
        assert!(delegated, "renewed by itself while it is cut");
        times.insert(time);
        times.len() >= 12
    });
    assert_eq!(ready_condition(&lab, &cut), "True");
    let lost = format!("{cut}=Unknown");
    assert!(!nodes.lines().contains(&lost), "{:?}", nodes.lines());
    let taints = |node: &str| {
        lab.cloud()
            .ok(&["get", "node", node, "-o", "jsonpath={.spec.taints[*].key}"])
    };
    eventually("nothing new is scheduled there", || {
        taints(&cut).contains("node.openyurt.io/unschedulable")
    });

    lab.lab(&["heal", &cut]);
    lab.wait_hub(&cut, "online");
    eventually("it renews its lease itself", || !renewal(&lab, &cut).0);
    eventually("and is like any node", || taints(&cut).is_empty());
    lab.lab(&["heal", "b"]);
    eventually("the others are back", || {
        ["b-1", "b-2"]
            .iter()
            .all(|node| ready_condition(&lab, node) == "True")
    });
}

#[test]
fn a_cut_leader_is_followed_by_another_and_follows_it() {
    let Some(lab) = lab(&[]) else { return };
    let names = |node: &str| lab.node(node).ok(&["get", "services", "-o", "name"]);
    for node in A {
        names(node);
    }
    let first = leader(&lab, "a");
    let follows = lab
        .node(&first)
        .follow(&["get", "services", "-w", "-o", "name"]);
    eventually("the watch tells what there is", || {
        !follows.lines().is_empty()
    });
    lab.lab(&["cut", &first]);
    eventually("another one leads", || {
        let leaders = in_role(&lab, "a", "leader");
        leaders.len() == 1 && leaders[0] != first
    });
    // What happens in the cloud now comes to every node, to the one that is cut through its peers.
    lab.cloud()
        .ok(&["create", "service", "clusterip", "news", "--tcp=80"]);
    for node in A {
        eventually("the new service at every node", || {
            names(node).contains("service/news")
        });
    }
    eventually("and in the watch opened before", || {
        follows.lines().iter().any(|line| line == "service/news")
    });
    assert_eq!(lab.lab(&["status", &first])[0]["link"], "cut");
    let second = leader(&lab, "a");

    // The next one is gone altogether: killed, and cut when it comes back.
    lab.lab(&["cut", &second]);
    lab.lab(&["kill", &second]);
    eventually("the third leads", || {
        let leaders = in_role(&lab, "a", "leader");
        leaders.len() == 1 && leaders[0] != first && leaders[0] != second
    });
    lab.cloud()
        .ok(&["create", "service", "clusterip", "more", "--tcp=80"]);
    for node in A {
        // The killed hub is coming up meanwhile.
        eventually("news at every node", || {
            let out = lab.node(node).output(&["get", "service", "more"]);
            out.status.success()
        });
    }
    lab.lab(&["heal", "a"]);
    eventually("one leader of all", || {
        in_role(&lab, "a", "leader").len() == 1 && in_role(&lab, "a", "follower").len() == 2
    });
}

#[test]
fn a_pool_that_is_cut_altogether_answers_alike_everywhere() {
    let Some(lab) = lab(&[]) else { return };
    lab.cloud().feed(&["apply", "-f", "-"], WEB);
    lab.cloud()
        .ok(&["rollout", "status", "daemonset/web", "--timeout=60s"]);
    let shared = |kubectl: Kubectl| -> Value {
        let list = kubectl.ok(&["get", "services,endpointslices", "-A", "-o", "json"]);
        serde_json::from_str::<Value>(&list).unwrap()["items"].clone()
    };
    let cloud = || shared(lab.cloud());
    for node in A {
        eventually("every node knows what the cloud knows", || {
            shared(lab.node(node)) == cloud()
        });
    }
    let before = cloud();
    assert!(before.as_array().unwrap().len() >= 3, "{before:#}");
    lab.lab(&["cut", "a"]);
    for node in A {
        lab.wait_hub(node, "offline");
    }
    lab.cloud()
        .ok(&["create", "service", "clusterip", "unknown", "--tcp=80"]);
    for node in A {
        assert_eq!(shared(lab.node(node)), before, "{node}");
    }
    // Also when one of them begins anew.
    lab.lab(&["kill", "a-2"]);
    eventually("a-2 is back", || {
        let status = lab.lab(&["status", "a-2"]);
        status[0]["hub_restarts"] == 1 && status[0]["hub"] == "offline"
    });
    eventually("and answers as before", || {
        let list = lab
            .node("a-2")
            .output(&["get", "services,endpointslices", "-A", "-o", "json"]);
        list.status.success()
    });
    assert_eq!(shared(lab.node("a-2")), before);
    lab.lab(&["heal", "a"]);
    for node in A {
        eventually("every node knows the news", || {
            shared(lab.node(node)) == cloud()
        });
    }
}

#[test]
fn kubectl_reads_leases_and_what_is_shared_at_a_leader() {
    let Some(lab) = lab(&["--heartbeat-interval-seconds=1"]) else {
        return;
    };
    let leader = leader(&lab, "a");
    let follower = in_role(&lab, "a", "follower").remove(0);
    let context = format!("--context={leader}");
    let ask = |args: &[&str]| {
        let mut all = vec![context.as_str()];
        all.extend(args);
        at_peer(&lab, &follower).without_cache().output(&all)
    };
    eventually("the leases of all its nodes", || {
        let leases = ask(&["get", "leases", "-n", "kube-node-lease", "-o", "name"]);
        let leases = String::from_utf8_lossy(&leases.stdout).into_owned();
        A.iter()
            .all(|node| leases.contains(&format!("lease.coordination.k8s.io/{node}\n")))
    });
    let services = ask(&["get", "services", "-A"]);
    let services = String::from_utf8_lossy(&services.stdout).into_owned();
    assert!(services.contains("kubernetes"), "{services}");
    assert!(ask(&["get", "endpointslices", "-A"]).status.success());
    for refused in [
        &["get", "secrets", "-A"][..],
        &["delete", "service", "kubernetes"],
    ] {
        let out = ask(refused);
        assert!(!out.status.success(), "{refused:?}");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(
            said.contains("Forbidden") || said.contains("forbidden"),
            "{refused:?}: {said}"
        );
    }
    // A node of another pool is not let in.
    let address = lab.lab(&["status", &leader])[0]["address"]
        .as_str()
        .unwrap()
        .to_owned();
    let server = format!("--server=https://{address}:10269");
    let stranger = at_peer(&lab, "b-1").refused(&[&server, "get", "services", "-A"]);
    assert!(
        stranger.contains("orbidden") || stranger.contains("pool"),
        "{stranger}"
    );
}
