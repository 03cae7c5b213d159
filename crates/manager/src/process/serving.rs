//! What is served beside the controllers: metrics, and whether the manager lives and is ready.

use super::{ManagerError, accounts::Accounts};
use crate::Context;
use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use yurt_controller::{Objects, Standing};
use yurt_telemetry::Metrics;
use yurt_transport::{Body, ServeOptions, full};

/// Scrapers and kubelets are few.
const MOST_CONNECTIONS: usize = 64;

/// Listens. Where there is no IPv6, every address means every one of IPv4.
pub(super) async fn bind(
    address: SocketAddr,
    purpose: &'static str,
) -> Result<TcpListener, ManagerError> {
    let address = SocketAddr::new(any(address.ip()).await, address.port());
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| ManagerError::Bind {
        address,
        purpose,
        source,
    })
}

/// The address to listen on: IPv4's for all where IPv6's is meant and there is none.
pub(super) async fn any(ip: IpAddr) -> IpAddr {
    if ip != IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        return ip;
    }
    instead(ip, TcpListener::bind((ip, 0)).await.err().as_ref())
}

/// What is listened on, after a try of all addresses. Pure.
fn instead(ip: IpAddr, failed: Option<&io::Error>) -> IpAddr {
    if failed.is_some_and(no_ipv6) {
        return Ipv4Addr::UNSPECIFIED.into();
    }
    ip
}

fn no_ipv6(error: &io::Error) -> bool {
    // EAFNOSUPPORT has no kind of its own.
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(97)
}

/// Something that must be so before the manager is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Check {
    name: String,
    /// What is wrong; said, also where the manager is ready all the same.
    trouble: Option<String>,
    /// Whether it keeps the manager from being ready.
    needed: bool,
}

/// The checks of caches. One whose kind is not served, or may not be read, is no reason for the others to be cut off from their
/// callers.
fn caches<'a>(caches: impl IntoIterator<Item = (String, &'a Standing)>) -> Vec<Check> {
    // By name: several parts of one collection are one line, told by the worst.
    let mut checks: BTreeMap<String, Check> = BTreeMap::new();
    for (name, standing) in caches {
        let (trouble, needed) = match standing {
            Standing::Complete => (None, false),
            Standing::Filling => (Some("not everything is read yet".to_owned()), true),
            Standing::Absent => (Some("not served by the API server".to_owned()), false),
            Standing::Refused(why) => (Some(why.clone()), false),
        };
        let check = Check {
            name: format!("cache/{name}"),
            trouble,
            needed,
        };
        let worse = |known: &Check| {
            (check.needed, check.trouble.is_some()) > (known.needed, known.trouble.is_some())
        };
        if checks.get(&name).is_none_or(worse) {
            checks.insert(name, check);
        }
    }
    checks.into_values().collect()
}

/// What kubelets and people are told, as Kubernetes' components tell it.
fn answer(checks: &[Check], verbose: bool) -> (StatusCode, String) {
    let ready = !checks
        .iter()
        .any(|check| check.needed && check.trouble.is_some());
    let (code, verdict) = if ready {
        (StatusCode::OK, "passed")
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, "failed")
    };
    if ready && !verbose {
        return (code, "ok".into());
    }
    let lines = checks.iter().map(|check| match &check.trouble {
        None => format!("[+]{} ok\n", check.name),
        Some(why) if check.needed => format!("[-]{} failed: {why}\n", check.name),
        Some(why) => format!("[!]{} waits: {why}\n", check.name),
    });
    let text: String = lines.collect();
    (code, format!("{text}readyz check {verdict}\n"))
}

/// Whether the manager is ready.
pub(super) struct Health {
    context: Arc<Context>,
    accounts: Arc<Accounts>,
    webhooks: Box<dyn Fn() -> bool + Send + Sync>,
    /// Whether controllers are to work: this process leads, or needs not.
    works: AtomicBool,
    /// From then on only the webhooks matter: API servers must reach them while a replica that takes over reads what there is.
    was_ready: AtomicBool,
}

impl Health {
    pub(super) fn new(
        context: Arc<Context>,
        accounts: Arc<Accounts>,
        webhooks: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            context,
            accounts,
            webhooks: Box::new(webhooks),
            works: AtomicBool::new(false),
            was_ready: AtomicBool::new(false),
        })
    }

    /// Controllers work from now on, or do not any more.
    pub(super) fn works(&self, works: bool) {
        self.works.store(works, Ordering::Relaxed);
    }

    fn checks(&self) -> Vec<Check> {
        let of = |name: &str, trouble: Option<String>, needed| Check {
            name: name.into(),
            trouble,
            needed,
        };
        let called = (self.webhooks)();
        let mut checks = vec![
            of("ping", None, true),
            of(
                "webhook",
                (!called).then(|| "no certificate yet".into()),
                true,
            ),
        ];
        let works = self.works.load(Ordering::Relaxed);
        let role = if works { "works" } else { "stands by" };
        checks.push(of(&format!("leader-election/{role}"), None, false));
        let once = self.was_ready.load(Ordering::Relaxed);
        for (controller, why) in self.accounts.troubled() {
            let needed = why.is_none();
            let why = why.unwrap_or_else(|| "no token yet".into());
            checks.push(of(&format!("account/{controller}"), Some(why), needed));
        }
        let known = self.context.caches();
        let standings: Vec<(String, Standing)> = known
            .iter()
            .map(|objects| (name_of(objects), objects.standing()))
            .collect();
        checks.extend(caches(
            standings
                .iter()
                .map(|(name, standing)| (name.clone(), standing)),
        ));
        for check in checks
            .iter_mut()
            .filter(|check| once && check.name != "webhook")
        {
            check.needed = false;
        }
        checks
    }

    fn readyz(&self, verbose: bool) -> (StatusCode, String) {
        let (code, said) = answer(&self.checks(), verbose);
        if code == StatusCode::OK {
            self.was_ready.store(true, Ordering::Relaxed);
        }
        (code, said)
    }

    fn serve(&self, request: &Request<Incoming>) -> Response<Body> {
        let verbose = request
            .uri()
            .query()
            .is_some_and(|query| query.split('&').any(|p| p.starts_with("verbose")));
        match request.uri().path() {
            _ if !reads(request) => text(StatusCode::METHOD_NOT_ALLOWED, "GET only"),
            "/healthz" | "/healthz/ping" | "/livez" => text(StatusCode::OK, "ok"),
            "/readyz" => {
                let (code, said) = self.readyz(verbose);
                text(code, said)
            }
            _ => text(StatusCode::NOT_FOUND, "there are /healthz and /readyz"),
        }
    }
}

fn name_of(objects: &Objects) -> String {
    let collection = objects.collection();
    match collection.api_version.split_once('/') {
        Some((group, _)) => format!("{}.{group}", collection.plural),
        None => collection.plural.to_string(),
    }
}

fn reads(request: &Request<Incoming>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
}

fn text(code: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(full(text.into()));
    *response.status_mut() = code;
    response
}

fn options() -> ServeOptions {
    ServeOptions {
        max_connections: MOST_CONNECTIONS,
        drain: Duration::from_secs(1),
        stalled_client: Some(Duration::from_secs(30)),
        ..ServeOptions::default()
    }
}

/// Serves the health probes.
pub(super) async fn health(
    listener: TcpListener,
    health: Arc<Health>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let handler = move |request: Request<Incoming>| {
        let response = health.serve(&request);
        async move { response }
    };
    yurt_transport::serve(listener, None, options(), shutdown, handler).await
}

/// Serves the metrics.
pub(super) async fn metrics(
    listener: TcpListener,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let handler = move |request: Request<Incoming>| {
        let response = match request.uri().path() {
            _ if !reads(&request) => text(StatusCode::METHOD_NOT_ALLOWED, "GET only"),
            "/metrics" => {
                let (shown, content_type) = metrics.render();
                let mut response = text(StatusCode::OK, shown);
                let content_type = http::HeaderValue::from_static(content_type);
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, content_type);
                response
            }
            _ => text(StatusCode::NOT_FOUND, "there is /metrics"),
        };
        async move { response }
    };
    yurt_transport::serve(listener, None, options(), shutdown, handler).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn where_there_is_no_ipv6_all_addresses_are_those_of_ipv4() {
        let (all, all_v4) = (
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        );
        // As the kernel says it without the module, and with `ipv6.disable_ipv6`.
        for code in [97, 99] {
            assert_eq!(
                instead(all, Some(&io::Error::from_raw_os_error(code))),
                all_v4
            );
        }
        // Somebody else's port, or no right to it, are another matter.
        for code in [98, 13] {
            assert_eq!(instead(all, Some(&io::Error::from_raw_os_error(code))), all);
        }
        assert_eq!(instead(all, None), all);
        let one: IpAddr = "127.0.0.1".parse().unwrap();
        assert_eq!(any(one).await, one);
        // Whatever this machine has, it can be listened on.
        let listener = bind(SocketAddr::new(all, 0), "of the test").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let reached = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
        assert!(reached.is_ok(), "{reached:?}");
    }

    #[test]
    fn a_manager_is_ready_when_all_is_read_that_can_be() {
        let refused = Standing::Refused("forbidden".into());
        let of = |standings: &[(&str, &Standing)]| {
            let standings = standings.iter();
            caches(standings.map(|(name, standing)| ((*name).to_owned(), *standing)))
        };
        let waiting = of(&[
            ("nodes", &Standing::Complete),
            ("nodes", &Standing::Filling),
            ("nodes", &refused),
        ]);
        assert_eq!(waiting.len(), 1, "one line for all parts of a collection");
        let (code, said) = answer(&waiting, false);
        assert_eq!(code, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(
            said.starts_with("[-]cache/nodes failed: not everything"),
            "{said}"
        );
        let partly = of(&[
            ("nodes", &Standing::Complete),
            ("pools", &Standing::Absent),
            ("pods", &refused),
        ]);
        assert_eq!(answer(&partly, false), (StatusCode::OK, "ok".into()));
        let (code, said) = answer(&partly, true);
        assert_eq!(code, StatusCode::OK);
        for line in [
            "[+]cache/nodes ok\n",
            "[!]cache/pods waits: forbidden\n",
            "[!]cache/pools waits: not served",
            "readyz check passed\n",
        ] {
            assert!(said.contains(line), "{line} is missing in {said}");
        }
    }
}
