//! Flags, their defaults and their refusals.

use super::{checked::server_authority, *};
use clap::Args;
use std::time::Duration;

fn config(extra: &[&str]) -> Result<Config, ConfigError> {
    let mut args = vec![
        "--node-name=edge-1",
        "--server-addr=https://a:6443",
        "--ca-file=ca.crt",
    ];
    args.extend(extra);
    Config::parse(args)
}

#[test]
fn defaults_are_openyurts() {
    let config = config(&[]).unwrap();
    assert_eq!(config.working_mode, WorkingMode::Edge);
    assert_eq!(config.admin.unwrap().to_string(), "127.0.0.1:10267");
    assert_eq!(config.proxy.unwrap().to_string(), "127.0.0.1:10261");
    assert_eq!(
        config.secure_proxy.unwrap().to_string(),
        "169.254.2.1:10268"
    );
    assert_eq!(config.dummy_proxy.unwrap().to_string(), "169.254.2.1:10261");
    assert_eq!(config.dummy.unwrap().name, "hub-dummy0");
    assert_eq!(config.pool_port, Some(10269));
    assert_eq!(config.servers, ["a:6443"]);
    assert_eq!(config.lb_mode, LbMode::RoundRobin);
    assert_eq!(config.min_request_timeout, Duration::from_secs(1800));
    assert_eq!(config.heartbeat.kubelet_grace, Duration::from_secs(40));
    assert_eq!(config.gc_frequency, Duration::from_secs(7200));
    assert_eq!(config.namespace, "kube-system");
    assert!(!config.unsafe_open_proxy);
    assert_eq!(
        config.pool_scope,
        [
            Gvr::new("", "v1", "services"),
            Gvr::new("discovery.k8s.io", "v1", "endpointslices")
        ]
    );
    assert!(matches!(
        config.bootstrap,
        Some(Bootstrap::Token { token: None, .. })
    ));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn an_existing_unit_file_goes_on_working() {
    let config = config(&[
        "--v=2",
        "--heartbeat-interval-seconds=10",
        "--enable-iptables",
        "--max-requests-in-flight=250",
        "--enable-dummy-if=false",
        "--nodepool-name=hangzhou",
        "--bootstrap-file=/x",
        "--proxy-port=0",
        "--logtostderr",
        "--disabled-resource-filters=*",
        "--enable-node-pool=true",
    ])
    .unwrap();
    assert_eq!(config.proxy, None);
    assert_eq!(config.pool, "hangzhou");
    assert_eq!(config.secure_proxy.unwrap().to_string(), "127.0.0.1:10268");
    assert_eq!((config.dummy, config.dummy_proxy), (None, None));
    for flag in [
        "--v ",
        "--enable-iptables",
        "--max-requests-in-flight",
        "--logtostderr",
        "--enable-node-pool",
    ] {
        assert!(
            config.warnings.iter().any(|w| w.contains(flag)),
            "{flag}: {:?}",
            config.warnings
        );
    }
    assert_eq!(config.warnings.len(), 5, "{:?}", config.warnings);
}

#[test]
fn where_certificates_come_from() {
    let [one, two] = ["00", "1a"].map(|byte| format!("sha256:{}", byte.repeat(32)));
    let files = [
        "--client-cert=c",
        "--client-key=k",
        "--tls-cert=c",
        "--tls-key=k",
    ];
    assert_eq!(config(&files).unwrap().bootstrap, None);
    let kubelet = config(&["--bootstrap-mode=kubeletcertificate"]).unwrap();
    assert_eq!(kubelet.bootstrap, Some(Bootstrap::Kubelet));
    let token = config(&[
        "--join-token=abcdef.0123456789abcdef",
        &format!("--discovery-token-ca-cert-hash={one}, {two}"),
        "--root-dir=/r",
    ])
    .unwrap();
    let Some(Bootstrap::Token {
        ca_hashes, file, ..
    }) = token.bootstrap
    else {
        panic!("{:?}", token.bootstrap)
    };
    assert_eq!(ca_hashes, [one, two]);
    assert_eq!(file, PathBuf::from("/r/bootstrap-hub.conf"));
    let open = config(&[
        "--join-token=abcdef.0123456789abcdef",
        "--discovery-token-unsafe-skip-ca-verification",
    ]);
    assert_eq!(open.unwrap().warnings.len(), 1);
}

#[test]
fn every_hidden_flag_says_that_it_is_in_vain() {
    let hidden: Vec<String> = HubArgs::augment_args(clap::Command::new("hub"))
        .get_arguments()
        .filter(|flag| flag.is_hide_set())
        .filter_map(|flag| flag.get_long().map(str::to_owned))
        .collect();
    assert!(hidden.len() >= 20, "{hidden:?}");
    for flag in hidden {
        let config = config(&[&format!("--{flag}=1")]).unwrap();
        assert!(
            config
                .warnings
                .iter()
                .any(|w| w.contains(&format!("--{flag} "))),
            "{flag}: {:?}",
            config.warnings
        );
    }
}

#[test]
fn servers() {
    let ok = |text| server_authority(text).unwrap();
    assert_eq!(ok("a"), "a:443");
    assert_eq!(ok("a:6443"), "a:6443");
    assert_eq!(ok("https://10.0.0.1:6443/"), "10.0.0.1:6443");
    assert_eq!(ok("https://[fd00::1]:6443"), "[fd00::1]:6443");
    assert_eq!(ok("HTTPS://a"), "a:443");
    for bad in [
        "http://a",
        "ftp://a",
        "https://",
        "https://u@a",
        "a:99999",
        "a/b",
        "a b",
        "",
    ] {
        assert!(server_authority(bad).is_err(), "{bad}");
    }
    let many = config(&["--server-addr=b,https://c:1,b:443"]).unwrap();
    assert_eq!(many.servers, ["a:6443", "b:443", "c:1"]);
}

#[test]
fn refusals_name_the_flag() {
    for (extra, flag) in [
        (vec!["--lb-mode=random"], "lb-mode"),
        (vec!["--working-mode=moon"], "working-mode"),
        (vec!["--working-mode=local"], "host-control-plane-address"),
        (vec!["--bootstrap-mode=magic"], "bootstrap-mode"),
        (
            vec!["--join-token=abcdef.0123456789abcdef"],
            "discovery-token-ca-cert-hash",
        ),
        (vec!["--join-token=abcdef"], "join-token"),
        (
            vec!["--discovery-token-ca-cert-hash=sha256:ab"],
            "discovery-token-ca-cert-hash",
        ),
        (vec!["--dummy-if-name=a-name-too-long0"], "dummy-if-name"),
        (vec!["--dummy-if-ip=10.0.0.1"], "dummy-if-ip"),
        (vec!["--dummy-if-ip=169.254.31.7"], "dummy-if-ip"),
        (
            vec!["--pool-scope-resources=v1/services"],
            "pool-scope-resources",
        ),
        (
            vec!["--kubelet-health-grace-period=never"],
            "kubelet-health-grace-period",
        ),
        (
            vec!["--heartbeat-interval-seconds=0"],
            "heartbeat-interval-seconds",
        ),
        (vec!["--client-cert=c"], "client-key"),
        (vec!["--tls-key=k"], "tls-cert"),
        (vec!["--proxy-port=70000"], "proxy-port"),
        (vec!["--min-request-timeout=soon"], "min-request-timeout"),
        (vec!["--server-addr=http://a"], "server-addr"),
        (vec!["--cache-budget=5"], "cache-budget"),
    ] {
        assert_eq!(config(&extra).unwrap_err().flag, flag);
    }
}
