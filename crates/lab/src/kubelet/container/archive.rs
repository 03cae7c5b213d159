//! Tar archives (POSIX ustar), as far as `kubectl cp` needs them.

/// Bytes of a block.
const BLOCK: usize = 512;
const FILE: u8 = b'0';
const DIRECTORY: u8 = b'5';

/// A member: a directory has no content.
pub(crate) type Member = (String, Option<Vec<u8>>);

/// Why an archive cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(&'static str);

/// Packs members; their names lose the leading slash. Names too long for the format are left out.
pub(crate) fn pack(members: &[Member]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, content) in members {
        let name = name.trim_start_matches('/');
        let Some((prefix, name)) = split(name) else {
            continue;
        };
        let bytes = content.as_deref().unwrap_or_default();
        let (kind, mode) = match content {
            Some(_) => (FILE, "0000644\0"),
            None => (DIRECTORY, "0000755\0"),
        };
        let mut head = [0u8; BLOCK];
        put(&mut head, 0, name.as_bytes());
        put(&mut head, 100, mode.as_bytes());
        put(&mut head, 108, b"0000000\0");
        put(&mut head, 116, b"0000000\0");
        put(&mut head, 124, format!("{:011o}\0", bytes.len()).as_bytes());
        put(&mut head, 136, b"00000000000\0");
        put(&mut head, 148, b"        ");
        head[156] = kind;
        put(&mut head, 257, b"ustar\x0000");
        put(&mut head, 345, prefix.as_bytes());
        let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
        put(&mut head, 148, format!("{sum:06o}\0 ").as_bytes());
        out.extend(head);
        out.extend(bytes);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    out
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

/// Reads an archive: files and directories, other members (links, devices) are left out.
pub(crate) fn unpack(archive: &[u8]) -> Result<Vec<Member>, Malformed> {
    let mut members = Vec::new();
    let mut rest = archive;
    let mut long_name = None;
    while let Some((head, after)) = rest.split_first_chunk::<BLOCK>() {
        if head.iter().all(|byte| *byte == 0) {
            return Ok(members);
        }
        let size = octal(&head[124..136]).ok_or(Malformed("a size that is no number"))?;
        let content = after
            .get(..size)
            .ok_or(Malformed("Unexpected EOF in archive"))?;
        rest = after
            .get(size.next_multiple_of(BLOCK)..)
            .unwrap_or_default();
        match head[156] {
            b'x' => long_name = pax_path(content),
            b'L' => long_name = Some(text(content)),
            kind => {
                let name = long_name.take().unwrap_or_else(|| {
                    let name = text(&head[..100]);
                    match (&head[257..262] == b"ustar", text(&head[345..500])) {
                        (true, prefix) if !prefix.is_empty() => format!("{prefix}/{name}"),
                        _ => name,
                    }
                });
                match kind {
                    FILE | 0 => members.push((name, Some(content.to_vec()))),
                    DIRECTORY => members.push((name, None)),
                    _ => {}
                }
            }
        }
    }
    match rest.is_empty() {
        true => Ok(members),
        false => Err(Malformed("Unexpected EOF in archive")),
    }
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&field[..end.unwrap_or(field.len())]).into_owned()
}

fn octal(field: &[u8]) -> Option<usize> {
    usize::from_str_radix(text(field).trim(), 8).ok()
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
    use proptest::prelude::*;

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
            let _: Result<_, Malformed> = unpack(&bytes);
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
}
