//! Tar archives (POSIX ustar), as far as `kubectl cp` needs them, member by member as they come.

use bytes::Bytes;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Bytes of a block.
const BLOCK: usize = 512;
const FILE: u8 = b'0';
const DIRECTORY: u8 = b'5';
/// Bytes of a piece of a member.
const PIECE: usize = 64 << 10;
/// The longest record of a name.
const LONGEST_NAME: u64 = 64 << 10;

/// What an archive ends with.
pub(crate) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// A file or a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// With slashes between directories.
    pub(crate) name: String,
    /// Bytes of a file; a directory has none.
    pub(crate) size: Option<u64>,
}

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// It is none.
    #[error("{0}")]
    Malformed(&'static str),
    /// What it comes from failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

const CUT: ArchiveError = ArchiveError::Malformed("Unexpected EOF in archive");

impl Member {
    /// What comes before its content; the name loses its leading slash. `None` for a name or a size that the format has no room for.
    pub(crate) fn head(&self) -> Option<[u8; BLOCK]> {
        let (prefix, name) = split(self.name.trim_start_matches('/'))?;
        let size = format!("{:011o}\0", self.size.unwrap_or(0));
        if size.len() > 12 {
            return None;
        }
        let (kind, mode) = match self.size {
            Some(_) => (FILE, "0000644\0"),
            None => (DIRECTORY, "0000755\0"),
        };
        let mut head = [0u8; BLOCK];
        put(&mut head, 0, name.as_bytes());
        put(&mut head, 100, mode.as_bytes());
        put(&mut head, 108, b"0000000\0");
        put(&mut head, 116, b"0000000\0");
        put(&mut head, 124, size.as_bytes());
        put(&mut head, 136, b"00000000000\0");
        put(&mut head, 148, b"        ");
        head[156] = kind;
        put(&mut head, 257, b"ustar\x0000");
        put(&mut head, 345, prefix.as_bytes());
        let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
        put(&mut head, 148, format!("{sum:06o}\0 ").as_bytes());
        Some(head)
    }

    /// What comes after its content.
    pub(crate) fn padding(&self) -> &'static [u8] {
        END.get(..padding(self.size.unwrap_or(0))).unwrap_or(&END)
    }
}

/// Bytes between a content of this length and the next block.
fn padding(size: u64) -> usize {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    (BLOCK - over) % BLOCK
}

fn put(head: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    head[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Prefix and name, each as long as it may be.
fn split(name: &str) -> Option<(&str, &str)> {
    if name.len() <= 100 {
        return Some(("", name));
    }
    let slashes = name.match_indices('/').map(|(at, _)| at);
    let mut parts = slashes.map(|at| (&name[..at], &name[at + 1..]));
    parts.find(|(prefix, name)| prefix.len() <= 155 && name.len() <= 100)
}

/// Reads an archive: files and directories; other members (links, devices) are left out.
pub(crate) struct Reader<'a, R> {
    input: &'a mut R,
    /// Of the member's content, and of what follows it.
    left: u64,
    padding: usize,
}

impl<'a, R: AsyncRead + Unpin> Reader<'a, R> {
    pub(crate) fn new(input: &'a mut R) -> Self {
        Self {
            input,
            left: 0,
            padding: 0,
        }
    }

    /// The next member, what was not read of the one before skipped.
    pub(crate) async fn next(&mut self) -> Result<Option<Member>, ArchiveError> {
        let mut long_name = None;
        loop {
            while !self.piece().await?.is_empty() {}
            let Some(head) = self.block().await? else {
                return Ok(None);
            };
            if head.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let size = octal(&head[124..136]);
            let size = size.ok_or(ArchiveError::Malformed("a size that is no number"))?;
            (self.left, self.padding) = (size, padding(size));
            match head[156] {
                b'x' => long_name = pax_path(&self.record().await?),
                b'L' => long_name = Some(text(&self.record().await?)),
                kind @ (FILE | 0 | DIRECTORY) => {
                    let name = long_name.unwrap_or_else(|| name_of(&head));
                    let size = (kind != DIRECTORY).then_some(size);
                    return Ok(Some(Member { name, size }));
                }
                _ => long_name = None,
            }
        }
    }

    /// Some of the member's content; nothing at its end.
    pub(crate) async fn piece(&mut self) -> Result<Bytes, ArchiveError> {
        let most = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
        let mut piece = vec![0; most];
        if most > 0 {
            let count = self.input.read(&mut piece).await?;
            if count == 0 {
                return Err(CUT);
            }
            piece.truncate(count);
            self.left -= count as u64;
        }
        if self.left == 0 && self.padding > 0 {
            let mut padding = [0; BLOCK];
            let padding = &mut padding[..std::mem::take(&mut self.padding)];
            // Some archives end without.
            if let Err(error) = self.input.read_exact(padding).await
                && error.kind() != io::ErrorKind::UnexpectedEof
            {
                return Err(error.into());
            }
        }
        Ok(piece.into())
    }

    /// A content that is a name.
    async fn record(&mut self) -> Result<Vec<u8>, ArchiveError> {
        if self.left > LONGEST_NAME {
            return Err(ArchiveError::Malformed("a name that is too long"));
        }
        let mut record = Vec::new();
        loop {
            match self.piece().await? {
                piece if piece.is_empty() => return Ok(record),
                piece => record.extend_from_slice(&piece),
            }
        }
    }

    /// A block; `None` where the input ends before it.
    async fn block(&mut self) -> Result<Option<[u8; BLOCK]>, ArchiveError> {
        let mut block = [0; BLOCK];
        let mut read = 0;
        while read < BLOCK {
            match self.input.read(&mut block[read..]).await? {
                0 if read == 0 => return Ok(None),
                0 => return Err(CUT),
                count => read += count,
            }
        }
        Ok(Some(block))
    }
}

fn name_of(head: &[u8; BLOCK]) -> String {
    let name = text(&head[..100]);
    match (&head[257..262] == b"ustar", text(&head[345..500])) {
        (true, prefix) if !prefix.is_empty() => format!("{prefix}/{name}"),
        _ => name,
    }
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&field[..end.unwrap_or(field.len())]).into_owned()
}

fn octal(field: &[u8]) -> Option<u64> {
    u64::from_str_radix(text(field).trim(), 8).ok()
}

/// `path` of the records `LENGTH KEY=VALUE\n`.
fn pax_path(records: &[u8]) -> Option<String> {
    let mut rest = records;
    loop {
        let space = rest.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&rest[..space]).ok()?.parse().ok()?;
        let record = rest.get(space + 1..length)?.strip_suffix(b"\n")?;
        if let Some(path) = record.strip_prefix(b"path=") {
            return Some(String::from_utf8_lossy(path).into_owned());
        }
        rest = rest.get(length..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    type Packed = Vec<(String, Option<Vec<u8>>)>;

    fn pack(members: &Packed) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, content) in members {
            let member = Member {
                name: name.clone(),
                size: content.as_ref().map(|content| content.len() as u64),
            };
            out.extend(member.head().unwrap());
            out.extend(content.iter().flatten());
            out.extend(member.padding());
        }
        out.extend(END);
        out
    }

    fn unpack(bytes: &[u8]) -> Result<Packed, ArchiveError> {
        let reading = async {
            let mut input = bytes;
            let mut reader = Reader::new(&mut input);
            let mut members = Vec::new();
            while let Some(member) = reader.next().await? {
                let content = match member.size {
                    Some(_) => Some(reader.record().await?),
                    None => None,
                };
                members.push((member.name, content));
            }
            Ok(members)
        };
        reading.now_or_never().unwrap()
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(
            members in prop::collection::vec(
                ("[a-z]{1,60}(/[a-z]{1,60}){0,2}", prop::option::of(prop::collection::vec(any::<u8>(), 0..1100))), 0..5)
        ) {
            prop_assert_eq!(unpack(&pack(&members)).unwrap(), members);
        }

        #[test]
        fn rubbish_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _: Result<_, ArchiveError> = unpack(&bytes);
        }

        #[test]
        fn what_is_cut_is_refused(length in 1..1024usize) {
            let packed = pack(&vec![("a".into(), Some(vec![7; 500]))]);
            let whole = length >= BLOCK + 500;
            prop_assert_eq!(unpack(&packed[..length]).is_ok(), whole);
        }
    }

    #[test]
    fn long_names_come_in_records() {
        assert_eq!(
            pax_path(b"11 mtime=1\n13 path=a/b/c\n").as_deref(),
            None,
            "a record whose length is wrong"
        );
        assert_eq!(
            pax_path(b"11 mtime=1\n14 path=a/b/c\n").as_deref(),
            Some("a/b/c")
        );
    }

    #[test]
    fn what_does_not_fit_is_not_packed() {
        let of = |size| Member {
            name: "a".into(),
            size: Some(size),
        };
        assert!(of((8 << 30) - 1).head().is_some());
        assert!(of(8 << 30).head().is_none());
    }
}
