//! A server under measure.

use super::{
    super::{
        BenchError,
        load::{Target, call},
        processes::{Ended, Server},
    },
    remove_namespace,
};
use crate::kubeconfig::Access;
use http::{HeaderValue, Method};
use std::{path::Path, sync::Arc};
use yurt_transport::{Client, ClientOptions};

/// What a server has used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    pub(super) resident_bytes: f64,
    pub(super) cpu_seconds: f64,
}

/// A server under measure.
#[derive(Debug)]
pub(super) struct Side {
    authority: String,
    tls: Option<Arc<rustls::ClientConfig>>,
    authorization: Option<HeaderValue>,
    processes: Processes,
    cpu_at_start: f64,
}

#[derive(Debug)]
enum Processes {
    /// Ours; ends with the bench.
    Embedded(Box<Server>),
    /// Somebody else's, by their ids; none: what the server says of itself.
    Other(Vec<u32>),
}

impl Side {
    /// Starts the embedded server and waits until it answers.
    pub(super) async fn embedded(dir: &Path) -> Result<Self, BenchError> {
        let data = dir.join("server");
        let arguments = [
            "apiserver".into(),
            "--data-dir".into(),
            data.clone().into_os_string(),
            "--port".into(),
            "0".into(),
        ];
        let mut server = Server::start("API server", &arguments, dir)?;
        let kubeconfig = data.join("admin.kubeconfig");
        server.written(&kubeconfig).await?;
        let mut side = Self::reach(&kubeconfig, Processes::Other(Vec::new()))?;
        server.ready(&side.target(), "/readyz").await?;
        side.processes = Processes::Embedded(Box::new(server));
        Ok(side)
    }

    /// Another server.
    pub(super) async fn other(kubeconfig: &Path, pids: Vec<u32>) -> Result<Self, BenchError> {
        let mut side = Self::reach(kubeconfig, Processes::Other(pids))?;
        side.target().get("/readyz").await?;
        side.cpu_at_start = side.usage().await?.cpu_seconds;
        Ok(side)
    }

    fn reach(kubeconfig: &Path, processes: Processes) -> Result<Self, BenchError> {
        let access = Access::read(kubeconfig)?;
        let tls = match &access.ca {
            None => None,
            Some(ca) => Some(yurt_pki::client_config(
                ca,
                access.certificate.as_ref(),
                &["h2", "http/1.1"],
            )?),
        };
        let authorization = match &access.token {
            None => None,
            Some(token) => {
                let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                    .map_err(|error| call("the token of the kubeconfig", error))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self {
            authority: access.authority,
            tls,
            authorization,
            processes,
            cpu_at_start: 0.0,
        })
    }

    /// For people.
    pub(super) fn name(&self) -> &str {
        match self.processes {
            Processes::Embedded(_) => "yurt",
            Processes::Other(_) => &self.authority,
        }
    }

    /// CPU seconds used before the bench began.
    pub(super) fn cpu_at_start(&self) -> f64 {
        self.cpu_at_start
    }

    /// A client with a connection of its own.
    pub(super) fn target(&self) -> Target {
        Target {
            client: Client::new(&self.authority, self.tls.clone(), ClientOptions::default()),
            authorization: self.authorization.clone(),
        }
    }

    /// Memory and CPU time of all its processes now.
    pub(super) async fn usage(&self) -> Result<Usage, BenchError> {
        let pids = match &self.processes {
            Processes::Embedded(server) => server.pid().into_iter().collect(),
            Processes::Other(pids) => pids.clone(),
        };
        if pids.is_empty() {
            let metrics = self.target().call(Method::GET, "/metrics", None).await?;
            return Ok(said(&String::from_utf8_lossy(&metrics)));
        }
        let mut sum = Usage {
            resident_bytes: 0.0,
            cpu_seconds: 0.0,
        };
        for pid in pids {
            let usage = yurt_telemetry::process_usage(Some(pid))
                .ok_or_else(|| call(&format!("process {pid}"), "is not there (any more)"))?;
            sum.resident_bytes += usage.resident_bytes as f64;
            sum.cpu_seconds += usage.cpu_seconds;
        }
        Ok(sum)
    }

    /// Removes the bench's namespaces, or the whole server where it is the bench's own.
    pub(super) async fn end(self, namespaces: &[&str]) -> Result<(), BenchError> {
        if let Processes::Embedded(mut server) = self.processes {
            server.end(Ended::Drained).await;
            return Ok(());
        }
        let target = self.target();
        for namespace in namespaces {
            remove_namespace(&target, namespace).await?;
        }
        Ok(())
    }
}

/// What a server says of itself, in Prometheus' text form. Not a number what it does not say.
fn said(metrics: &str) -> Usage {
    let value = |name: &str| {
        let mut values = metrics.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let rest = match rest.strip_prefix('{') {
                Some(labels) => labels.split_once('}')?.1,
                None => rest,
            };
            rest.strip_prefix(' ')?.trim().parse::<f64>().ok()
        });
        values.next().unwrap_or(f64::NAN)
    };
    Usage {
        resident_bytes: value("process_resident_memory_bytes"),
        cpu_seconds: value("process_cpu_seconds_total"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_own_word_is_read() {
        let usage = said(
            "# HELP process_cpu_seconds_total x\nprocess_cpu_seconds_total 12.5\n\
             process_resident_memory_bytes{component=\"a\"} 4.61e+08\n",
        );
        assert_eq!((usage.cpu_seconds, usage.resident_bytes), (12.5, 4.61e8));
        assert!(said("").cpu_seconds.is_nan());
    }
}
