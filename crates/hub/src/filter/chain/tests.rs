use super::*;
use http::Method;

/// The names of the filters of a request's chain.
fn picked(force: &Arc<Force>, agent: &str, method: &str, target: &str) -> Vec<String> {
    let (path, query) = target
        .split_once('?')
        .map_or((target, None), |(path, query)| (path, Some(query)));
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let info = RequestInfo::parse(&method, path, query);
    let chain = force.chain(agent, &info);
    let names = |chain: Chain| chain.filters().map(|f| f.name().to_owned()).collect();
    chain.map_or_else(Vec::new, names)
}

fn force(selection: &Selection, mode: WorkingMode) -> Arc<Force> {
    let context = Context {
        mode,
        ..Context::of_node("n")
    };
    Arc::new(Force::of(&BuiltIn::default(), &[], selection, context))
}

fn enabled() -> Selection {
    Selection {
        enabled: true,
        ..Selection::default()
    }
}

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const POD: &str = "/api/v1/namespaces/a/pods/b";

#[test]
fn chains_by_component_verb_and_resource() {
    let force = force(&enabled(), WorkingMode::Edge);
    let of_services = &["discardcloudservice", "nodeportisolation"][..];
    let of_slices = &["servicetopology", "forwardkubesvctraffic"][..];
    let of_pods = &["hostnetworkpropagation", "serviceenvupdater"][..];
    for (agent, method, target, expected) in [
        (
            "kube-proxy/v1.37.1 (linux/amd64)",
            "GET",
            SERVICES,
            of_services,
        ),
        ("Kube-Proxy", "GET", "/api/v1/services?watch=1", of_services),
        ("kube-proxy", "POST", "/api/v1/namespaces/a/services", &[]),
        (
            "kube-proxy",
            "GET",
            "/api/v1/namespaces/a/services/b/proxy/x",
            &[],
        ),
        ("kube-proxy", "GET", SLICES, of_slices),
        (
            "kube-proxy",
            "GET",
            "/apis/discovery.k8s.io/v1beta1/endpointslices",
            of_slices,
        ),
        ("coredns/1", "GET", SLICES, &["servicetopology"]),
        ("kubelet/v1", "GET", SERVICES, &["masterservice"]),
        (
            "kubelet/v1",
            "GET",
            "/api/v1/namespaces/default/services/kubernetes",
            &["masterservice"],
        ),
        // About one object: others are not looked at.
        ("kubelet/v1", "GET", "/api/v1/namespaces/a/services", &[]),
        (
            "kubelet/v1",
            "GET",
            "/api/v1/namespaces/kube-system/configmaps?fieldSelector=metadata.name%3Dkube-proxy&watch=1",
            &["inclusterconfig"],
        ),
        (
            "kubelet/v1",
            "GET",
            "/api/v1/namespaces/kube-system/configmaps?fieldSelector=metadata.name%3Dother&watch=1",
            &[],
        ),
        ("kubelet/v1", "GET", POD, of_pods),
        (
            "kubelet/v1",
            "PATCH",
            "/api/v1/namespaces/a/pods/b/status",
            of_pods,
        ),
        ("kubelet/v1", "GET", "/api/v1/namespaces/a/pods/b/log", &[]),
        ("kubelet/v1", "GET", "/version", &[]),
        ("kubelets/v1", "GET", POD, &[]),
        ("", "GET", POD, &[]),
    ] {
        assert_eq!(
            picked(&force, agent, method, target),
            expected,
            "{agent} {method} {target}"
        );
    }
}

#[test]
fn flags_config_maps_and_the_mode_select() {
    let services = |selection: &Selection, mode, agent| {
        picked(&force(selection, mode), agent, "GET", SERVICES)
    };
    let edge = WorkingMode::Edge;
    assert_eq!(services(&Selection::default(), edge, "kube-proxy"), [""; 0]);
    assert_eq!(
        services(&enabled(), WorkingMode::Cloud, "kube-proxy"),
        ["nodeportisolation"]
    );
    for (disabled, expected) in [
        ("discardcloudservice", &["nodeportisolation"][..]),
        ("*", &[]),
        ("nothing", &["discardcloudservice", "nodeportisolation"]),
    ] {
        let selection = Selection {
            disabled: vec![disabled.to_owned()],
            ..enabled()
        };
        assert_eq!(
            services(&selection, edge, "kube-proxy"),
            expected,
            "{disabled}"
        );
    }
    // Added, for other components as well; never for the hub itself, whatever a map says.
    let names = ["cilium", "yurthub", "multiplexer-proxy-n"];
    let added = BTreeMap::from([(
        "nodeportisolation".to_owned(),
        names.map(str::to_owned).into(),
    )]);
    let selection = Selection { added, ..enabled() };
    assert_eq!(
        services(&selection, edge, "Cilium/1.2"),
        ["nodeportisolation"]
    );
    assert_eq!(services(&selection, edge, "kube-proxy").len(), 2);
    for agent in [
        crate::USER_AGENT,
        "yurthub",
        "YurtHub/v1.7",
        "multiplexer-proxy-n",
        "multiplexer-proxy-other/1",
    ] {
        assert_eq!(services(&selection, edge, agent), [""; 0], "{agent}");
    }
}

#[test]
fn chains_are_alike_as_long_as_nothing_they_look_at_changes() {
    let info = RequestInfo::parse(&Method::GET, SLICES, Some("watch=1"));
    let built_in = BuiltIn::default();
    let chain = |change: fn(&mut Context), agent: &str| {
        let mut context = Context::of_node("n");
        change(&mut context);
        let force = Force::of(&built_in, &[], &enabled(), context);
        Arc::new(force).chain(agent, &info).unwrap()
    };
    let base = chain(|_| {}, "kube-proxy");
    assert!(base.is_like(&chain(|_| {}, "kube-proxy")));
    // The labels of the node are nothing that they look at.
    let labelled = |context: &mut Context| {
        context.node_labels = Arc::new([("a".to_owned(), "b".to_owned())].into());
    };
    assert!(base.is_like(&chain(labelled, "kube-proxy")));
    assert!(!base.is_like(&chain(|context| context.pool = "p".into(), "kube-proxy")));
    assert!(!base.is_like(&chain(
        |context| context.topologies = Some(Arc::default()),
        "kube-proxy"
    )));
    assert!(!base.is_like(&chain(|_| {}, "coredns")));
}
