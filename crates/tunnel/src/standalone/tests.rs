use super::*;
use crate::{
    agent::address::ServerAddress,
    allow::Mark,
    certificates::{CertificateMetrics, Kept, shape},
};
use std::{net::SocketAddr, sync::Arc};
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use yurt_pki::{Profile, renewal::now};

const SOON: Duration = Duration::from_secs(20);

fn minting(uses: u32) -> Minting {
    Minting {
        lives: Duration::from_secs(3600),
        uses,
        node: None,
    }
}

#[test]
fn tokens_have_one_form_and_do_not_show_their_secret() {
    let directory = tempfile::tempdir().unwrap();
    let book = TokenBook::at(directory.path());
    let token = book.mint(&minting(1), [7; 32], 0).unwrap();
    let text = token.to_string();
    assert_eq!(text.parse(), Ok(token.clone()));
    assert!(!format!("{token:?}").contains(token.secret()));
    let kept = std::fs::read_to_string(directory.path().join("tokens.json")).unwrap();
    assert!(
        kept.contains(token.id()) && !kept.contains(token.secret()),
        "hashed at rest"
    );
    for bad in [
        "",
        "a.b.c",
        &text[1..],
        &text[..text.len() - 1],
        &format!("{text}.x"),
        &text.to_uppercase(),
    ] {
        assert_eq!(bad.parse::<JoinToken>(), Err(NotAToken), "{bad}");
    }
}

#[test]
fn tokens_end_by_use_by_time_and_by_hand() {
    let directory = tempfile::tempdir().unwrap();
    let book = TokenBook::at(directory.path());
    let twice = book.mint(&minting(2), [7; 32], 0).unwrap();
    let redeem =
        |token: &JoinToken, node: &str, at| book.redeem(token.id(), token.secret(), node, at);
    let unknown = |done| assert!(matches!(done, Err(TokenError::Unknown)), "{done:?}");
    unknown(book.redeem(twice.id(), "wrong", "a", 1));
    assert!(!redeem(&twice, "a", 1).unwrap());
    assert!(!redeem(&twice, "b", 1).unwrap());
    unknown(redeem(&twice, "c", 1));
    let short = book.mint(&minting(1), [7; 32], 0).unwrap();
    unknown(redeem(&short, "a", 3600));
    let bound = Minting {
        node: Some("a".into()),
        ..minting(1)
    };
    let bound = book.mint(&bound, [7; 32], 0).unwrap();
    assert!(matches!(redeem(&bound, "b", 1), Err(TokenError::OtherNode)));
    let left = |token: &JoinToken| {
        let listed = book.list(1).unwrap();
        listed
            .iter()
            .find(|facts| facts.id == token.id())
            .map(|facts| facts.left)
    };
    assert_eq!(left(&bound), Some(1), "what is refused uses nothing up");
    assert!(redeem(&bound, "a", 1).unwrap());
    let revoked = book.mint(&minting(1), [7; 32], 0).unwrap();
    book.revoke(revoked.id(), 1).unwrap();
    unknown(redeem(&revoked, "a", 1));
    assert!(matches!(
        book.mint(&minting(0), [7; 32], 0),
        Err(TokenError::Useless)
    ));
    std::fs::write(directory.path().join("tokens.json"), "{").unwrap();
    assert!(
        matches!(redeem(&twice, "a", 1), Err(TokenError::Io(_))),
        "rubbish opens nothing"
    );
}

#[test]
fn one_use_is_one_use_however_many_come_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let book = TokenBook::at(directory.path());
    let token = book.mint(&minting(3), [7; 32], 0).unwrap();
    let won: usize = std::thread::scope(|scope| {
        let attempts: Vec<_> = (0..12)
            .map(|n| {
                let (book, token) = (book.clone(), token.clone());
                scope.spawn(move || {
                    book.redeem(token.id(), token.secret(), &format!("n{n}"), 1)
                        .is_ok()
                })
            })
            .collect();
        attempts
            .into_iter()
            .map(|a| usize::from(a.join().unwrap()))
            .sum()
    });
    assert_eq!(won, 3);
}

/// A standalone server's door: joining, and nothing behind it.
struct Server {
    directory: tempfile::TempDir,
    authority: Authority,
    address: SocketAddr,
    stop: CancellationToken,
}

impl Server {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::open(directory.path()).unwrap();
        let wanted = shape::server(["tunnel".to_owned()], ["127.0.0.1".parse().unwrap()]);
        let stop = CancellationToken::new();
        let kept = authority.serving(
            watch::channel(Some(wanted)).1,
            CertificateMetrics::default(),
            stop.clone(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let usual = kept
            .current()
            .server_config(kept.policy(), &[b"h2"])
            .unwrap();
        let join = authority.join_config(&kept).unwrap();
        let answering = authority.clone();
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (usual, join, authority) = (usual.clone(), join.clone(), answering.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = Authority::accept(stream, usual, join).await
                        && stream.get_ref().1.alpn_protocol() == Some(ALPN_JOIN)
                    {
                        let _ = authority.answer(stream).await;
                    }
                });
            }
        }));
        Self {
            directory,
            authority,
            address,
            stop,
        }
    }

    fn mint(&self, uses: u32, node: Option<&str>) -> JoinToken {
        let minting = Minting {
            node: node.map(str::to_owned),
            ..minting(uses)
        };
        let book = TokenBook::at(self.directory.path());
        book.mint(&minting, self.authority.pin(), now()).unwrap()
    }

    fn enrolment(&self, node: &str, directory: &Path, token: Option<&JoinToken>) -> Enrolment {
        let server: ServerAddress = format!("tunnel@{}", self.address).parse().unwrap();
        Enrolment {
            node: node.to_owned(),
            servers: vec![server],
            proxy: None,
            directory: directory.to_owned(),
            token: token.cloned(),
            wanted: shape::agent(node, []),
            metrics: CertificateMetrics::default(),
            mark: Mark::default(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The certificate that an agent ends up with.
async fn joined(kept: &mut Kept) -> Arc<crate::certificates::Credentials> {
    timeout(SOON, kept.ready())
        .await
        .expect("a certificate in time")
}

#[tokio::test]
async fn an_agent_joins_by_its_token_and_goes_on_without() {
    let server = Server::start().await;
    let (home, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let token = server.mint(1, None);
    let mut kept = enrol(
        server.enrolment("edge-1", home.path(), Some(&token)),
        stop.clone(),
    )
    .unwrap();
    let got = joined(&mut kept).await;
    let leaf = &got.pair.as_ref().unwrap().leaf;
    assert_eq!(
        (leaf.identity.user.as_str(), leaf.dns.as_slice()),
        ("tunnel-agent-client", &["edge-1".to_owned()][..])
    );
    assert_eq!(got.ca.trim(), server.authority.ca().trim());
    stop.cancel();
    // After a restart neither token nor server is needed.
    drop(server);
    let server = Server::start().await;
    let kept = enrol(
        server.enrolment("edge-1", home.path(), None),
        CancellationToken::new(),
    )
    .unwrap();
    let kept = kept.current();
    assert_eq!(&kept.pair.as_ref().unwrap().leaf, leaf);
    let empty = tempfile::tempdir().unwrap();
    let without = enrol(
        server.enrolment("edge-2", empty.path(), None),
        CancellationToken::new(),
    );
    assert!(matches!(without, Err(JoinError::NoToken)));
}

/// What the server says to a question, asked as an agent asks it.
async fn asked(
    server: &Server,
    node: &str,
    token: Option<&JoinToken>,
    held: Option<&Path>,
) -> Result<(), String> {
    let home = tempfile::tempdir().unwrap();
    let directory = held.unwrap_or(home.path());
    let enrolment = server.enrolment(node, directory, token);
    timeout(SOON, enrolment.once())
        .await
        .expect("in time")
        .map_err(|error| error.to_string())
}

#[tokio::test]
async fn tokens_are_not_misused() {
    let server = Server::start().await;
    let refused = |done: Result<(), String>, why: &str| {
        let error = done.expect_err(why);
        assert!(error.contains(why), "{error}");
    };
    let once = server.mint(1, None);
    asked(&server, "edge-1", Some(&once), None).await.unwrap();
    refused(
        asked(&server, "edge-2", Some(&once), None).await,
        "unknown, used up or over",
    );
    // A name that is taken is not given to another key, unless the token is for it alone.
    let many = server.mint(5, None);
    refused(
        asked(&server, "edge-1", Some(&many), None).await,
        "joined already",
    );
    let own = server.mint(1, Some("edge-1"));
    refused(
        asked(&server, "edge-3", Some(&own), None).await,
        "another node",
    );
    asked(&server, "edge-1", Some(&own), None).await.unwrap();
    // Another server's token: nothing is said to who cannot show the pinned key.
    let other = Server::start().await;
    let foreign = other.mint(1, None);
    refused(
        asked(&server, "edge-4", Some(&foreign), None).await,
        "pinned key",
    );
    assert_eq!(
        TokenBook::at(other.directory.path())
            .list(now())
            .unwrap()
            .len(),
        1
    );
    refused(
        asked(&server, "not a name", Some(&many), None).await,
        "name",
    );
}

#[tokio::test]
async fn a_certificate_is_renewed_by_the_one_before_for_the_same_name_only() {
    let server = Server::start().await;
    let home = tempfile::tempdir().unwrap();
    let token = server.mint(1, None);
    asked(&server, "edge-1", Some(&token), Some(home.path()))
        .await
        .unwrap();
    // The same name with another key, by the certificate.
    asked(&server, "edge-1", None, Some(home.path()))
        .await
        .unwrap();
    let other = asked(&server, "edge-2", None, Some(home.path())).await;
    assert!(other.is_err_and(|error| error.contains("--token")));
}

#[test]
fn the_servers_certificate_follows_its_names_and_its_ca() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::open(directory.path()).unwrap();
    assert_eq!(
        Authority::open(directory.path()).unwrap().pin(),
        authority.pin(),
        "the CA is kept"
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let profile = |dns: &[&str]| -> Profile {
            shape::server(
                dns.iter().map(|name| (*name).to_owned()),
                ["127.0.0.1".parse().unwrap()],
            )
        };
        let (names, wanted) = watch::channel(Some(profile(&["a"])));
        let mut kept = authority.serving(wanted, CertificateMetrics::default(), stop.clone());
        let dns = |kept: &Kept| kept.current().pair.as_ref().unwrap().leaf.dns.clone();
        assert_eq!(dns(&kept), ["a"]);
        names.send_replace(Some(profile(&["a", "b"])));
        timeout(SOON, kept.changed()).await.unwrap();
        assert_eq!(dns(&kept), ["a", "b"]);
        names.send_replace(Some(profile(&["b"])));
        timeout(SOON, kept.changed()).await.unwrap();
        assert_eq!(dns(&kept), ["b"]);
        stop.cancel();
        // The CA was lost: what it signed does not count any more.
        std::fs::remove_file(directory.path().join("ca.pem")).unwrap();
        let anew = Authority::open(directory.path()).unwrap();
        let kept = anew.serving(
            watch::channel(Some(profile(&["b"]))).1,
            CertificateMetrics::default(),
            CancellationToken::new(),
        );
        let held = kept.current();
        yurt_pki::verify_server(
            &anew.ca(),
            &held.pair.as_ref().unwrap().pem.cert,
            "b",
            now(),
        )
        .unwrap();
    });
}

#[test]
fn the_command_line_makes_lists_and_revokes_tokens() {
    use clap::Parser;
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        token: TokenArgs,
    }
    let directory = tempfile::tempdir().unwrap();
    let data = format!("--data-dir={}", directory.path().display());
    let run = |flags: &[&str]| {
        let flags = ["token", &data].into_iter().chain(flags.iter().copied());
        token(&Cli::try_parse_from(flags).expect("flags").token)
    };
    let minted: JoinToken = run(&["--uses=2", "--node=edge-1"])
        .unwrap()
        .parse()
        .unwrap();
    let listed = run(&["list"]).unwrap();
    assert!(
        listed.contains(minted.id())
            && listed.contains("edge-1")
            && !listed.contains(minted.secret())
    );
    run(&["revoke", minted.id()]).unwrap();
    assert!(run(&["revoke", minted.id()]).is_err());
}
