//! Whether a caller without credentials is a process of the node itself (design rule R4): the socket at its end of the connection is
//! found in the hub's own network namespace, then the cgroup it was made in, or those of the processes that hold it. A pod that
//! shares the node's network is still in a cgroup of its own, and is refused.
//!
//! The decision is [`decide`], pure; the facts come from `socket` (sock_diag), `cgroup` and `holders` (`/proc`). All of it is asked
//! once per connection.

mod cgroup;
mod holders;
mod socket;

use cgroup::{Cgroups, Tree};
use socket::Socket;
use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Semaphore;
use yurt_transport::Process;

/// Processes that were proven to be the node's and are looked at first the next time: kubelets open many connections.
const RECENT: usize = 16;
/// Searches through all processes at one time.
const SEARCHES: usize = 2;

/// Where a process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the node, in the hub's own container or outside of all.
    Node,
    /// In a container: of a pod, or of a runtime beside it.
    Container,
}

/// What is known of the process at the other end of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its user; `None` when its end of the connection is not in the hub's network namespace.
    pub uid: Option<u32>,
    /// The hub's user.
    pub own_uid: u32,
    /// Where its socket was made, when the kernel tells and the hub can see that cgroup.
    pub made: Option<Place>,
    /// Where the processes are that hold the socket, as far as the hub can see.
    pub held: Vec<Place>,
}

/// Why a caller is not taken for a component of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// Another network namespace, or another machine.
    #[error("this connection does not come from a process in the node's own network")]
    Elsewhere,
    /// A pod with `hostNetwork`, or another container.
    #[error("a process in a container is not the node, whatever network it uses")]
    Container,
    /// Neither root nor the hub's user.
    #[error("processes of user {0} do not act as the node; those of root and of the hub's user do")]
    User(u32),
    /// The hub cannot see the process.
    #[error(
        "the hub cannot see the process that calls (a hub in a pod needs hostPID: true, a hub that is not root sees only its own \
         user's processes)"
    )]
    Unseen,
}

/// Whether the process is one of the node's own.
pub fn decide(facts: &Facts) -> Result<(), Stranger> {
    let Some(uid) = facts.uid else {
        return Err(Stranger::Elsewhere);
    };
    if facts.made == Some(Place::Container) || facts.held.contains(&Place::Container) {
        return Err(Stranger::Container);
    }
    if uid != 0 && uid != facts.own_uid {
        return Err(Stranger::User(uid));
    }
    if facts.made.is_none() && facts.held.is_empty() {
        return Err(Stranger::Unseen);
    }
    Ok(())
}

/// Finds out about processes.
#[derive(Debug)]
pub struct Processes {
    proc: PathBuf,
    own_uid: u32,
    own: Option<Cgroups>,
    tree: Option<Tree>,
    recent: Mutex<VecDeque<u32>>,
    searching: Semaphore,
}

/// What a first look says.
enum Looked {
    Decided(Result<(), Stranger>),
    /// Nobody who is known holds this socket.
    Unknown(Socket),
}

impl Default for Processes {
    fn default() -> Self {
        let proc = PathBuf::from("/proc");
        let own = Cgroups::of(&proc, "self");
        Self {
            own_uid: rustix::process::geteuid().as_raw(),
            tree: own.as_ref().and_then(Tree::seen_by),
            own,
            proc,
            recent: Mutex::default(),
            searching: Semaphore::new(SEARCHES),
        }
    }
}

impl Processes {
    /// Whether the client of a TCP connection to the hub (`client` and `local` as the hub sees them) is one of the node's own
    /// processes. An error says that it could not be found out just now.
    pub async fn prove(
        self: &Arc<Self>,
        client: SocketAddr,
        local: SocketAddr,
    ) -> io::Result<Result<(), Stranger>> {
        // The kernel's answers take some of a thread's time, `/proc` may take much.
        let socket = match self.blocking(move |this| this.look(client, local)).await? {
            Looked::Decided(verdict) => return Ok(verdict),
            Looked::Unknown(socket) => socket,
        };
        // Whoever may open connections must not keep every thread busy with it.
        let _searching = self.searching.acquire().await.map_err(io::Error::other)?;
        self.blocking(move |this| Ok(this.search(socket))).await
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || work(&this))
            .await
            .map_err(io::Error::other)?
    }

    /// The same for a process that connected to a Unix socket.
    pub fn prove_local(&self, process: Process) -> Result<(), Stranger> {
        let held = process.pid.and_then(|pid| self.place_of(pid));
        decide(&Facts {
            held: held.into_iter().collect(),
            ..self.facts(process.uid)
        })
    }

    /// What the kernel tells, and the processes that were proven before.
    fn look(&self, client: SocketAddr, local: SocketAddr) -> io::Result<Looked> {
        let Some(socket) = socket::find(client, local)? else {
            return Ok(Looked::Decided(Err(Stranger::Elsewhere)));
        };
        let made = self
            .tree
            .as_ref()
            .zip(socket.cgroup)
            .and_then(|(tree, id)| tree.place(id));
        if made.is_some() {
            let facts = Facts {
                made,
                ..self.facts(socket.uid)
            };
            return Ok(Looked::Decided(decide(&facts)));
        }
        let recent: Vec<u32> = self.recent().iter().copied().collect();
        Ok(match holders::known(&self.proc, socket.inode, &recent) {
            Some(pid) => Looked::Decided(self.held_by(socket, &[pid])),
            None => Looked::Unknown(socket),
        })
    }

    /// Looks at all processes.
    fn search(&self, socket: Socket) -> Result<(), Stranger> {
        self.held_by(socket, &holders::all(&self.proc, socket.inode))
    }

    fn held_by(&self, socket: Socket, pids: &[u32]) -> Result<(), Stranger> {
        let verdict = decide(&Facts {
            held: pids.iter().filter_map(|pid| self.place_of(*pid)).collect(),
            ..self.facts(socket.uid)
        });
        if verdict.is_ok() {
            self.remember(pids);
        }
        verdict
    }

    fn facts(&self, uid: u32) -> Facts {
        Facts {
            uid: Some(uid),
            own_uid: self.own_uid,
            ..Facts::default()
        }
    }

    fn place_of(&self, pid: u32) -> Option<Place> {
        Some(Cgroups::of(&self.proc, &pid.to_string())?.place(self.own.as_ref()?))
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, VecDeque<u32>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, pids: &[u32]) {
        let mut recent = self.recent();
        recent.retain(|pid| !pids.contains(pid));
        for pid in pids.iter().take(RECENT) {
            recent.push_front(*pid);
        }
        recent.truncate(RECENT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn who_is_the_node() {
        use Place::{Container, Node};
        for (uid, made, held, expected) in [
            (Some(0), Some(Node), &[][..], Ok(())),
            (Some(0), None, &[Node], Ok(())),
            (Some(0), None, &[Node, Node], Ok(())),
            (Some(1000), None, &[Node], Ok(())),
            (Some(1001), None, &[Node], Err(Stranger::User(1001))),
            (Some(1001), Some(Node), &[], Err(Stranger::User(1001))),
            (None, None, &[], Err(Stranger::Elsewhere)),
            // Whatever else holds: without a socket in this network nothing is proven.
            (None, Some(Node), &[Node], Err(Stranger::Elsewhere)),
            (Some(0), Some(Container), &[], Err(Stranger::Container)),
            (Some(0), None, &[Container], Err(Stranger::Container)),
            // A socket handed over between a pod and the node is the pod's.
            (Some(0), None, &[Node, Container], Err(Stranger::Container)),
            (Some(0), Some(Container), &[Node], Err(Stranger::Container)),
            (Some(0), None, &[], Err(Stranger::Unseen)),
        ] {
            let facts = Facts {
                uid,
                own_uid: 1000,
                made,
                held: held.to_vec(),
            };
            assert_eq!(decide(&facts), expected, "{facts:?}");
        }
    }

    fn pair(address: &str) -> (TcpStream, TcpListener) {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (stream, listener)
    }

    #[tokio::test]
    async fn a_known_process_is_found_again() {
        let processes = Arc::new(Processes::default());
        for _ in 0..2 {
            let (stream, listener) = pair("127.0.0.1");
            let (client, local) = (stream.local_addr().unwrap(), listener.local_addr().unwrap());
            assert_eq!(processes.prove(client, local).await.unwrap(), Ok(()));
            if processes.tree.is_none() {
                let recent = processes.recent().clone();
                assert_eq!(
                    recent,
                    [std::process::id()],
                    "looked for and remembered once"
                );
                let looked = processes.look(client, local).unwrap();
                assert!(matches!(looked, Looked::Decided(Ok(()))));
            }
        }
    }

    #[tokio::test]
    async fn this_process_is_found_by_its_connection() {
        let processes = Arc::new(Processes::default());
        for address in ["127.0.0.1", "127.0.0.9", "::1"] {
            let (stream, listener) = pair(address);
            let (client, local) = (stream.local_addr().unwrap(), listener.local_addr().unwrap());
            assert_eq!(processes.prove(client, local).await.unwrap(), Ok(()));
            // Nobody is at an address that nothing is connected from.
            drop(stream);
            let gone = processes.prove(SocketAddr::new(client.ip(), 1), local);
            assert_eq!(gone.await.unwrap(), Err(Stranger::Elsewhere));
        }
        let own = Process {
            uid: processes.own_uid,
            pid: Some(std::process::id()),
        };
        assert_eq!(processes.prove_local(own), Ok(()));
        let hidden = Process { pid: None, ..own };
        assert_eq!(processes.prove_local(hidden), Err(Stranger::Unseen));
    }
}
