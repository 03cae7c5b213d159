//! Certificates from files: read at start, read again when they change, without a restart (design rule R9).

use crate::{
    config::{Config, KeyPairFiles},
    upstream::{CloudTls, Upstreams},
};
use arc_swap::ArcSwap;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio_util::sync::CancellationToken;
use yurt_pki::{KeyPairPem, PkiError};

/// Between looks at the files.
const LOOK: Duration = Duration::from_secs(20);
/// Protocols offered to API servers.
const ALPN: [&str; 2] = ["h2", "http/1.1"];

/// The TLS configuration of the listeners, read anew for every connection.
pub type ServingTls = Arc<ArcSwap<rustls::ServerConfig>>;

fn read(path: &Path) -> Result<String, PkiError> {
    std::fs::read_to_string(path).map_err(|source| PkiError::Io {
        path: path.display().to_string(),
        source,
    })
}

fn read_pair(files: &KeyPairFiles) -> Result<KeyPairPem, PkiError> {
    Ok(KeyPairPem {
        cert: read(&files.cert)?,
        key: read(&files.key)?,
    })
}

/// How the cloud is reached, by the files of the configuration.
pub fn cloud(config: &Config) -> Result<CloudTls, PkiError> {
    let ca = read(&config.ca_file)?;
    let node = match &config.node_certificate {
        Some(files) => Some(yurt_pki::client_config(
            &ca,
            Some(&read_pair(files)?),
            &ALPN,
        )?),
        None => None,
    };
    Ok(CloudTls {
        node,
        bearer: yurt_pki::client_config(&ca, None, &ALPN)?,
    })
}

/// How the TLS proxy serves, by the files of the configuration; `None` when it is not to be served.
pub fn serving(config: &Config) -> Result<Option<Arc<rustls::ServerConfig>>, PkiError> {
    match &config.serving_certificate {
        Some(files) => Ok(Some(yurt_pki::server_config(
            &read_pair(files)?,
            None,
            true,
        )?)),
        None => Ok(None),
    }
}

/// When each file last changed.
fn stamps(config: &Config) -> Vec<Option<SystemTime>> {
    let pairs = config
        .node_certificate
        .iter()
        .chain(&config.serving_certificate);
    let files: Vec<&PathBuf> = pairs
        .flat_map(|pair| [&pair.cert, &pair.key])
        .chain([&config.ca_file])
        .collect();
    files
        .into_iter()
        .map(|path| {
            std::fs::metadata(path)
                .and_then(|metadata| metadata.modified())
                .ok()
        })
        .collect()
}

/// Takes over changed files until `shutdown`. Files that cannot be used (half written, wrong key) leave the old ones in use.
pub async fn follow(
    config: Arc<Config>,
    upstreams: Arc<Upstreams>,
    tls: Option<ServingTls>,
    shutdown: CancellationToken,
) {
    let mut known = stamps(&config);
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = shutdown.cancelled() => return,
        }
        let now = stamps(&config);
        if now == known {
            continue;
        }
        let loaded = cloud(&config).and_then(|cloud| Ok((cloud, serving(&config)?)));
        match loaded {
            Ok((cloud, server)) => {
                upstreams.set_tls(&cloud);
                if let (Some(tls), Some(server)) = (&tls, server) {
                    tls.store(server);
                }
                known = now;
                tracing::info!("certificates changed: in use from now on");
            }
            Err(error) => {
                tracing::warn!(%error, "changed certificates cannot be used; the old ones stay")
            }
        }
    }
}
