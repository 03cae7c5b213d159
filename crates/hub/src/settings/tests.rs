use super::*;
use proptest::prelude::*;

fn data(pairs: &[(&str, &str)]) -> Data {
    let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(pair).collect()
}

fn flags() -> Settings {
    Settings {
        pool: "hangzhou".into(),
        pool_scope: vec![Gvr::new("", "v1", "services")],
        ..Settings::default()
    }
}

fn hub(pairs: &[(&str, &str)]) -> (Settings, Vec<Complaint>) {
    flags().read(Some(&data(pairs)), None)
}

fn leaders(pairs: &[(&str, &str)]) -> (Settings, Vec<Complaint>) {
    flags().read(None, Some(&data(pairs)))
}

fn names(set: &BTreeSet<String>) -> Vec<&str> {
    set.iter().map(String::as_str).collect()
}

#[test]
fn without_maps_the_flags_hold() {
    assert_eq!(flags().read(None, None), (flags(), Vec::new()));
    // As OpenYurt's chart ships it.
    let shipped = [
        ("cache_agents", ""),
        ("servicetopology", ""),
        ("discardcloudservice", ""),
        ("masterservice", ""),
    ];
    assert_eq!(hub(&shipped), (flags(), Vec::new()));
}

#[test]
fn agents_are_taken_in_lower_case() {
    let (settings, complaints) = hub(&[("cache_agents", " Calico-Node, nginx ,,nginx")]);
    assert_eq!(names(&settings.cache_agents), ["calico-node", "nginx"]);
    assert_eq!(complaints, []);
    assert_eq!(names(&hub(&[("cache_agents", "*")]).0.cache_agents), ["*"]);
}

#[test]
fn nonsense_among_agents_does_not_lift_the_restriction() {
    for nonsense in ["a b", "../..", "x/y", &"x".repeat(LONGEST_ENTRY + 1)] {
        let (settings, complaints) = hub(&[("cache_agents", nonsense)]);
        assert!(!settings.cache_agents.is_empty(), "{nonsense}");
        assert!(!settings.cache_agents.contains("*"));
        assert_eq!(complaints.len(), 1, "{nonsense}");
    }
}

#[test]
fn filters_by_all_forms_of_their_keys() {
    let (settings, complaints) = hub(&[
        ("servicetopology", "nginx-ingress,Traefik"),
        (
            "filter_servicetopology",
            "calico/endpointslices#list;watch, traefik/endpoints#list",
        ),
        ("filter_masterservice", "k3s-agent/services#list;watch"),
        ("masterservise", "kubelet"),
        ("filter_endpoints", "x/y#list"),
        ("nodeportisolation", "/services#list,a b/c"),
    ]);
    let filter = |name: &str| names(settings.filters.get(name).unwrap());
    assert_eq!(
        filter("servicetopology"),
        ["calico", "nginx-ingress", "traefik"]
    );
    assert_eq!(filter("masterservice"), ["k3s-agent"]);
    assert_eq!(settings.filters.len(), 2);
    let keys: Vec<&str> = complaints.iter().map(|c| c.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "filter_endpoints",
            "masterservise",
            "nodeportisolation",
            "nodeportisolation"
        ]
    );
}

#[test]
fn the_old_list_of_pool_scope_resources_adds() {
    let (settings, complaints) = hub(&[(
        "pool_scope_resources",
        r#"[{"group":"","version":"v1","resource":"services"},{"group":"apps","version":"v1","resource":"daemonsets"},
            {"group":"x","version":"v1"},7]"#,
    )]);
    let expected = [
        Gvr::new("", "v1", "services"),
        Gvr::new("apps", "v1", "daemonsets"),
    ];
    assert_eq!(settings.pool_scope, expected);
    assert_eq!(complaints.len(), 2);
    let (settings, complaints) = hub(&[("pool_scope_resources", "services")]);
    assert_eq!(settings.pool_scope, flags().pool_scope);
    assert_eq!(
        complaints[0].to_string(),
        "config map yurt-hub-cfg, key pool_scope_resources: \"services\" is not a JSON list of resources"
    );
}

#[test]
fn the_map_of_the_pool() {
    let (settings, complaints) = leaders(&[
        (
            "leaders",
            "edge-2/fd00::2, edge-1/10.0.0.1,edge-3,a/b/c,/1.2.3.4,edge-4/nowhere,edge-2/10.0.0.9",
        ),
        ("candidates", "edge-5/10.0.0.5,edge-1/10.0.0.1"),
        (
            "pool-scoped-metadata",
            "/v1/services,discovery.k8s.io/v1/endpointslices,v1/services,/v1/services",
        ),
        ("enable-leader-election", "true"),
        ("interconnectivity", "True"),
    ]);
    let named = |pairs: &[(&str, &str)]| -> Vec<(String, IpAddr)> {
        let pairs = pairs.iter();
        pairs
            .map(|(node, ip)| ((*node).to_owned(), ip.parse().unwrap()))
            .collect()
    };
    // In the order of the map: it is their rank.
    assert_eq!(
        settings.leaders,
        named(&[("edge-2", "fd00::2"), ("edge-1", "10.0.0.1")])
    );
    assert_eq!(
        settings.candidates,
        named(&[("edge-5", "10.0.0.5"), ("edge-1", "10.0.0.1")])
    );
    assert_eq!(
        settings.pool_scope,
        [
            Gvr::new("", "v1", "services"),
            Gvr::new("discovery.k8s.io", "v1", "endpointslices")
        ]
    );
    assert!(settings.leader_election && !settings.inter_connectivity);
    assert_eq!(complaints.len(), 6);
    assert!(complaints.iter().all(|c| c.map == "leader-hub-hangzhou"));
    // An empty list shares nothing; a map without it leaves the flags in force.
    assert_eq!(leaders(&[("pool-scoped-metadata", "")]).0.pool_scope, []);
    assert_eq!(leaders(&[("leaders", "")]).0.pool_scope, flags().pool_scope);
}

#[test]
fn lists_and_complaints_have_bounds() {
    let many = |n: usize| (0..n).map(|i| format!("a{i},")).collect::<String>();
    let (settings, complaints) = hub(&[("cache_agents", &many(10_000))]);
    assert_eq!(settings.cache_agents.len(), MOST_ENTRIES);
    assert_eq!(complaints.len(), 1);
    let (_, complaints) = leaders(&[("leaders", &many(200))]);
    assert_eq!(complaints.len(), MOST_COMPLAINTS);
}

proptest! {
    #[test]
    fn whatever_is_written_into_maps_is_bounded_and_does_not_widen(
        values in proptest::collection::btree_map(
            prop_oneof![
                Just("cache_agents".to_owned()),
                Just("pool_scope_resources".to_owned()),
                Just("servicetopology".to_owned()),
                Just("leaders".to_owned()),
                Just("pool-scoped-metadata".to_owned()),
                ".{0,20}",
            ],
            ".{0,200}",
            0..8,
        )
    ) {
        let (settings, complaints) = flags().read(Some(&values), Some(&values));
        prop_assert!(complaints.len() <= 2 * MOST_COMPLAINTS);
        let restricts = values.get("cache_agents").is_some_and(|v| v.split(',').any(|e| !e.trim().is_empty()));
        prop_assert_eq!(settings.cache_agents.is_empty(), !restricts);
        let all = values.get("cache_agents").is_some_and(|v| v.split(',').any(|e| e.trim() == "*"));
        prop_assert_eq!(settings.cache_agents.contains("*"), all);
        for name in settings.filters.keys() {
            prop_assert!(is_built_in(name));
        }
    }
}
