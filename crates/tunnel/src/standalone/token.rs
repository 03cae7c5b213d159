//! Join tokens, and the server's book of them: hashes, expiry, uses left.

use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};
use yurt_pki::store::{SECRET, read_text, write_whole};

const ID: usize = 6;
/// 26 of 32 letters: 130 bits.
const SECRET_LENGTH: usize = 26;
/// Without what is easily mistaken.
const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
/// Most tokens at a time.
const MOST: usize = 1000;

/// SHA-256 of a CA's public key.
pub(super) type Pin = [u8; 32];

/// A token by which an agent joins: `ID.SECRET.PIN`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: String,
    secret: String,
    pin: Pin,
}

/// What is no join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a join token is ID.SECRET.PIN, as `yurt tunnel token` prints it")]
pub struct NotAToken;

impl JoinToken {
    /// The part that is no secret.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn secret(&self) -> &str {
        &self.secret
    }

    pub(super) fn pin(&self) -> Pin {
        self.pin
    }
}

impl fmt::Debug for JoinToken {
    /// Without the secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "JoinToken({}.…)", self.id)
    }
}

/// The whole: to be handed to the agent, and to nobody else.
impl fmt::Display for JoinToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.id, self.secret, hex(&self.pin))
    }
}

impl FromStr for JoinToken {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [id, secret, pin] = parts.as_slice() else {
            return Err(NotAToken);
        };
        let plain = |part: &str, length| {
            part.len() == length && part.bytes().all(|byte| LETTERS.contains(&byte))
        };
        if !plain(id, ID) || !plain(secret, SECRET_LENGTH) {
            return Err(NotAToken);
        }
        Ok(Self {
            id: (*id).to_owned(),
            secret: (*secret).to_owned(),
            pin: unhex(pin).ok_or(NotAToken)?,
        })
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Pin> {
    let mut bytes = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let [high, low] = pair else { return None };
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?;
    }
    Some(bytes)
}

fn hash(secret: &str) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, secret.as_bytes()).as_ref())
}

fn random(length: usize) -> io::Result<String> {
    let mut bytes = vec![0; length];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("the system gave no randomness"))?;
    let letter = |byte: &u8| LETTERS.get(usize::from(byte % 32)).copied().map(char::from);
    Ok(bytes.iter().filter_map(letter).collect())
}

/// What a token is to be like.
#[derive(Clone, Debug)]
pub struct Minting {
    /// How long it can be used.
    pub lives: Duration,
    /// How many agents may join by it.
    pub uses: u32,
    /// The only node that may.
    pub node: Option<String>,
}

/// What the server knows of a token.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct TokenFacts {
    /// The part that is no secret.
    pub id: String,
    hash: String,
    /// Seconds since the epoch.
    pub expires: i64,
    /// Uses left.
    pub left: u32,
    /// The only node that may use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// Why a token does not count.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The book cannot be read or written: the server's fault.
    #[error("the server's tokens: {0}")]
    Io(#[from] io::Error),
    /// It is wrong, used up, revoked or over: which of them is nobody's business.
    #[error("the token is unknown, used up or over; `yurt tunnel token` makes another")]
    Unknown,
    /// It is another node's.
    #[error("the token is for another node")]
    OtherNode,
    /// Too many.
    #[error("there are {MOST} tokens already; revoke some")]
    Full,
    /// No use in it.
    #[error("a token needs at least one use and one hour")]
    Useless,
}

/// The book, in a file that server and command line share.
#[derive(Clone, Debug)]
pub struct TokenBook {
    directory: PathBuf,
}

#[derive(Default, Deserialize, Serialize)]
struct Book {
    tokens: Vec<TokenFacts>,
}

impl TokenBook {
    /// In the server's directory.
    pub fn at(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// Changes the book while nobody else does; it is on the disk when this returns. Blocks for as long as another writes.
    fn change<T>(
        &self,
        now: i64,
        change: impl FnOnce(&mut Book) -> Result<T, TokenError>,
    ) -> Result<T, TokenError> {
        fs::create_dir_all(&self.directory)?;
        let lock = File::options()
            .create(true)
            .append(true)
            .open(self.directory.join("tokens.lock"))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(io::Error::from)?;
        let path = self.directory.join("tokens.json");
        let mut book: Book = match read_text(&path) {
            Ok(text) => serde_json::from_str(&text).map_err(io::Error::from)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Book::default(),
            Err(error) => return Err(error.into()),
        };
        book.tokens
            .retain(|token| token.expires > now && token.left > 0);
        let changed = change(&mut book)?;
        let text = serde_json::to_string_pretty(&book).map_err(io::Error::from)?;
        write_whole(&path, text.as_bytes(), SECRET)?;
        Ok(changed)
    }

    /// A new token of the CA with this public key.
    pub fn mint(
        &self,
        minting: &Minting,
        pin: [u8; 32],
        now: i64,
    ) -> Result<JoinToken, TokenError> {
        let lives = i64::try_from(minting.lives.as_secs()).unwrap_or(i64::MAX);
        if minting.uses == 0 || lives == 0 {
            return Err(TokenError::Useless);
        }
        let token = JoinToken {
            id: random(ID)?,
            secret: random(SECRET_LENGTH)?,
            pin,
        };
        self.change(now, |book| {
            if book.tokens.len() >= MOST {
                return Err(TokenError::Full);
            }
            book.tokens.push(TokenFacts {
                id: token.id.clone(),
                hash: hash(&token.secret),
                expires: now.saturating_add(lives),
                left: minting.uses,
                node: minting.node.clone(),
            });
            Ok(())
        })?;
        Ok(token)
    }

    /// Takes one use of a token for a node. Whether the token is for this node alone.
    pub fn redeem(&self, id: &str, secret: &str, node: &str, now: i64) -> Result<bool, TokenError> {
        let hash = hash(secret);
        self.change(now, |book| {
            let mut tokens = book.tokens.iter_mut();
            let token = tokens.find(|token| token.id == id && token.hash == hash);
            let token = token.ok_or(TokenError::Unknown)?;
            if token.node.as_deref().is_some_and(|own| own != node) {
                return Err(TokenError::OtherNode);
            }
            token.left -= 1;
            Ok(token.node.is_some())
        })
    }

    /// The tokens that can be used.
    pub fn list(&self, now: i64) -> Result<Vec<TokenFacts>, TokenError> {
        self.change(now, |book| Ok(book.tokens.clone()))
    }

    /// Makes a token useless.
    pub fn revoke(&self, id: &str, now: i64) -> Result<(), TokenError> {
        self.change(now, |book| {
            let before = book.tokens.len();
            book.tokens.retain(|token| token.id != id);
            match book.tokens.len() == before {
                true => Err(TokenError::Unknown),
                false => Ok(()),
            }
        })
    }
}
