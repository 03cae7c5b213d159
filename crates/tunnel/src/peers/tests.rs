use super::*;
use crate::twin;
use std::sync::atomic::{AtomicUsize, Ordering};

/// An instance that answers `host:port` so.
type Answer = fn(&Destination) -> Result<BoxStream, DialError>;

#[derive(Debug)]
struct Instance {
    answer: Answer,
    asked: Arc<AtomicUsize>,
    slow: bool,
}

impl Tunnels for Instance {
    fn open<'a>(&'a self, to: &'a Destination) -> crate::Opening<'a> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            if self.slow {
                std::future::pending::<()>().await;
            }
            (self.answer)(to)
        })
    }
}

fn has(_: &Destination) -> Result<BoxStream, DialError> {
    Ok(Box::new(tokio::io::empty()))
}

fn has_not(_: &Destination) -> Result<BoxStream, DialError> {
    Err(DialError::NoAgent("not here".into()))
}

fn fails(_: &Destination) -> Result<BoxStream, DialError> {
    Err(DialError::Failed("connection refused".into()))
}

/// Peers by name, all connected; how often each was asked, and what ends each connection.
async fn peers(
    instances: &[(&'static str, Answer, bool)],
) -> (
    Arc<Peers>,
    HashMap<String, (Arc<AtomicUsize>, CancellationToken)>,
) {
    let mut known = HashMap::new();
    let mut made = HashMap::new();
    for (name, answer, slow) in instances {
        let asked = Arc::new(AtomicUsize::new(0));
        let closed = CancellationToken::new();
        let instance = Instance {
            answer: *answer,
            asked: asked.clone(),
            slow: *slow,
        };
        let connected = Connected {
            tunnels: Arc::new(instance),
            closed: closed.clone(),
        };
        known.insert((*name).to_owned(), (asked, closed));
        made.insert((*name).to_owned(), connected);
    }
    let connect = move |address: String| -> BoxFuture<'static, Result<Connected, String>> {
        let connected = made.get(&address).cloned();
        Box::pin(async move {
            connected
                .filter(|connected| !connected.closed.is_cancelled())
                .ok_or_else(|| "refused".to_owned())
        })
    };
    let peers = Peers::new(Box::new(connect));
    let wanted = instances
        .iter()
        .map(|(name, ..)| ((*name).to_owned(), String::new()));
    peers.set(&wanted.collect());
    while peers.connected() < instances.len() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (peers, known)
}

#[tokio::test(start_paused = true)]
async fn whoever_has_the_agent_is_found_and_remembered() {
    let (peers, known) = peers(&[
        ("a", has_not, false),
        ("b", has, false),
        ("c", has_not, false),
    ])
    .await;
    let to = twin::to("edge-1:10250");
    assert!(peers.open(&to).await.is_ok());
    assert_eq!(peers.remembered(&to).as_deref(), Some("b"));
    let asked = |name: &str| known[name].0.load(Ordering::Relaxed);
    let before = (asked("a"), asked("c"));
    for _ in 0..10 {
        assert!(peers.open(&to).await.is_ok());
    }
    assert_eq!((asked("a"), asked("c")), before);
    assert_eq!(asked("b"), 11);
    peers.close().await;
    assert!(known["b"].1.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn one_that_hangs_does_not_hold_up_the_search() {
    let (peers, known) = peers(&[
        ("a", has, true),
        ("b", has, true),
        ("c", has, false),
        ("d", has_not, false),
    ])
    .await;
    let began = tokio::time::Instant::now();
    assert!(peers.open(&twin::to("edge-1:22")).await.is_ok());
    assert!(began.elapsed() <= HEDGE * 2, "{:?}", began.elapsed());
    // One that is killed: its connection ends, the others are asked at once.
    known["c"].1.cancel();
    known["a"].1.cancel();
    known["b"].1.cancel();
    let began = tokio::time::Instant::now();
    let refused = peers.open(&twin::to("edge-1:22")).await.err();
    assert_eq!(refused, Some(DialError::NoAgent("not here".into())));
    assert!(began.elapsed() < HEDGE);
}

#[tokio::test(start_paused = true)]
async fn what_the_target_says_is_not_asked_for_again() {
    let (peers, known) = peers(&[("a", fails, false), ("b", fails, false)]).await;
    let refused = peers.open(&twin::to("edge-1:22")).await.err();
    assert_eq!(
        refused,
        Some(DialError::Failed("connection refused".into()))
    );
    let asked: usize = known
        .values()
        .map(|(asked, _)| asked.load(Ordering::Relaxed))
        .sum();
    assert_eq!(asked, 1);
}

#[tokio::test(start_paused = true)]
async fn instances_come_and_go() {
    let (peers, known) = peers(&[("a", has, false), ("b", has, false)]).await;
    peers.set(&[("b".to_owned(), "id-b".to_owned())].into());
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(known["a"].1.is_cancelled() && !known["b"].1.is_cancelled());
    assert_eq!(peers.status()[0].id, "id-b");
    known["b"].1.cancel();
    tokio::time::sleep(Duration::from_millis(1)).await;
    let status = peers.status().remove(0);
    assert!(!status.connected && !status.why.is_empty(), "{status:?}");
    let none = peers.open(&twin::to("edge-1:22")).await.err();
    assert!(matches!(none, Some(DialError::NoAgent(_))), "{none:?}");
}
