//! The command line.

use clap::{Args, FromArgMatches, Parser, Subcommand};
use std::{error::Error, ffi::OsString, path::Path, process::ExitCode};
use tokio_util::sync::CancellationToken;
use yurt_hub::HubArgs;
use yurt_node::HubCommand;

type AnyError = Box<dyn Error + Send + Sync>;

/// One Kubernetes cluster across a cloud and many edge sites behind bad links.
#[derive(Debug, Parser)]
#[command(name = "yurt", version, propagate_version = true)]
struct Cli {
    /// Log level or filter (error, warn, info, debug, trace, or yurt_hub=debug); RUST_LOG wins.
    #[arg(long, global = true, default_value = "info", value_name = "FILTER")]
    log: String,
    /// Log as JSON lines.
    #[arg(long, global = true)]
    log_json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole story in one command: a cluster, two pools, a cut link, a reboot, the link healed.
    Demo(yurt_lab::demo::DemoArgs),
    /// The same cluster, left running, for kubectl.
    Up(yurt_lab::up::UpArgs),
    /// Change or show the links of a running `yurt up`.
    Lab(yurt_lab::up::LabArgs),
    /// The embedded API server alone: for controllers and nodes of your own.
    #[command(name = "apiserver")]
    ApiServer(yurt_lab::apiserver::ApiServerArgs),
    /// The node proxy (YurtHub); with a command, what can be asked of it.
    Hub(Box<Hub>),
    /// OpenYurt's controllers and webhooks (yurt-manager).
    Manager(Box<yurt_manager::ManagerArgs>),
    /// The tunnel: the cloud reaches nodes that only dial out.
    Tunnel(Box<yurt_tunnel::TunnelArgs>),
    /// Commands for the node this runs on: would it survive a cut and a reboot.
    Node(yurt_node::NodeArgs),
    /// Questions about a cluster: how pools, apps, nodes and pods are, and why. The same as `kubectl yurt`, where this program is
    /// linked as `kubectl-yurt`.
    Kubectl(Box<yurt_inspect::InspectArgs>),
    /// The definitions of the custom resources: `yurt crds | kubectl apply -f -`.
    Crds(crate::crds::CrdsArgs),
    /// What to apply to a cluster: `yurt manifests | kubectl apply --server-side -f -`.
    Manifests(crate::manifests::ManifestsArgs),
    /// Measure, beside what one would use instead.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
}

/// `yurt hub` with flags runs the hub; with a command its flags are not asked for.
#[derive(Debug)]
enum Hub {
    Run(Box<HubArgs>),
    Ask(HubCommand),
}

impl Args for Hub {
    fn augment_args(command: clap::Command) -> clap::Command {
        HubCommand::augment_subcommands(HubArgs::augment_args(command))
            .subcommand_required(false)
            .arg_required_else_help(false)
            .subcommand_negates_reqs(true)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Hub {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        match matches.subcommand_name() {
            Some(_) => HubCommand::from_arg_matches(matches).map(Self::Ask),
            None => HubArgs::from_arg_matches(matches).map(|args| Self::Run(Box::new(args))),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// The hub: through it beside directly to the API server; memory, CPU and start-up.
    Hub(yurt_lab::bench::BenchHubArgs),
    /// A pool of hubs: what it takes from the cloud, take-overs, memory of coordination.
    Pool(yurt_lab::bench::pool::BenchPoolArgs),
    /// The manager in a large cluster: time to converge, single changes, memory, requests.
    Manager(yurt_lab::bench::manager::BenchManagerArgs),
    /// The tunnel: throughput, requests, latency, CPU and memory, stuck peers and long ways, beside konnectivity where one is given.
    Tunnel(yurt_lab::bench::tunnel::BenchTunnelArgs),
    /// The embedded API server: reads, writes, watches and memory, beside another API server where one is given.
    #[command(name = "apiserver")]
    ApiServer(yurt_lab::bench::apiserver::BenchApiServerArgs),
}

/// Names of this program that mean a command: OpenYurt's and konnectivity's units, manifests and workers call it so, kubectl its
/// plugins. Konnectivity's mean its defaults, too; what is given wins.
const NAMES: [(&str, &[&str]); 8] = [
    ("yurthub", &["hub"]),
    ("yurt-manager", &["manager"]),
    ("node-servant", &["node"]),
    ("kubectl-yurt", &["kubectl"]),
    ("yurt-tunnel-server", &["tunnel", "server"]),
    ("yurt-tunnel-agent", &["tunnel", "agent"]),
    (
        "proxy-server",
        &[
            "tunnel",
            "server",
            "--egress-only",
            "--agent-port=8091",
            "--health-port=8092",
            "--proxy-strategies=default",
            "--direct=never",
            "--enable-lease-controller=false",
        ],
    ),
    (
        "proxy-agent",
        &["tunnel", "agent", "--health-server-port=8093"],
    ),
];

/// The command line, with the command that the name of the program means.
fn arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut all: Vec<OsString> = given.collect();
    let name = all.first().map(|name| Path::new(name).file_name());
    let meant = NAMES
        .iter()
        .find(|(known, _)| name.flatten().is_some_and(|name| name == *known));
    if let Some((_, command)) = meant {
        all.splice(1..1, command.iter().map(OsString::from));
    }
    all
}

/// Parses the command line, on a stack that ends with it: all commands together take 180 KB of one, which would stay with the
/// process.
fn parse() -> Cli {
    let parse = || Cli::parse_from(arguments(std::env::args_os()));
    match std::thread::Builder::new().spawn(parse) {
        Ok(parsing) => parsing
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        Err(_) => parse(),
    }
}

/// The runtime's own variable for the number of its workers.
const WORKERS: &str = "TOKIO_WORKER_THREADS";

/// Parses the command line and runs the component it names.
pub(crate) fn run() -> Result<ExitCode, AnyError> {
    let cli = parse();
    let level = match &cli.command {
        // Its own output is the story, and so are the links that it cuts: the tunnel's ends would tell of them as well.
        Command::Demo(_) if cli.log == "info" => "warn,yurt_tunnel=error",
        // The same; a component's warnings still show.
        Command::Lab(_) | Command::Node(_) | Command::Kubectl(_) | Command::Bench { .. }
            if cli.log == "info" =>
        {
            "warn"
        }
        Command::Tunnel(args) if cli.log == "info" => args.level(),
        Command::Hub(hub) if cli.log == "info" && matches!(**hub, Hub::Ask(_)) => "warn",
        Command::Manager(args) if cli.log == "info" => args.logging.level().unwrap_or("info"),
        _ => &cli.log,
    };
    yurt_telemetry::init_logging(level, cli.log_json);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // One worker: with two, tokio wakes the other for nearly every request, to look whether there is more to do, and the request goes
    // on there. What takes long in a hub (large lists, the disk) is on threads of its own; the bench must not measure itself.
    match &cli.command {
        Command::Hub(_) => runtime.worker_threads(1).max_blocking_threads(8),
        Command::Bench {
            what: Bench::Hub(_) | Bench::Tunnel(_),
        } => runtime.worker_threads(1),
        Command::Tunnel(args) if std::env::var_os(WORKERS).is_none() => {
            let cpus = std::thread::available_parallelism().map_or(1, usize::from);
            match args.workers(cpus) {
                Some(workers) => runtime.worker_threads(workers),
                None => &mut runtime,
            }
        }
        _ => &mut runtime,
    };
    let runtime = runtime.enable_all().build()?;
    let shutdown = CancellationToken::new();
    let code = runtime.block_on(async {
        tokio::spawn(end_on_signal(shutdown.clone()));
        Box::pin(dispatch(cli.command, shutdown)).await
    });
    // Blocking reads of stdin must not hold up the exit.
    runtime.shutdown_background();
    code
}

async fn dispatch(command: Command, shutdown: CancellationToken) -> Result<ExitCode, AnyError> {
    let program = || std::env::current_exe();
    match command {
        Command::Demo(args) => {
            let held = Box::pin(yurt_lab::demo::run(args, program()?, shutdown)).await?;
            return Ok(if held {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        Command::Up(args) => Box::pin(yurt_lab::up::run(args, program()?, shutdown)).await?,
        Command::Lab(args) => yurt_lab::up::command(args).await?,
        Command::ApiServer(args) => {
            mind_parent(&shutdown);
            yurt_lab::apiserver::run(args, shutdown).await?;
        }
        Command::Hub(hub) => match *hub {
            Hub::Run(args) => {
                mind_parent(&shutdown);
                yurt_hub::run(yurt_hub::Config::try_from(*args)?, shutdown).await?;
            }
            Hub::Ask(command) => return Ok(yurt_node::ask(command).await.code().into()),
        },
        Command::Manager(args) => {
            mind_parent(&shutdown);
            yurt_manager::run(yurt_manager::Config::try_from(*args)?, shutdown).await?;
        }
        Command::Tunnel(args) => {
            if args.is_component() {
                mind_parent(&shutdown);
            }
            return Ok(Box::pin(yurt_tunnel::run(*args, shutdown)).await?);
        }
        Command::Node(args) => {
            return Ok(yurt_node::run(args, shutdown).await.code().into());
        }
        Command::Kubectl(args) => return Ok(yurt_inspect::run(*args).await?),
        Command::Crds(args) => crate::crds::run(&args)?,
        Command::Manifests(args) => crate::manifests::run(&args)?,
        Command::Bench { what } => {
            let held = match what {
                Bench::Hub(args) => yurt_lab::bench::run(args).await?.held(),
                Bench::Pool(args) => yurt_lab::bench::pool::run(args).await?.held(),
                Bench::Manager(args) => yurt_lab::bench::manager::run(args).await?.held(),
                Bench::Tunnel(args) => yurt_lab::bench::tunnel::run(args).await?.held(),
                Bench::ApiServer(args) => yurt_lab::bench::apiserver::run(args).await?.held(),
            };
            return Ok(if held {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// SIGINT or SIGTERM ends the component; a second one ends the process at once.
async fn end_on_signal(shutdown: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        tracing::error!("cannot listen to signals; stop with kill -9");
        return;
    };
    for attempt in 0.. {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if attempt > 0 {
            std::process::exit(130);
        }
        shutdown.cancel();
    }
}

/// Where asked for, ends the component with its parent.
fn mind_parent(shutdown: &CancellationToken) {
    if std::env::var_os("YURT_EXIT_WITH_PARENT").is_none() {
        return;
    }
    let shutdown = shutdown.clone();
    std::thread::spawn(move || {
        // Stdin ends when the parent is gone, however it died; an error means the same as the end.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        shutdown.cancel();
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use yurt_manager::deploy::{Component, Values};

    #[test]
    fn names_of_the_program_mean_a_command() {
        let line = |words: &[&str]| arguments(words.iter().map(OsString::from));
        assert_eq!(line(&["/usr/local/bin/yurthub", "--v=2"])[1], "hub");
        assert_eq!(line(&["/yurt-manager", "--v=2"])[1], "manager");
        assert_eq!(line(&["/usr/local/bin/node-servant", "x"])[1], "node");
        assert_eq!(line(&["yurt", "hub"]), ["yurt", "hub"]);
        for (name, command) in [
            ("yurt-tunnel-server", "server"),
            ("yurt-tunnel-agent", "agent"),
        ] {
            let line = line(&[name, "--x"]);
            assert_eq!(line[1..], ["tunnel", command, "--x"]);
        }
        assert!(line(&[]).is_empty());
        // Konnectivity's manifests as its documentation has them.
        for (words, meta) in [
            (
                &[
                    "/proxy-server",
                    "--log-file=/var/log/konnectivity-server.log",
                    "--logtostderr=false",
                    "--log-file-max-size=0",
                    "--uds-name=/etc/srv/kubernetes/konnectivity-server/konnectivity-server.socket",
                    "--cluster-cert=/etc/srv/kubernetes/pki/apiserver.crt",
                    "--cluster-key=/etc/srv/kubernetes/pki/apiserver.key",
                    "--server-port=0",
                    "--agent-port=8132",
                    "--health-port=8134",
                    "--admin-port=8133",
                    "--keepalive-time=1h",
                    "--mode=http-connect",
                    "--agent-namespace=kube-system",
                    "--agent-service-account=konnectivity-agent",
                    "--kubeconfig=/etc/srv/kubernetes/konnectivity-server/kubeconfig",
                    "--authentication-audience=system:konnectivity-server",
                    "--proxy-strategies=destHost,default",
                    "--enable-lease-controller",
                ][..],
                "127.0.0.1:8134",
            ),
            (
                &["proxy-server", "--cluster-cert=c", "--cluster-key=k"],
                "127.0.0.1:8092",
            ),
            (
                &[
                    "/proxy-agent",
                    "--logtostderr=true",
                    "--ca-cert=/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
                    "--proxy-server-host=10.0.0.1",
                    "--proxy-server-port=8132",
                    "--admin-server-port=8133",
                    "--service-account-token-path=/var/run/secrets/tokens/konnectivity-agent-token",
                ],
                "127.0.0.1:8093",
            ),
        ] {
            let cli = Cli::try_parse_from(line(words)).unwrap_or_else(|error| panic!("{error}"));
            let Command::Tunnel(args) = cli.command else {
                panic!("{words:?}");
            };
            assert_eq!(args.meta(), Some(meta.parse().unwrap()), "{words:?}");
        }
        let plugin =
            Cli::try_parse_from(line(&["/bin/kubectl-yurt", "why", "node/a", "-o", "json"]));
        assert!(matches!(plugin.unwrap().command, Command::Kubectl(_)));
        let parsed = Cli::try_parse_from(line(&["yurthub", "--node-name=n", "--server-addr=a"]));
        let is_run =
            |cli: &Cli| matches!(&cli.command, Command::Hub(hub) if matches!(**hub, Hub::Run(_)));
        assert!(is_run(&parsed.unwrap()));
    }

    /// What the shipped pods are told is understood, and they answer where they are probed.
    #[test]
    fn the_shipped_tunnel_is_understood() {
        let objects = Component::Tunnel.objects(&Values::default());
        let pods = objects
            .iter()
            .map(|object| &object["spec"]["template"]["spec"]);
        let containers = pods
            .filter_map(|pod| pod["containers"].as_array())
            .flatten();
        let mut seen = 0;
        for container in containers {
            let words = |list: &str| {
                let words = container[list].as_array().expect("words").iter();
                words.map(|word| word.as_str().expect("a word").to_owned())
            };
            let mut line: Vec<String> = words("command").chain(words("args")).collect();
            for variable in container["env"].as_array().expect("variables") {
                let name = variable["name"].as_str().expect("a name");
                let stands_for = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                    Some("status.hostIP" | "status.podIP") => "10.0.0.7",
                    Some(_) => "edge-1",
                    None => panic!("{variable}"),
                };
                for word in &mut line {
                    *word = word.replace(&format!("$({name})"), stands_for);
                }
            }
            assert!(!line.iter().any(|word| word.contains('$')), "{line:?}");
            let cli = Cli::try_parse_from(line).unwrap_or_else(|error| panic!("{error}"));
            let Command::Tunnel(args) = cli.command else {
                panic!("{container}");
            };
            assert!(args.is_component());
            let meta = args.meta().expect("health");
            for probe in ["livenessProbe", "readinessProbe"] {
                let get = &container[probe]["httpGet"];
                if get.is_object() {
                    assert_eq!(get["host"], meta.ip().to_string(), "{probe}");
                    assert_eq!(get["port"], meta.port(), "{probe}");
                }
            }
            seen += 1;
        }
        assert_eq!(seen, 2);
    }

    #[test]
    fn the_hub_is_run_by_flags_and_asked_by_commands() {
        let parse = |words: &[&str]| {
            let line = ["yurt", "hub"].iter().chain(words);
            Cli::try_parse_from(line).map(|cli| cli.command)
        };
        let asks = |words: &[&str]| match parse(words) {
            Ok(Command::Hub(hub)) => matches!(*hub, Hub::Ask(_)),
            other => panic!("{other:?}"),
        };
        assert!(asks(&["filter", "check", "rules.yaml"]));
        assert!(asks(&["filter", "explain", "--hub"]));
        assert!(asks(&["pool", "status", "-o", "json"]));
        assert!(!asks(&["--node-name=filter", "--server-addr=a"]));
        for wrong in [
            &[][..],
            &["--node-name=n"],
            &["filter"],
            &["pool"],
            &["fliter"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
