//! A tunnel without Kubernetes: the server has a small certificate authority of its own; agents join by a token and get their
//! certificates from it, over the port that they connect to anyway (ALPN [`ALPN_JOIN`]).
//!
//! The token names the CA by the hash of its public key, so that the first connection is to the right server or to none. The server
//! keeps hashes of tokens, not tokens. A certificate is renewed by showing the one before.

mod authority;
mod enrol;
mod join;
mod token;

pub use authority::{Authority, AuthorityError};
pub use enrol::{Enrolment, enrol};
pub use join::JoinError;
pub use token::{JoinToken, Minting, NotAToken, TokenBook, TokenError, TokenFacts};

use clap::{Args, Subcommand};
use std::{
    fmt::Write,
    path::{Path, PathBuf},
    time::Duration,
};

/// ALPN of joining.
pub const ALPN_JOIN: &[u8] = b"yurt-join/1";
/// Where a standalone server keeps its authority and tokens, unless told otherwise.
pub const DATA: &str = "/var/lib/yurt-tunnel";

/// `yurt tunnel token`: tokens by which agents join a standalone server.
#[derive(Args, Clone, Debug)]
pub struct TokenArgs {
    /// The server's directory.
    #[arg(long, default_value = DATA, value_name = "DIR", global = true)]
    data_dir: PathBuf,
    /// How many hours it can be used.
    #[arg(long, default_value_t = 24, value_name = "HOURS")]
    hours: u32,
    /// How many agents may join by it.
    #[arg(long, default_value_t = 1, value_name = "N")]
    uses: u32,
    /// Only this node may join by it; it may do so again with another key.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    #[command(subcommand)]
    command: Option<TokenCommand>,
}

#[derive(Clone, Debug, Subcommand)]
enum TokenCommand {
    /// Show tokens, without their secrets.
    List,
    /// Make a token useless.
    Revoke {
        /// The part before the first point.
        id: String,
    },
}

/// Does what the flags say; what is to be printed.
pub fn token(args: &TokenArgs) -> Result<String, AuthorityError> {
    let authority = Authority::open(&args.data_dir)?;
    let book = TokenBook::at(&args.data_dir);
    let now = yurt_pki::renewal::now();
    match &args.command {
        None => {
            let minted = book.mint(
                &Minting {
                    lives: Duration::from_secs(u64::from(args.hours) * 3600),
                    uses: args.uses,
                    node: args.node.clone(),
                },
                authority.pin(),
                now,
            )?;
            Ok(format!("{minted}\n"))
        }
        Some(TokenCommand::Revoke { id }) => {
            book.revoke(id, now)?;
            Ok(String::new())
        }
        Some(TokenCommand::List) => {
            let mut table = String::from("ID      USES LEFT  EXPIRES               NODE\n");
            for token in book.list(now)? {
                let expires = yurt_pki::renewal::moment(token.expires);
                let node = token.node.as_deref().unwrap_or("any");
                // Writing to a String does not fail.
                let _ = writeln!(
                    table,
                    "{:<6}  {:>9}  {expires}  {node}",
                    token.id, token.left
                );
            }
            Ok(table)
        }
    }
}

fn ca_file(directory: &Path) -> PathBuf {
    directory.join("ca.crt")
}

#[cfg(test)]
mod tests;
