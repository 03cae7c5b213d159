use super::*;
use clap::Parser;
use std::time::Duration;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: ManagerArgs,
}

fn parse(words: &[&str]) -> Result<Config, String> {
    let line = std::iter::once("manager").chain(words.iter().copied());
    let line = Line::try_parse_from(line).map_err(|error| error.to_string())?;
    line.args
        .try_into()
        .map_err(|error: ConfigError| error.to_string())
}

#[test]
fn defaults_are_openyurts() {
    let config = parse(&[]).expect("defaults");
    assert_eq!(config.settings.namespace, "kube-system");
    assert_eq!(config.settings.workers["hubleaderrbac-controller"], 1);
    assert_eq!(config.settings.workers["pod-binding-controller"], 5);
    assert_eq!(config.settings.workers("nodepool-controller", 9), 3);
    assert_eq!(config.settings.node_life_cycle, NodeLifeCycle::default());
    let election = config.election.expect("elects");
    assert_eq!(election.lease, "yurt-manager");
    assert_eq!(election.timing, Timing::default());
    assert_eq!(config.limit, Some((50.0, 100)));
    let port = |address: Option<SocketAddr>| address.map(|address| address.port());
    assert_eq!(port(config.metrics), Some(10271));
    assert_eq!(port(config.health), Some(10272));
    let webhooks = config.webhooks.expect("webhooks");
    assert_eq!(
        (webhooks.port, webhooks.namespace.as_str()),
        (10273, "kube-system")
    );
    assert!(config.independent_accounts);
    assert!(registry::names().all(|names| config.controllers.includes(names.name)));
}

#[test]
fn the_charts_command_line_is_understood() {
    let config = parse(&[
        "--metrics-addr=:10281",
        "--health-probe-addr=127.0.0.1:10282",
        "--webhook-port=10283",
        "--v=4",
        "--logtostderr",
        "--working-namespace=openyurt",
        "--controllers=-nodelifecycle,*"
            .replace("nodelifecycle", "imagepreheat")
            .as_str(),
        "--controllers=-delegatelease",
        "--disable-independent-webhooks=node,pod",
        "--leader-elect-resource-name=cloud-yurt-manager",
        "--leader-elect-lease-duration=30s",
        "--node-servant-image=registry/node-servant:v1",
        "--concurrent-hubleaderconfig-workers=7",
        "--feature-gates=RavenL7Proxy=false",
        "--enable-sync-nodepool-configurations=false",
    ])
    .expect("understood");
    assert_eq!(config.settings.namespace, "openyurt");
    assert_eq!(config.settings.workers["hubleaderconfig-controller"], 7);
    assert!(!config.settings.sync_nodepool_configurations);
    assert!(!config.controllers.includes("image-preheat-controller"));
    assert!(!config.controllers.includes("delegate-lease-controller"));
    assert!(config.controllers.includes("nodepool-controller"));
    assert_eq!(
        config.election.map(|election| election.timing.lease),
        Some(Duration::from_secs(30))
    );
}

#[test]
fn verbosity_stands_for_a_level() {
    let level = |words: &[&str]| {
        let line = std::iter::once("manager").chain(words.iter().copied());
        Line::try_parse_from(line)
            .expect("a line")
            .args
            .logging
            .level()
    };
    assert_eq!(level(&[]), None);
    assert_eq!(level(&["--v=4"]), Some("info"));
    assert_eq!(level(&["-v", "5"]), Some("debug"));
    assert_eq!(level(&["--v=9", "--alsologtostderr"]), Some("trace"));
    assert_eq!(level(&["--v=loud"]), None);
}

#[test]
fn what_comes_later_is_known_by_name() {
    assert!(parse(&["--controllers=gatewaypickup,platform-admin-controller,nodepool"]).is_ok());
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (flag, why) in [
        ("--controllers=nope", "nodepool-controller"),
        ("--controllers=*,-nope", "no controller `nope`"),
        ("--max-nodes-per-bucket=0", "at least 1"),
        ("--working-namespace=A/b", "is not a name"),
        ("--leader-elect-renew-deadline=15s", "lease duration"),
        ("--leader-elect-retry-period=9s", "retry"),
        ("--leader-elect-resource-lock=configmaps", "leases are"),
        ("--concurrent-nodepool-workers=0", "1..=1000"),
        ("--unhealthy-zone-threshold=2", "between 0 and 1"),
        ("--feature-gates=Nope=true", "RavenL7Proxy"),
        ("--feature-gates=RavenL7Proxy", "NAME=true"),
        ("--disable-independent-webhooks=secrets", "endpointslice"),
        ("--metrics-addr=10271", ":PORT"),
        ("--rest-config-burst=0", "at least 1"),
        ("--node-monitor-grace-period=soon", "no duration"),
    ] {
        let error = parse(&[flag]).expect_err(flag);
        assert!(error.contains(why), "{flag}: {error}");
    }
    assert_eq!(
        parse(&["--metrics-addr=0"]).map(|config| config.metrics),
        Ok(None)
    );
    for all in ["--controllers=", "--controllers=*"] {
        assert!(parse(&[all]).is_ok_and(|config| config.controllers == Selection::default()));
    }
    assert!(parse(&["--leader-elect=false"]).is_ok_and(|config| config.election.is_none()));
}
