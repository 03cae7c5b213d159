//! The processes that hold a socket: whose `/proc/PID/fd` names its inode.

use std::{os::unix::ffi::OsStrExt, path::Path};

/// Descriptors looked at in one search.
const MOST_DESCRIPTORS: usize = 1 << 20;

/// Which of some processes holds a socket.
pub(super) fn known(proc: &Path, inode: u64, pids: &[u32]) -> Option<u32> {
    let (wanted, mut left) = (name(inode), MOST_DESCRIPTORS);
    pids.iter()
        .copied()
        .find(|pid| holds(proc, *pid, &wanted, &mut left))
}

/// Everybody who holds a socket, as far as the hub can see; nobody, when there are too many to look at.
pub(super) fn all(proc: &Path, inode: u64) -> Vec<u32> {
    let (wanted, mut left) = (name(inode), MOST_DESCRIPTORS);
    let Ok(entries) = std::fs::read_dir(proc) else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| holds(proc, *pid, &wanted, &mut left))
        .collect();
    // Who was not looked at might have it as well.
    if left == 0 { Vec::new() } else { pids }
}

fn name(inode: u64) -> Vec<u8> {
    format!("socket:[{inode}]").into_bytes()
}

fn holds(proc: &Path, pid: u32, wanted: &[u8], left: &mut usize) -> bool {
    let Ok(descriptors) = std::fs::read_dir(proc.join(pid.to_string()).join("fd")) else {
        return false;
    };
    for descriptor in descriptors.flatten() {
        let Some(rest) = left.checked_sub(1) else {
            return false;
        };
        *left = rest;
        let target = std::fs::read_link(descriptor.path());
        if target.is_ok_and(|target| target.as_os_str().as_bytes() == wanted) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn who_holds_a_socket_is_found() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, target) in [
            (7, "socket:[42]"),
            (8, "socket:[421]"),
            (9, "socket:[42]"),
            (10, "/dev/null"),
        ] {
            let fd = proc.path().join(format!("{pid}/fd"));
            std::fs::create_dir_all(&fd).unwrap();
            symlink("pipe:[42]", fd.join("0")).unwrap();
            symlink(target, fd.join("3")).unwrap();
        }
        std::fs::create_dir_all(proc.path().join("self/fd")).unwrap();
        let everybody = |inode| {
            let mut pids = all(proc.path(), inode);
            pids.sort_unstable();
            pids
        };
        assert_eq!(everybody(42), [7, 9]);
        assert_eq!(everybody(43), [0u32; 0]);
        let known = |inode, pids: &[u32]| known(proc.path(), inode, pids);
        assert_eq!(known(42, &[10, 9]), Some(9));
        assert_eq!(known(42, &[8, 1234]), None);
        assert_eq!(known(43, &[7]), None);
    }
}
