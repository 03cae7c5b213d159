//! `yurt tunnel`: the server, the agent, and questions to a server.

mod forward;
mod unused;

use crate::{
    agent::{self, AgentArgs, AgentArgsError, AgentError},
    frontend::client::{Unreachable, Way},
    server::{self, RunError, ServerArgs},
    standalone::{self, AuthorityError, TokenArgs},
    status::{Explanation, ServerStatus, target},
};
use clap::{Args, Subcommand, ValueEnum};
pub use forward::{Forward, ForwardArgs, ForwardError};
use http::StatusCode;
use serde::{Serialize, de::DeserializeOwned};
use std::{net::SocketAddr, path::PathBuf, process::ExitCode};
use tokio_util::sync::CancellationToken;
pub(crate) use unused::UnusedArgs;
use yurt_controller::kubeconfig::{Access, KubeconfigError};
use yurt_pki::{KeyPairPem, PkiError};
use yurt_transport::Destination;

/// Where a server on this host answers people, unless told otherwise.
const META: &str = "127.0.0.1:10265";
/// The name that a server in a cluster has in its certificate.
const NAME: &str = crate::published::SERVICE;

/// The tunnel: the cloud reaches nodes that only dial out.
#[derive(Args, Clone, Debug)]
pub struct TunnelArgs {
    #[command(subcommand)]
    command: TunnelCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum TunnelCommand {
    /// An instance of the server, in the cloud.
    Server(Box<ServerArgs>),
    /// The agent, on a node.
    Agent(Box<AgentArgs>),
    /// Tokens by which agents join a server without Kubernetes.
    Token(TokenArgs),
    /// A server's agents, their connections, and the other instances.
    Status(Question),
    /// Which agent, of which instance, reaches a node or address, and why. Exits with 1 when none does.
    Explain {
        /// `NODE`, `ADDRESS` or `HOST:PORT`.
        #[arg(value_name = "NODE|ADDRESS|HOST:PORT")]
        target: String,
        #[command(flatten)]
        question: Question,
    },
    /// Listen here, and carry connections to ports of a node.
    Forward(ForwardArgs),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
}

/// A question to a server.
#[derive(Args, Clone, Debug)]
struct Question {
    #[command(flatten)]
    way: WayArgs,
    /// How to print the answer.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// How a server is reached.
#[derive(Args, Clone, Debug, Default)]
pub struct WayArgs {
    /// By the Unix socket of a server on this host (its --uds-name).
    #[arg(long, value_name = "PATH", conflicts_with_all = ["server", "meta"])]
    uds_name: Option<PathBuf>,
    /// By TLS at a server's agent port, with a client certificate that its --frontends names.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "meta")]
    server: Option<String>,
    /// By the port for metrics, health and status: questions only [default: 127.0.0.1:10265].
    #[arg(long, value_name = "HOST:PORT")]
    meta: Option<String>,
    /// A kubeconfig with the client certificate and the CA.
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// The client certificate, instead of the kubeconfig's.
    #[arg(long, value_name = "FILE", requires_all = ["key", "ca"])]
    certificate: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The CA of the server.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The name that the server's certificate is for [default: x-tunnel-server-svc with a kubeconfig, else the host].
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
}

/// Why a command of the tunnel fails.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The server does not run.
    #[error(transparent)]
    Server(#[from] RunError),
    /// The agent's flags are wrong.
    #[error(transparent)]
    AgentArgs(#[from] AgentArgsError),
    /// The agent does not run.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// Tokens cannot be read or written.
    #[error(transparent)]
    Token(#[from] AuthorityError),
    /// There is no way to a server.
    #[error(transparent)]
    Way(#[from] WayError),
    /// A server cannot be asked.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// Connections cannot be carried.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// What was asked for is no target.
    #[error("{0:?} is no NODE, ADDRESS or HOST:PORT")]
    Target(String),
    /// The server does not want to say, or does not understand.
    #[error("the server at {at} says {status}: {text}")]
    Refused {
        /// Which.
        at: String,
        /// Its status.
        status: StatusCode,
        /// What it says.
        text: String,
    },
}

/// Why there is no way to a server.
#[derive(Debug, thiserror::Error)]
pub enum WayError {
    /// Nothing says where it is.
    #[error(
        "where is the server? On its host: --uds-name PATH (the server's own --uds-name); from elsewhere: --server HOST:10262 with --kubeconfig, or with --certificate, --key and --ca"
    )]
    Nowhere,
    /// An address is none.
    #[error("{0:?} is no HOST:PORT")]
    Address(String),
    /// Nothing says who we are.
    #[error(
        "--server takes a client certificate: --kubeconfig, or --certificate with --key and --ca"
    )]
    Nobody,
    /// The kubeconfig has none.
    #[error("{0}: no client certificate in it; tunnel servers know their callers by certificates")]
    NoCertificate(PathBuf),
    /// The kubeconfig cannot be used.
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    /// A certificate cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl WayArgs {
    /// The way for connections; `None` where nothing is said.
    fn stated(&self) -> Result<Option<Way>, WayError> {
        let address = |text: &str| -> Result<Destination, WayError> {
            text.parse().map_err(|_| WayError::Address(text.to_owned()))
        };
        if let Some(path) = &self.uds_name {
            return Ok(Some(Way::Unix(path.clone())));
        }
        if let Some(meta) = &self.meta {
            return Ok(Some(Way::Plain(address(meta)?)));
        }
        let Some(server) = &self.server else {
            return Ok(None);
        };
        let at = address(server)?;
        let (own, ca, name) = match (&self.certificate, &self.key, &self.ca, &self.kubeconfig) {
            (Some(certificate), Some(key), Some(ca), _) => {
                let text = std::fs::read_to_string(ca).map_err(|source| WayError::Io {
                    path: ca.clone(),
                    source,
                })?;
                (KeyPairPem::read(certificate, key)?, text, at.host.clone())
            }
            (.., Some(kubeconfig)) => {
                let access = Access::read(kubeconfig)?;
                let lacking = || WayError::NoCertificate(kubeconfig.clone());
                let own = access.certificate.ok_or_else(lacking)?;
                (own, access.ca.ok_or_else(lacking)?, NAME.to_owned())
            }
            _ => return Err(WayError::Nobody),
        };
        Ok(Some(Way::Tls {
            name: self.server_name.clone().unwrap_or(name),
            at,
            config: yurt_pki::client_config(&ca, Some(&own), &["http/1.1"])?,
        }))
    }

    /// The way for questions.
    fn for_questions(&self) -> Result<Way, WayError> {
        match self.stated()? {
            Some(way) => Ok(way),
            None => {
                let at = META.parse();
                Ok(Way::Plain(at.map_err(|_| WayError::Address(META.into()))?))
            }
        }
    }

    /// The way for connections.
    fn for_connections(&self) -> Result<Way, WayError> {
        match self.stated()? {
            Some(Way::Plain(_)) | None => Err(WayError::Nowhere),
            Some(way) => Ok(way),
        }
    }
}

/// Asks a server; what is to be printed, and what it means.
async fn ask<T: DeserializeOwned + Serialize>(
    question: &Question,
    path: &str,
    show: impl Fn(&T) -> String,
) -> Result<(String, T), TunnelError> {
    let way = question.way.for_questions()?;
    let (status, text) = way.get(path).await?;
    let refused = |text: &str| TunnelError::Refused {
        at: way.at(),
        status,
        text: yurt_inspect::plain(text.trim()),
    };
    if status != StatusCode::OK {
        return Err(refused(&text));
    }
    let answer: T = serde_json::from_str(&text)
        .map_err(|error| refused(&format!("not understood: {error}")))?;
    let shown = match question.output {
        Output::Text => show(&answer),
        Output::Json => text,
    };
    Ok((shown, answer))
}

impl TunnelArgs {
    /// Whether the command runs for long, and tells what it does in a log.
    pub fn is_component(&self) -> bool {
        matches!(
            self.command,
            TunnelCommand::Server(_) | TunnelCommand::Agent(_)
        )
    }

    /// How many threads should work on the command, on a machine with so many CPUs; `None`: as many as usual. What one connection carries
    /// passes through tasks that wake each other, and on two threads they wake the threads: with two for two CPUs half as much
    /// goes through (measured). An agent's node has other work to do besides.
    pub fn workers(&self, cpus: usize) -> Option<usize> {
        match &self.command {
            TunnelCommand::Server(_) => Some((cpus / 2).max(1)),
            TunnelCommand::Agent(_) => Some(1),
            _ => None,
        }
    }

    /// What is logged unless `--log` says.
    pub fn level(&self) -> &'static str {
        let logging = match &self.command {
            TunnelCommand::Server(args) => &args.unused.logging,
            TunnelCommand::Agent(args) => &args.unused.logging,
            _ => return "warn",
        };
        logging.level().unwrap_or("info")
    }

    /// Where a component tells its metrics, health and status.
    pub fn meta(&self) -> Option<SocketAddr> {
        match &self.command {
            TunnelCommand::Server(args) => args.meta(),
            TunnelCommand::Agent(args) => Some(args.clone().config().ok()?.meta),
            _ => None,
        }
    }
}

/// Runs a command of the tunnel; what the process is to end with.
pub async fn run(args: TunnelArgs, shutdown: CancellationToken) -> Result<ExitCode, TunnelError> {
    match args.command {
        TunnelCommand::Server(args) => {
            args.unused.warn();
            Box::pin(server::run(*args, shutdown)).await?;
        }
        TunnelCommand::Agent(args) => {
            args.unused.warn();
            Box::pin(agent::run(args.config()?, shutdown)).await?;
        }
        TunnelCommand::Token(args) => print!("{}", standalone::token(&args)?),
        TunnelCommand::Status(question) => {
            let (shown, _) = ask(&question, "/v1/status", ServerStatus::show).await?;
            print!("{shown}");
        }
        TunnelCommand::Explain {
            target: text,
            question,
        } => {
            let Some(to) = target(&text) else {
                return Err(TunnelError::Target(text));
            };
            let to = yurt_wire::request::encode_query_value(&to.to_string());
            let path = format!("/v1/explain?target={to}");
            let (shown, answer) = ask(&question, &path, Explanation::show).await?;
            print!("{shown}");
            if answer.by == "nobody" {
                return Ok(ExitCode::FAILURE);
            }
        }
        TunnelCommand::Forward(args) => {
            let forward = Forward::listen(args).await?;
            for line in forward.lines() {
                println!("{line}");
            }
            forward.serve(shutdown).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests;
