//! Certificates that somebody else keeps in files: read again when they change.

use super::{CertificateMetrics, Credentials, Identity, Kept};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use yurt_pki::{
    PkiError, certs_from_pem,
    store::{Pair, read_text},
};

/// Between looks at files.
const LOOK: Duration = Duration::from_secs(5);

/// Where certificate, key and CA are; certificate and key may be one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenFiles {
    /// The certificate with its chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The CAs believed.
    pub ca: PathBuf,
}

/// As [`GivenFiles`], where one of both is enough: tokens stand in for the certificates of one side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SomeFiles {
    /// Certificate and key.
    pub pair: Option<(PathBuf, PathBuf)>,
    /// The CAs believed; `None`: nobody is.
    pub ca: Option<PathBuf>,
}

impl From<GivenFiles> for SomeFiles {
    fn from(GivenFiles { cert, key, ca }: GivenFiles) -> Self {
        Self {
            pair: Some((cert, key)),
            ca: Some(ca),
        }
    }
}

impl SomeFiles {
    fn read(&self) -> Result<Credentials, PkiError> {
        let pair = self.pair.as_ref();
        let ca = self.ca.as_deref().map(read_ca).transpose()?;
        Ok(Credentials {
            pair: pair.map(|(cert, key)| Pair::read(cert, key)).transpose()?,
            ca: ca.unwrap_or_default(),
        })
    }

    fn stamps(&self) -> [Option<SystemTime>; 3] {
        let pair = self.pair.as_ref();
        [
            pair.map(|(cert, _)| cert),
            pair.map(|(_, key)| key),
            self.ca.as_ref(),
        ]
        .map(|path| stamp(path?))
    }
}

/// When a file last changed.
fn stamp(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path)
        .and_then(|file| file.modified())
        .ok()
}

/// Reads a file of CA certificates.
pub(super) fn read_ca(path: &Path) -> Result<String, PkiError> {
    let pem = read_text(path).map_err(|source| PkiError::Io {
        path: path.display().to_string(),
        source,
    })?;
    certs_from_pem(&pem)?;
    Ok(pem)
}

/// Follows files until `shutdown`. Files that cannot be used are an error in the beginning; later they leave what was read before in
/// use, and are read again when they change.
pub fn follow_files(
    files: impl Into<SomeFiles>,
    identity: Identity,
    metrics: CertificateMetrics,
    shutdown: CancellationToken,
) -> Result<Kept, PkiError> {
    let files: SomeFiles = files.into();
    let mut stamps = files.stamps();
    let first = files.read()?;
    metrics.shown(identity, &first, true);
    let (show, shown) = watch::channel(Arc::new(first));
    tokio::spawn(shutdown.run_until_cancelled_owned(async move {
        loop {
            tokio::time::sleep(LOOK).await;
            let now = files.stamps();
            if now == stamps {
                continue;
            }
            stamps = now;
            match files.read() {
                Ok(read) => {
                    tracing::info!(certificate = identity.as_str(), "files of a certificate were read anew");
                    metrics.shown(identity, &read, true);
                    show.send_replace(Arc::new(read));
                }
                Err(error) => {
                    metrics.failed(identity);
                    tracing::warn!(certificate = identity.as_str(), %error, "the certificate before stays in use");
                }
            }
        }
    }));
    Ok(Kept::following(shown))
}
