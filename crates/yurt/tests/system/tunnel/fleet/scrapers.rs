//! Who scrapes nodes over and over, and what came of it.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::{Handle, Runtime},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use yurt_transport::{BoxStream, Destination};
use yurt_tunnel::frontend::client::{self, Way};

/// Scrapes under way at a time.
pub(super) const AT_A_TIME: usize = 8;
/// One scrape.
const SCRAPE: Duration = Duration::from_secs(15);

/// One scrape.
#[derive(Clone, Debug)]
pub(super) struct Scrape {
    pub(super) began: Instant,
    pub(super) took: Duration,
    /// The node's own answer, from one of the servers.
    pub(super) answered: Result<(), String>,
    /// Servers that were there, and did not bring it.
    pub(super) lost: usize,
}

/// Opens a connection by a frontend; the error is the server's own, `NotFound` and the like where there is none.
pub(super) async fn connect(socket: &Path, to: SocketAddr) -> io::Result<BoxStream> {
    let to = Destination {
        node: None,
        host: to.ip().to_string(),
        port: to.port(),
    };
    let io = Way::Unix(socket.to_owned()).open().await;
    let io = io.map_err(|error| io::Error::new(io::ErrorKind::NotFound, error.to_string()))?;
    Ok(client::connect(io, &to).await?)
}

/// Asks who is at the far end.
pub(super) async fn ask(stream: &mut BoxStream) -> io::Result<String> {
    stream.write_all(b"figures").await?;
    let mut said = String::new();
    loop {
        match stream.read_u8().await? {
            b'\n' => return Ok(said),
            byte => said.push(char::from(byte)),
        }
    }
}

async fn scrape(sockets: &[PathBuf], target: SocketAddr) -> Scrape {
    let began = Instant::now();
    let (mut lost, mut answered) = (0, Err("no server is there".to_owned()));
    for socket in sockets {
        let asked = timeout(SCRAPE, async {
            let mut stream = connect(socket, target).await?;
            ask(&mut stream).await
        });
        let asked = asked
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        answered = match asked {
            Ok(said) if said == target.ip().to_string() => Ok(()),
            Ok(said) => Err(format!("{target} is {said}")),
            Err(error) => {
                lost += usize::from(error.kind() != io::ErrorKind::NotFound);
                Err(format!("{target} by {}: {error}", socket.display()))
            }
        };
        if answered.is_ok() {
            break;
        }
    }
    let took = began.elapsed();
    Scrape {
        began,
        took,
        answered,
        lost,
    }
}

/// Scrapers at work.
pub(super) struct Scrapers {
    stop: CancellationToken,
    done: Arc<Mutex<Vec<Scrape>>>,
    tasks: JoinSet<()>,
    runtime: Handle,
}

impl Scrapers {
    pub(super) fn start(runtime: &Runtime, sockets: &[PathBuf], targets: Vec<SocketAddr>) -> Self {
        let (stop, done) = (
            CancellationToken::new(),
            Arc::<Mutex<Vec<Scrape>>>::default(),
        );
        let (targets, next) = (Arc::new(targets), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for _ in 0..AT_A_TIME {
            let (stop, done, sockets) = (stop.clone(), done.clone(), sockets.to_vec());
            let (targets, next) = (targets.clone(), next.clone());
            let work = async move {
                while !stop.is_cancelled() {
                    let number = next.fetch_add(1, Ordering::Relaxed) % targets.len();
                    let scrape = scrape(&sockets, targets[number]).await;
                    done.lock().unwrap().push(scrape);
                }
            };
            tasks.spawn_on(work, runtime.handle());
        }
        Self {
            stop,
            done,
            tasks,
            runtime: runtime.handle().clone(),
        }
    }

    /// Waits until so many more were done.
    pub(super) fn wait_for(&self, more: usize) {
        let count = || self.done.lock().unwrap().len();
        let wanted = count() + more;
        crate::fixture::eventually("nodes are scraped", || count() >= wanted);
    }

    /// What all of them saw.
    pub(super) fn stop(mut self) -> Vec<Scrape> {
        self.stop.cancel();
        self.runtime.block_on(async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.unwrap();
            }
        });
        std::mem::take(&mut *self.done.lock().unwrap())
    }
}
