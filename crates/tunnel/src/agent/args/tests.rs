use super::*;
use clap::Parser;

#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    agent: AgentArgs,
}

fn configured(flags: &[&str]) -> Result<AgentConfig, AgentArgsError> {
    let flags = std::iter::once("agent").chain(flags.iter().copied());
    Cli::try_parse_from(flags).expect("flags").agent.config()
}

#[test]
fn flags_of_openyurt_and_konnectivity_are_understood() {
    let config = configured(&[
        "--node-name=edge-1",
        "--node-ip=10.0.0.7",
        "--tunnelserver-addr=a:1,b",
    ])
    .unwrap();
    assert_eq!(config.identifiers.to_string(), "ipv4=10.0.0.7&host=edge-1");
    assert_eq!(config.servers.len(), 2);
    assert_eq!(config.meta.to_string(), "127.0.0.1:10266");
    assert!(
        matches!(&config.way, Some(Way::Kubeconfig(path)) if path.as_os_str() == KUBELET_CONFIG)
    );
    let konnectivity = configured(&[
        "--agent-id=x",
        "--proxy-server-host=fd00::1",
        "--proxy-server-port=8091",
        "--agent-identifiers=ipv4=10.0.0.8,host=y",
        "--ca-cert=ca",
        "--agent-cert=c",
        "--agent-key=k",
        "--service-account-token-path=t",
    ])
    .unwrap();
    assert_eq!(
        (
            konnectivity.node.as_str(),
            konnectivity.servers[0].to_string().as_str()
        ),
        ("x", "[fd00::1]:8091")
    );
    assert_eq!(konnectivity.identifiers.to_string(), "ipv4=10.0.0.8&host=y");
    assert!(matches!(konnectivity.authority, Authority::Files(_)));
}

/// The arguments and variables of the DaemonSets that OpenYurt shipped from v0.2 to v1.1, and every flag that its agent had.
#[test]
fn openyurts_daemonsets_are_understood() {
    for (args, servers) in [
        (&["--node-name=edge-1"][..], 0),
        (&["--node-name=edge-1", "--node-ip=10.0.0.7", "--v=2"], 0),
        (
            &[
                "--v=2",
                "--node-name=edge-1",
                "--tunnelserver-addr=1.2.3.4:31008",
            ],
            1,
        ),
    ] {
        let flags = std::iter::once("agent").chain(args.iter().copied());
        let agent = Cli::try_parse_from(flags).expect("flags").agent;
        let config = agent.settings.config(Some([10, 0, 0, 7].into())).unwrap();
        assert_eq!(config.identifiers.to_string(), "ipv4=10.0.0.7&host=edge-1");
        assert_eq!(config.scope.addresses, [IpAddr::from([10, 0, 0, 7])]);
        assert_eq!(config.servers.len(), servers);
        assert!(config.known.ends_with("yurttunnel-agent/pki"));
    }
    let all = configured(&[
        "--node-name=edge-1",
        "--node-ip=10.0.0.7",
        "--tunnelserver-addr=",
        "--apiserver-addr=https://10.0.0.1:6443/",
        "--agent-identifiers=ipv4=10.0.0.7,host=edge-1",
        "--meta-host=127.0.0.1",
        "--meta-port=10266",
        "--cert-dir=/var/lib/x",
    ])
    .unwrap();
    assert!(matches!(&all.way, Some(Way::PodAt(at)) if at == "10.0.0.1:6443"));
    let version = Cli::try_parse_from(["agent", "--version"]);
    assert!(version.is_err_and(|said| said.kind() == clap::error::ErrorKind::DisplayVersion));
}

#[test]
fn konnectivitys_manifest_has_only_a_token() {
    let stock = [
        "--logtostderr=true",
        "--ca-cert=/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
        "--proxy-server-host=35.225.206.7",
        "--admin-server-port=8133",
        "--health-server-port=8134",
        "--service-account-token-path=/var/run/secrets/tokens/konnectivity-agent-token",
        "--alpn-proto=cluster-1",
    ];
    let agent = configured(&stock).unwrap();
    assert!(matches!(agent.authority, Authority::Token { .. }) && agent.way.is_none());
    assert_eq!(agent.servers[0].to_string(), "35.225.206.7:8091");
    assert_eq!(
        (agent.node.len(), agent.identifiers.to_string()),
        (36, String::new())
    );
    assert_eq!(
        (agent.meta.port(), agent.protocols),
        (8134, vec!["cluster-1".to_owned()])
    );
    let more = ["--agent-identifiers=ipv4=10.0.0.7", "--count-server-leases"];
    let agent = configured(&[&stock[..], &more].concat()).unwrap();
    assert!(matches!(agent.way, Some(Way::Pod)));
    assert_eq!(
        agent.scope.addresses,
        ["10.0.0.7".parse::<IpAddr>().unwrap()]
    );
    // With a way to an API server, the agent has a certificate as well.
    let agent = configured(&[&stock[..], &["--in-cluster"]].concat()).unwrap();
    assert!(matches!(agent.authority, Authority::Cluster { .. }));
}

#[test]
fn what_does_not_fit_together_is_refused() {
    for (flags, why) in [
        (&["--node-name=a", "--standalone"][..], "--server"),
        (&["--node-name=a", "--agent-cert=c"], "go together"),
        (&["--node-name=a", "--token=x"], "--standalone"),
        (&["--node-name=a", "--server-connections=0"], "number"),
        (&["--node-name=a", "--transport=udp"], "auto, tcp or quic"),
        (&["--node-name=a", "--allow=x"], "needs ports"),
        (&["--node-name=a", "--proxy=ftp://x"], "socks5"),
        (&["--node-name=a", "--route=x"], "LISTEN"),
        (&["--node-name=a", "--reverse-redirect=0.0.0.0/0"], "every"),
        (&["--node-name=a", "--reverse-redirect=a:1"], "name"),
        (
            &["--node-name=a", "--reverse-dns-listen=0.0.0.0:53"],
            "which",
        ),
        (&["--node-name=a", "--server=a b"], "a b"),
    ] {
        let error = configured(flags).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(why), "{flags:?}: {error}");
    }
}

#[test]
fn a_file_says_the_same_and_flags_win() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.yaml");
    std::fs::write(&path, "node-name: edge-1\nserver-connections: '2'\ntunnelserver-addr: [a:1]\nallow: ['127.0.0.1:22']\n").unwrap();
    let flag = format!("--config={}", path.display());
    let config = configured(&[&flag, "--server-connections=1"]).unwrap();
    assert_eq!(
        (config.node.as_str(), config.policy),
        ("edge-1", Policy::Some(1))
    );
    assert_eq!(config.allow.len(), 1);
    std::fs::write(&path, "node-nam: x\n").unwrap();
    assert!(
        configured(&[&flag])
            .map(|_| ())
            .unwrap_err()
            .to_string()
            .contains("node-nam")
    );
}
