//! What is said when an agent joins: one question and one answer, each a length and a JSON object.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{io, time::Duration};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use yurt_pki::PkiError;

/// Most bytes of a question or answer.
const MOST: u32 = 64 << 10;
/// For the whole exchange.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Why an agent has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Nobody answered, or the connection broke. Passing.
    #[error("no server: {0}")]
    Io(#[from] io::Error),
    /// The server says no. It will say the same until somebody does something.
    #[error("the server refuses: {0}")]
    Refused(String),
    /// The server has trouble of its own. Passing.
    #[error("the server cannot: {0}")]
    Trouble(String),
    /// It is not the server that the token is of.
    #[error(
        "this is not the server that the token is of: none of its certificates has the pinned key"
    )]
    Unpinned,
    /// There is neither a certificate nor a token.
    #[error("there is no certificate yet: --token is needed, as `yurt tunnel token` prints it")]
    NoToken,
    /// Certificates do not fit.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

impl JoinError {
    /// Whether trying again may help without anybody's doing.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Trouble(_))
    }
}

/// An agent's question.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Question {
    pub(super) node: String,
    /// Id and secret; without one the agent shows a certificate.
    pub(super) token: Option<(String, String)>,
    /// PEM.
    pub(super) request: String,
}

/// The server's answer.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Answer {
    Issued(String),
    /// The agent's fault.
    Refused(String),
    /// The server's.
    Trouble(String),
}

pub(super) async fn write(
    io: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    if length > MOST {
        let kind = io::ErrorKind::InvalidInput;
        return Err(io::Error::new(kind, "too long a message"));
    }
    io.write_u32(length).await?;
    io.write_all(&text).await?;
    io.flush().await
}

pub(super) async fn read<T: DeserializeOwned>(io: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let length = io.read_u32().await?;
    if length > MOST {
        let kind = io::ErrorKind::InvalidData;
        return Err(io::Error::new(kind, "too long a message"));
    }
    let mut text = vec![0; usize::try_from(length).unwrap_or(0)];
    io.read_exact(&mut text).await?;
    Ok(serde_json::from_slice(&text)?)
}
