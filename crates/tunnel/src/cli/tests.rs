use super::*;
use crate::{
    server::tests::{World, until},
    twin,
};
use clap::Parser;
use tokio::net::TcpStream;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: TunnelArgs,
}

fn parse(words: &[&str]) -> TunnelCommand {
    let line = ["tunnel"].iter().chain(words);
    Line::try_parse_from(line).expect("a command").args.command
}

#[test]
fn commands_and_flags_fit_together() {
    use clap::CommandFactory;
    Line::command().debug_assert();
    for words in [
        &["status", "-o", "json"][..],
        &["status", "--uds-name", "/run/s"],
        &[
            "explain",
            "edge-1",
            "--server",
            "a:10262",
            "--kubeconfig",
            "/k",
        ],
        &["forward", "edge-1", "8080:80", "22", "--uds-name=/run/s"],
        &["server", "--standalone"],
        &["agent"],
        &["token"],
    ] {
        parse(words);
    }
    for wrong in [
        &["forward", "edge-1"][..],
        &["explain"],
        &["status", "--uds-name=a", "--server=b"],
        &["forward", "edge-1", "1", "--certificate=x"],
    ] {
        let line = ["tunnel"].iter().chain(wrong);
        assert!(Line::try_parse_from(line).is_err(), "{wrong:?}");
    }
}

#[test]
fn who_says_too_little_is_told_what_is_missing() {
    let way = |words: &[&str]| {
        let words = [&["forward", "edge-1", "80"], words].concat();
        match parse(&words) {
            TunnelCommand::Forward(args) => format!("{:?}", args),
            other => panic!("{other:?}"),
        }
    };
    assert!(way(&[]).contains("edge-1"));
    let args = WayArgs::default();
    assert!(matches!(args.for_connections(), Err(WayError::Nowhere)));
    assert!(matches!(args.for_questions(), Ok(Way::Plain(_))));
    let meta = WayArgs {
        meta: Some("127.0.0.1:10265".into()),
        ..WayArgs::default()
    };
    assert!(matches!(meta.for_connections(), Err(WayError::Nowhere)));
    let server = |address: &str| WayArgs {
        server: Some(address.into()),
        ..WayArgs::default()
    };
    assert!(matches!(
        server("a:1").for_connections(),
        Err(WayError::Nobody)
    ));
    assert!(matches!(
        server("a").for_connections(),
        Err(WayError::Address(_))
    ));
}

#[tokio::test]
async fn a_port_here_leads_to_a_port_of_the_node() {
    let world = World::new().await;
    let _agent = world.agent_by("edge-1", twin::served(twin::echo)).await;
    let unix = format!("--uds-name={}", world.unix.display());
    let TunnelCommand::Forward(args) = parse(&["forward", "edge-1", ":80", ":22", &unix]) else {
        panic!("another command");
    };
    let forward = Forward::listen(args).await.expect("listens");
    let addresses = forward.addresses();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(forward.serve(shutdown.clone()));
    for address in &addresses {
        let stream = TcpStream::connect(address).await.expect("connected");
        let back = twin::exchange(Box::new(stream), b"hello").await;
        assert_eq!(back.expect("carried"), b"hello");
    }
    let switchboard = world.server.switchboard.clone();
    until(|| switchboard.connections() == 0).await;
    shutdown.cancel();
    serving.await.expect("no failure");
    // The agent is asked about.
    let TunnelCommand::Explain { target, question } = parse(&["explain", "edge-1", &unix]) else {
        panic!("another command");
    };
    let path = format!("/v1/explain?target={target}");
    let (shown, answer) = ask(&question, &path, Explanation::show)
        .await
        .expect("an answer");
    assert_eq!(answer.by, "agent", "{shown}");
    assert!(shown.contains("agent edge-1 dials edge-1:10250"), "{shown}");
    let (shown, status) = ask(&question, "/v1/status", ServerStatus::show)
        .await
        .expect("an answer");
    assert_eq!(status.agents.len(), 1);
    assert!(shown.contains("host=edge-1"), "{shown}");
    let refused = ask(&question, "/v1/explain", Explanation::show).await;
    assert!(matches!(refused, Err(TunnelError::Refused { .. })));
}
