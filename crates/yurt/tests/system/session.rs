//! What an operator does with kubectl in a day, against `yurt up`.

use crate::fixture::{Kubectl, Lab, eventually, text};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {app: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: nginx
        image: nginx:1.27
        ports: [{containerPort: 80, name: http}]
        resources: {requests: {cpu: 50m, memory: 32Mi}}
"#;

fn json(kubectl: &Kubectl, args: &[&str]) -> Value {
    let mut all = args.to_vec();
    all.extend(["-o", "json"]);
    serde_json::from_str(&kubectl.ok(&all)).unwrap()
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn a_deployment_rolls_out_scales_and_rolls_back() {
    let Some(lab) = Lab::start("a=2") else { return };
    let kubectl = lab.cloud();
    assert_eq!(
        kubectl.feed(&["apply", "-f", "-"], WEB),
        "deployment.apps/web created\n"
    );
    let done = kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert!(
        done.ends_with("deployment \"web\" successfully rolled out\n"),
        "{done}"
    );
    let table = kubectl.ok(&["get", "deployment", "web"]);
    assert!(table.contains("3/3     3            3"), "{table}");
    assert_eq!(
        kubectl.feed(&["apply", "-f", "-"], WEB),
        "deployment.apps/web unchanged\n"
    );

    // diff tells what apply would do, by its exit code too.
    let newer = WEB.replace("nginx:1.27", "nginx:1.28");
    let file = lab.dir().join("web.yaml");
    std::fs::write(&file, &newer).unwrap();
    let file = file.to_str().unwrap();
    let diff = kubectl.output(&["diff", "-f", file]);
    assert_eq!(diff.status.code(), Some(1), "{}", text(&diff.stderr));
    let told = text(&diff.stdout);
    assert!(told.contains("-      - image: nginx:1.27"), "{told}");
    assert!(told.contains("+      - image: nginx:1.28"), "{told}");

    kubectl.ok(&["apply", "--server-side", "--force-conflicts", "-f", file]);
    kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let history = kubectl.ok(&["rollout", "history", "deployment/web"]);
    assert!(
        history.contains("REVISION  CHANGE-CAUSE\n1         <none>\n2         <none>"),
        "{history}"
    );
    kubectl.ok(&["rollout", "undo", "deployment/web"]);
    kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let image = "jsonpath={.spec.template.spec.containers[0].image}";
    assert_eq!(
        kubectl.ok(&["get", "deployment", "web", "-o", image]),
        "nginx:1.27"
    );

    kubectl.ok(&["scale", "deployment/web", "--replicas=5"]);
    kubectl.ok(&[
        "wait",
        "deployment/web",
        "--for=jsonpath={.status.readyReplicas}=5",
        "--timeout=60s",
    ]);
    kubectl.ok(&["rollout", "pause", "deployment/web"]);
    kubectl.ok(&["set", "image", "deployment/web", "nginx=nginx:1.29"]);
    let sets = items(&json(&kubectl, &["get", "replicasets", "-l", "app=web"])).len();
    assert_eq!(sets, 2, "nothing moves while it is paused");
    kubectl.ok(&["rollout", "resume", "deployment/web"]);
    kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    kubectl.ok(&["rollout", "restart", "deployment/web"]);
    kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);

    // edit, with an editor that is a program.
    let editor = lab.dir().join("editor");
    std::fs::write(
        &editor,
        "#!/bin/sh\nexec sed -i 's/^  replicas: 5$/  replicas: 2/' \"$1\"\n",
    )
    .unwrap();
    std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755)).unwrap();
    let edited = kubectl
        .command(&["edit", "deployment/web"])
        .env("KUBE_EDITOR", &editor)
        .output()
        .unwrap();
    assert!(edited.status.success(), "{}", text(&edited.stderr));
    assert_eq!(text(&edited.stdout), "deployment.apps/web edited\n");
    kubectl.ok(&[
        "wait",
        "deployment/web",
        "--for=jsonpath={.status.replicas}=2",
        "--timeout=60s",
    ]);

    // A service finds the pods that are ready.
    assert_eq!(
        kubectl.ok(&[
            "expose",
            "deployment/web",
            "--port=8080",
            "--target-port=http"
        ]),
        "service/web exposed\n"
    );
    eventually("two endpoints", || {
        let slices = json(
            &kubectl,
            &[
                "get",
                "endpointslices",
                "-l",
                "kubernetes.io/service-name=web",
            ],
        );
        items(&slices)
            .iter()
            .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default())
            .filter(|endpoint| endpoint["conditions"]["ready"] == true)
            .count()
            == 2
    });
    let described = kubectl.ok(&["describe", "deployment", "web"]);
    assert!(described.contains("ScalingReplicaSet"), "{described}");

    // What belongs to it goes with it.
    kubectl.ok(&["delete", "deployment", "web", "--cascade=foreground"]);
    let left = kubectl.ok(&["get", "replicasets,pods", "-l", "app=web", "-o", "name"]);
    assert_eq!(left, "", "foreground deletion waits for the dependents");
}

#[test]
fn a_node_is_cordoned_drained_and_tainted() {
    let Some(lab) = Lab::start("a=2") else { return };
    let kubectl = lab.cloud();
    kubectl.feed(
        &["apply", "-f", "-"],
        &WEB.replace("replicas: 3", "replicas: 4"),
    );
    kubectl.feed(
        &["apply", "-f", "-"],
        "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      containers: [{name: agent, image: agent:1}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec:
  minAvailable: 3
  selector: {matchLabels: {app: web}}
",
    );
    kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    kubectl.ok(&["rollout", "status", "daemonset/agent", "--timeout=60s"]);
    let nodes = kubectl.ok(&["get", "nodes", "-o", "name"]);
    let (first, second) = {
        let mut names = nodes.lines().filter_map(|line| line.strip_prefix("node/"));
        (names.next().unwrap(), names.next().unwrap())
    };
    let on = |node: &str, app: &str| {
        let selector = format!("app={app}");
        let field = format!("spec.nodeName={node}");
        let pods = json(
            &kubectl,
            &["get", "pods", "-l", &selector, "--field-selector", &field],
        );
        items(&pods)
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .count()
    };
    assert_eq!(on(first, "web") + on(second, "web"), 4);
    assert_eq!((on(first, "agent"), on(second, "agent")), (1, 1));

    kubectl.ok(&["cordon", first]);
    let table = kubectl.ok(&["get", "node", first]);
    assert!(table.contains("Ready,SchedulingDisabled"), "{table}");
    let said = kubectl.refused(&["drain", first]);
    assert!(
        said.contains("cannot delete DaemonSet-managed Pods"),
        "{said}"
    );
    kubectl.ok(&["drain", first, "--ignore-daemonsets", "--timeout=90s"]);
    assert_eq!((on(first, "web"), on(first, "agent")), (0, 1));
    kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert_eq!(on(second, "web"), 4);
    kubectl.ok(&["uncordon", first]);

    kubectl.ok(&["taint", "nodes", second, "maintenance=now:NoExecute"]);
    eventually(
        "the tainted node is empty of what does not tolerate it",
        || on(second, "web") == 0 && on(second, "agent") == 0,
    );
    eventually("and the other runs it", || on(first, "web") == 4);
    kubectl.ok(&["taint", "nodes", second, "maintenance-"]);
    eventually("the daemon comes back", || on(second, "agent") == 1);

    // What fits nowhere says why.
    kubectl.ok(&["run", "giant", "--image=giant", "--overrides",
        r#"{"spec": {"containers": [{"name": "giant", "image": "giant", "resources": {"requests": {"cpu": "4000"}}}]}}"#]);
    eventually("the scheduler says why", || {
        let pod = json(&kubectl, &["get", "pod", "giant"]);
        pod["status"]["conditions"]
            .to_string()
            .contains("0/2 nodes are available: 2 Insufficient cpu.")
    });
}

#[test]
fn rights_are_what_roles_say() {
    let Some(lab) = Lab::start("a=1") else { return };
    let kubectl = lab.cloud();
    assert_eq!(kubectl.ok(&["auth", "can-i", "delete", "nodes"]), "yes\n");
    let who = kubectl.ok(&["auth", "whoami"]);
    assert!(
        who.contains("kubernetes-admin") && who.contains("system:masters"),
        "{who}"
    );

    kubectl.ok(&["create", "serviceaccount", "reader"]);
    kubectl.ok(&[
        "create",
        "role",
        "pod-reader",
        "--verb=get,list,watch",
        "--resource=pods",
    ]);
    kubectl.ok(&[
        "create",
        "rolebinding",
        "reader",
        "--role=pod-reader",
        "--serviceaccount=default:reader",
    ]);
    let reader = "--as=system:serviceaccount:default:reader";
    assert_eq!(
        kubectl.ok(&["auth", "can-i", "list", "pods", reader]),
        "yes\n"
    );
    for denied in [
        ["delete", "pods", "-n=default"],
        ["list", "pods", "-n=kube-system"],
        ["list", "secrets", "-n=default"],
    ] {
        let mut args = vec!["auth", "can-i", reader];
        args.extend(denied);
        let out = kubectl.output(&args);
        assert_eq!(
            (out.status.code(), text(&out.stdout).as_str()),
            (Some(1), "no\n"),
            "{denied:?}"
        );
    }
    let rights = kubectl.ok(&["auth", "can-i", "--list", reader]);
    assert!(
        rights.contains("pods ") && rights.contains("[get list watch]"),
        "{rights}"
    );

    // The account's own token has exactly these rights.
    let token = kubectl.ok(&["create", "token", "reader", "--duration=10m"]);
    let token = format!("--token={}", token.trim());
    let account = lab.without_identity();
    account.ok(&["get", "pods", &token]);
    let refused = account.refused(&["get", "secrets", &token]);
    assert!(
        refused.contains("User \"system:serviceaccount:default:reader\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\""),
        "{refused}"
    );
    // Nobody hands out what he does not have.
    kubectl.ok(&[
        "create",
        "role",
        "role-maker",
        "--verb=create,get",
        "--resource=roles.rbac.authorization.k8s.io",
    ]);
    kubectl.ok(&[
        "create",
        "rolebinding",
        "role-maker",
        "--role=role-maker",
        "--serviceaccount=default:reader",
    ]);
    let escalation = kubectl.refused(&[
        "create",
        "role",
        "more",
        "--verb=delete",
        "--resource=pods",
        reader,
    ]);
    assert!(
        escalation.contains("is attempting to grant RBAC permissions not currently held"),
        "{escalation}"
    );
}

#[test]
fn a_certificate_is_requested_approved_and_used() {
    let Some(lab) = Lab::start("a=1") else { return };
    let kubectl = lab.cloud();
    let wanted = yurt_pki::request(&yurt_pki::Profile {
        common_name: "jane".into(),
        organizations: vec!["team-a".into()],
        ..yurt_pki::Profile::default()
    })
    .unwrap();
    let encoded = STANDARD.encode(&wanted.request);
    kubectl.feed(
        &["create", "-f", "-"],
        &format!(
            "
apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {{name: jane}}
spec:
  request: {encoded}
  signerName: kubernetes.io/kube-apiserver-client
  expirationSeconds: 3600
  usages: [client auth]
"
        ),
    );
    let pending = kubectl.ok(&["get", "csr", "jane"]);
    assert!(pending.contains("Pending"), "{pending}");
    kubectl.ok(&["certificate", "approve", "jane"]);
    eventually("the certificate is issued", || {
        kubectl
            .ok(&["get", "csr", "jane"])
            .contains("Approved,Issued")
    });
    let certificate = kubectl.ok(&["get", "csr", "jane", "-o", "jsonpath={.status.certificate}"]);
    let files = lab.dir();
    let (cert_file, key_file) = (files.join("jane.crt"), files.join("jane.key"));
    std::fs::write(&cert_file, STANDARD.decode(certificate.trim()).unwrap()).unwrap();
    std::fs::write(&key_file, &wanted.key).unwrap();
    kubectl.ok(&[
        "create",
        "clusterrolebinding",
        "team-a",
        "--clusterrole=view",
        "--group=team-a",
    ]);
    let (cert, key) = (
        format!("--client-certificate={}", cert_file.display()),
        format!("--client-key={}", key_file.display()),
    );
    let jane = lab.without_identity();
    let who = jane.ok(&["auth", "whoami", &cert, &key]);
    assert!(who.contains("jane") && who.contains("team-a"), "{who}");
    jane.ok(&["get", "pods", "-A", &cert, &key]);
    jane.refused(&["get", "secrets", "-A", &cert, &key]);
}

#[test]
fn containers_log_execute_and_serve() {
    let Some(lab) = Lab::start("a=1") else { return };
    let kubectl = lab.cloud();
    kubectl.feed(&["apply", "-f", "-"], WEB);
    kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    kubectl.ok(&[
        "expose",
        "deployment/web",
        "--port=8080",
        "--target-port=http",
    ]);

    let logs = kubectl.ok(&["logs", "deployment/web", "--tail=1", "--timestamps"]);
    assert_eq!(logs.lines().count(), 1, "{logs}");
    assert_eq!(
        kubectl.ok(&["exec", "deployment/web", "--", "echo", "a b", "c"]),
        "a b c\n"
    );
    let failed = kubectl.output(&["exec", "deployment/web", "--", "sh", "-c", "exit 7"]);
    assert_eq!(failed.status.code(), Some(7), "{}", text(&failed.stderr));
    assert_eq!(
        kubectl.feed(&["exec", "-i", "deployment/web", "--", "cat"], "through\n"),
        "through\n"
    );

    // port-forward carries a plain HTTP request to the container and its answer back.
    kubectl.forwards("service/web", ":8080");

    let proxied = kubectl.ok(&[
        "get",
        "--raw",
        "/api/v1/namespaces/default/services/web:8080/proxy/",
    ]);
    assert!(!proxied.is_empty());
}

#[test]
fn everything_explains_itself() {
    let Some(lab) = Lab::start("a=1") else { return };
    let kubectl = lab.cloud();
    for (kind, field) in [
        ("pods", "containers"),
        ("deployment", "maxUnavailable"),
        ("endpointslices", "targetRef"),
        ("customresourcedefinitions", "x-kubernetes-validations"),
    ] {
        let fields = kubectl.ok(&["explain", kind, "--recursive"]);
        assert!(fields.contains(field), "{kind}: {fields}");
    }
    let field = kubectl.ok(&["explain", "pod.spec.containers.image"]);
    assert!(field.contains("FIELD: image <string>"), "{field}");
    let resources = kubectl.ok(&["api-resources", "-o", "name"]);
    for name in [
        "deployments.apps",
        "leases.coordination.k8s.io",
        "roles.rbac.authorization.k8s.io",
    ] {
        assert!(
            resources.lines().any(|line| line == name),
            "{name} in {resources}"
        );
    }
    // Every kind that is listed can be got, as a table too.
    let listable = kubectl.ok(&["api-resources", "--verbs=list", "-o", "name"]);
    let listable: Vec<&str> = listable.lines().collect();
    kubectl.ok(&["get", "-A", &listable.join(",")]);
}
