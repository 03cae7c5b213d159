//! Records what kube-apiserver's egress client says to a Unix socket: `RECORD_EGRESS=DIR` writes the shortest connection by each
//! protocol to `DIR/NAME.turns`, which the unit tests of `yurt-tunnel` replay (`crates/tunnel/src/frontend/`).

use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// Between kube-apiserver and the server's socket, when something is to be recorded.
pub(super) struct Recorder {
    connection: Value,
    into: Option<(PathBuf, Turns)>,
}

/// What each connection said between two answers.
type Turns = Arc<Mutex<Vec<Arc<Mutex<Vec<Vec<u8>>>>>>>;

impl Recorder {
    /// A recorder before the socket of a connection; only where that is asked for.
    pub(super) fn before(connection: &Value, dir: &Path, name: &str) -> Self {
        let socket = connection["transport"]["uds"]["udsName"].as_str();
        let (Some(into), Some(socket)) = (std::env::var_os("RECORD_EGRESS"), socket) else {
            return Self {
                connection: connection.clone(),
                into: None,
            };
        };
        let (here, there) = (dir.join(format!("{name}.sock")), PathBuf::from(socket));
        let listener = UnixListener::bind(&here).unwrap();
        let turns = Turns::default();
        let all = turns.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let one = Arc::default();
                all.lock().unwrap().push(Arc::clone(&one));
                let far = UnixStream::connect(&there).unwrap();
                relay(near, far, one);
            }
        });
        let mut connection = connection.clone();
        connection["transport"]["uds"] = json!({"udsName": here});
        let file = PathBuf::from(into).join(format!("{name}.turns"));
        Self {
            connection,
            into: Some((file, turns)),
        }
    }

    /// The connection that kube-apiserver is to have.
    pub(super) fn connection(&self) -> &Value {
        &self.connection
    }

    /// Writes the last connection in which some words were said.
    pub(super) fn write(&self, words: &str) {
        let Some((file, turns)) = &self.into else {
            return;
        };
        let said = |turns: &Vec<Vec<u8>>| {
            let all = turns.concat();
            all.windows(words.len())
                .any(|part| part == words.as_bytes())
        };
        let turns = turns.lock().unwrap();
        let mut with_words = turns.iter().rev().map(|one| one.lock().unwrap().clone());
        let turns = with_words
            .find(said)
            .expect("a connection with these words");
        let mut out = Vec::new();
        for turn in turns {
            out.extend(u32::try_from(turn.len()).unwrap().to_be_bytes());
            out.extend(turn);
        }
        std::fs::write(file, out).unwrap();
    }
}

/// Is told of what was said.
type Note = Box<dyn FnMut(&[u8]) + Send>;

/// Carries both ways; a turn of the near side ends when the far side speaks.
fn relay(near: UnixStream, far: UnixStream, turns: Arc<Mutex<Vec<Vec<u8>>>>) {
    let answered = Arc::new(Mutex::new(true));
    let copy = |mut from: UnixStream, mut to: UnixStream, mut note: Note| {
        std::thread::spawn(move || {
            let mut piece = [0; 16 << 10];
            while let Ok(count @ 1..) = from.read(&mut piece) {
                note(&piece[..count]);
                if to.write_all(&piece[..count]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Write);
        });
    };
    let spoken = answered.clone();
    let note = move |bytes: &[u8]| {
        let mut turns = turns.lock().unwrap();
        if std::mem::take(&mut *spoken.lock().unwrap()) {
            turns.push(Vec::new());
        }
        turns.last_mut().unwrap().extend_from_slice(bytes);
    };
    copy(
        near.try_clone().unwrap(),
        far.try_clone().unwrap(),
        Box::new(note),
    );
    copy(
        far,
        near,
        Box::new(move |_| *answered.lock().unwrap() = true),
    );
}
