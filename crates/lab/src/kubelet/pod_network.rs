//! The network of simulated pods: their addresses are no machine's, so that whoever is on the node connects by its kubelet, in process.

use super::{Kubelet, KubeletHandle, container::http as container_http, pod::uses_host_network};
use std::{io, sync::Arc};
use yurt_transport::{BoxStream, Destination, Dialer, Dialing, TcpDialer};

/// What is held of a connection that one side does not read.
const HELD: usize = 64 << 10;

/// As a process of the node: connects to its simulated pods, and by TCP to everything else.
impl Dialer for KubeletHandle {
    fn dial<'a>(&'a self, to: &'a Destination) -> Dialing<'a> {
        match self.kubelet.connect(to) {
            Some(connected) => Box::pin(std::future::ready(connected)),
            None => TcpDialer.dial(to),
        }
    }
}

impl Kubelet {
    /// A connection to a pod of this node by its address; `None` when it has no such pod.
    fn connect(&self, to: &Destination) -> Option<io::Result<BoxStream>> {
        let pods = self.workers();
        let pod = pods
            .values()
            .map(super::Worker::pod)
            .find(|pod| pod["status"]["podIP"] == to.host.as_str() && !uses_host_network(pod))?;
        drop(pods);
        let Some(container) = container_http::container_of(&pod, to.port) else {
            return Some(Err(io::ErrorKind::ConnectionRefused.into()));
        };
        let output = self.containers.container(&pod, container, &self.api).output;
        let (ours, theirs) = tokio::io::duplex(HELD);
        tokio::spawn(container_http::serve(
            theirs,
            Arc::clone(&pod),
            to.port,
            output,
        ));
        Some(Ok(Box::new(ours)))
    }
}
