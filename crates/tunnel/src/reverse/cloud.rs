//! The connection on which the cloud is asked: made when it is needed, to any server that is connected, and made again when it ends.

use crate::{
    DialError, Opening, Tunnels,
    agent::{connector::Connections, reach::Reach},
    certificates::is_aged,
    mux,
};
use std::sync::Arc;
use tokio::sync::Mutex;
use yurt_pki::Leaf;
use yurt_transport::{BoxStream, Destination};

/// The cloud, by whichever server is connected.
#[derive(Debug)]
pub struct Cloud {
    reach: Arc<Reach>,
    connections: Connections,
    held: Mutex<Option<Held>>,
}

/// A connection, and what was shown for it.
#[derive(Debug)]
struct Held {
    cloud: Arc<mux::cloud::Cloud>,
    shown: Option<Leaf>,
}

impl Cloud {
    /// By the servers that the agent is connected to.
    pub fn new(reach: Arc<Reach>, connections: Connections) -> Arc<Self> {
        Arc::new(Self {
            reach,
            connections,
            held: Mutex::default(),
        })
    }

    async fn server(&self) -> Result<Arc<mux::cloud::Cloud>, DialError> {
        let mut held = self.held.lock().await;
        let pair = self.reach.kept.current().pair.clone();
        let current = pair.map(|pair| pair.leaf);
        let good = held.as_ref().filter(|held| {
            // What is open by the one before goes on.
            let aged = is_aged(held.shown.as_ref(), current.as_ref(), (self.reach.now)());
            !held.cloud.closed().is_cancelled() && !aged
        });
        if let Some(held) = good {
            return Ok(held.cloud.clone());
        }
        let mut doors = self.connections.doors();
        fastrand::shuffle(&mut doors);
        let mut failure = DialError::NoAgent("this node is connected to no server".to_owned());
        for door in doors {
            match self.reach.cloud(&door).await {
                Ok(cloud) => {
                    *held = Some(Held {
                        cloud: cloud.clone(),
                        shown: current,
                    });
                    return Ok(cloud);
                }
                Err(error) => failure = DialError::Lost(format!("{door}: {error}")),
            }
        }
        Err(failure)
    }

    async fn connect(&self, to: &Destination) -> Result<BoxStream, DialError> {
        match self.server().await?.open(to).await {
            // The connection was dead without our knowing.
            Err(DialError::Lost(_)) => self.server().await?.open(to).await,
            other => other,
        }
    }
}

impl Tunnels for Cloud {
    fn open<'a>(&'a self, to: &'a Destination) -> Opening<'a> {
        Box::pin(self.connect(to))
    }
}
