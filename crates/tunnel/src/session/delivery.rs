//! What both protocols promise, whatever both ends of many connections do at once: bytes arrive in order; an end that is told is one that was
//! said, after everything before it; and nothing is left over.

use crate::{
    anp,
    link::Link,
    session::{Options, Session},
    twin::{self, Answers, to},
};
use proptest::{collection::vec, prelude::*};
use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex, split},
    time::{sleep, timeout},
};
use yurt_transport::{BoxStream, Destination};

/// What one end of a connection does.
#[derive(Clone, Debug)]
struct Script {
    writes: Vec<usize>,
    /// Says that it ended; otherwise it just vanishes.
    ends: bool,
    /// Vanishes when it has read as much.
    reads: Option<usize>,
}

fn script() -> impl Strategy<Value = Script> {
    let size = prop_oneof![1usize..100, 1000usize..100_000];
    let reads = prop_oneof![3 => Just(None), 1 => (0usize..50_000).prop_map(Some)];
    (vec(size, 0..6), any::<bool>(), reads).prop_map(|(writes, ends, reads)| Script {
        writes,
        ends,
        reads,
    })
}

fn byte(at: usize) -> u8 {
    (at % 251) as u8
}

/// What an end saw: bytes read, and whether it was told that there are no more.
#[derive(Clone, Copy, Debug, Default)]
struct Saw {
    read: usize,
    end: bool,
    disorder: bool,
    said: bool,
}

async fn perform(stream: impl AsyncRead + AsyncWrite, script: Script) -> Saw {
    let (mut reading, mut writing) = split(stream);
    let write = async {
        let mut at = 0;
        for length in script.writes {
            let data: Vec<u8> = (at..at + length).map(byte).collect();
            at += length;
            if writing.write_all(&data).await.is_err() {
                return false;
            }
        }
        script.ends && writing.shutdown().await.is_ok()
    };
    let read = async {
        let (mut saw, mut piece) = (Saw::default(), vec![0; 8 << 10]);
        while script.reads.is_none_or(|most| saw.read < most) {
            match reading.read(&mut piece).await {
                Ok(0) => {
                    saw.end = true;
                    break;
                }
                Ok(count) => {
                    saw.disorder |= (0..count).any(|index| piece[index] != byte(saw.read + index));
                    saw.read += count;
                }
                Err(_) => break,
            }
        }
        saw
    };
    let both = async { tokio::join!(write, read) };
    // Who neither ends nor reads to the end would wait for the other for ever.
    let (said, saw) = timeout(Duration::from_secs(20), both)
        .await
        .unwrap_or_default();
    Saw { said, ..saw }
}

impl Script {
    fn length(&self) -> usize {
        self.writes.iter().sum()
    }
}

async fn check(
    connect: impl AsyncFn(Arc<dyn yurt_transport::Dialer>) -> (Arc<dyn Link>, Session),
    connections: Vec<(Script, Script)>,
    half_close: bool,
) -> Result<(), TestCaseError> {
    let targets: Vec<Script> = connections
        .iter()
        .map(|(_, target)| target.clone())
        .collect();
    let seen: Arc<Mutex<Vec<Option<Saw>>>> = Arc::new(Mutex::new(vec![None; targets.len()]));
    let dialer = {
        let seen = Arc::clone(&seen);
        Arc::new(Answers(move |to: Destination| {
            let (ours, theirs) = duplex(16 << 10);
            let index = usize::from(to.port) - 1;
            let (script, seen) = (targets[index].clone(), Arc::clone(&seen));
            tokio::spawn(async move {
                let saw = perform(theirs, script).await;
                seen.lock().unwrap()[index] = Some(saw);
            });
            std::future::ready(io::Result::Ok(Box::new(ours) as BoxStream))
        }))
    };
    let (link, session) = connect(dialer).await;
    let callers: Vec<_> = connections
        .iter()
        .enumerate()
        .map(|(index, (script, _))| {
            let (link, script) = (Arc::clone(&link), script.clone());
            tokio::spawn(async move {
                let stream = link
                    .dial(&to(&format!("target:{}", index + 1)))
                    .await
                    .unwrap();
                perform(stream, script).await
            })
        })
        .collect();
    let mut callers_saw = Vec::new();
    for caller in callers {
        callers_saw.push(caller.await.unwrap());
    }
    // Nothing outlives its ends.
    let settled = timeout(Duration::from_secs(60), async {
        while link.connections() + session.connections() > 0
            || seen.lock().unwrap().iter().any(Option::is_none)
        {
            sleep(Duration::from_millis(10)).await;
        }
    });
    prop_assert!(
        settled.await.is_ok(),
        "left over: {} {}",
        link.connections(),
        session.connections()
    );
    prop_assert!(!link.closed().is_cancelled());
    let seen = seen.lock().unwrap();
    for ((caller, target), (caller_saw, target_saw)) in
        connections.iter().zip(callers_saw.iter().zip(seen.iter()))
    {
        let target_saw = target_saw.unwrap();
        prop_assert!(!caller_saw.disorder && !target_saw.disorder);
        prop_assert!(caller_saw.read <= target.length() && target_saw.read <= caller.length());
        // What a pipe in memory tells of a target that vanishes is an end; of a caller only a true one is told.
        if half_close && target_saw.end && caller_saw.said {
            prop_assert_eq!(target_saw.read, caller.length());
        }
        if half_close && caller_saw.end && target_saw.said {
            prop_assert_eq!(caller_saw.read, target.length());
        }
    }
    Ok(())
}

fn run(body: impl Future<Output = Result<(), TestCaseError>>) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(body)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn of_mux(connections in vec((script(), script()), 1..12)) {
        let connect = async |dialer| {
            let (link, session) = twin::mux("node-1", dialer, Options::default()).await;
            (link as Arc<dyn Link>, session)
        };
        run(check(connect, connections, true))?;
    }

    #[test]
    fn of_quic(connections in vec((script(), script()), 1..12)) {
        let ground = crate::quic::tests::Ground::new();
        let connect = async |dialer| {
            let (link, session, _) = ground.pair(dialer, Options::default()).await;
            (link as Arc<dyn Link>, session)
        };
        run(check(connect, connections, true))?;
    }

    #[test]
    fn of_anp(connections in vec((script(), script()), 1..12)) {
        run(check(async |dialer| anp::tests::pair(dialer).await, connections, false))?;
    }
}
