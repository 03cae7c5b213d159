//! The processes that hold a socket: whose `/proc/PID/fd` names its inode.

use std::{os::unix::ffi::OsStrExt, path::Path};

/// Descriptors looked at in one search.
const MOST_DESCRIPTORS: usize = 1 << 20;

/// Who holds a socket, as far as the hub can see. Searches all processes, those of `recent` first: when one of them has the socket,
/// nobody else is looked at.
pub(super) fn of(proc: &Path, inode: u64, recent: &[u32]) -> Vec<u32> {
    let wanted = format!("socket:[{inode}]");
    let mut left = MOST_DESCRIPTORS;
    let mut holds = |pid: u32| holds(proc, pid, wanted.as_bytes(), &mut left);
    if let Some(pid) = recent.iter().copied().find(|pid| holds(*pid)) {
        return vec![pid];
    }
    let Ok(entries) = std::fs::read_dir(proc) else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| holds(*pid))
        .collect();
    // Who was not looked at might have it as well.
    if left == 0 { Vec::new() } else { pids }
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
    fn everybody_who_holds_it_is_found_unless_a_known_one_does() {
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
        let holders = |inode, recent: &[u32]| {
            let mut pids = of(proc.path(), inode, recent);
            pids.sort_unstable();
            pids
        };
        assert_eq!(holders(42, &[]), [7, 9]);
        assert_eq!(holders(42, &[10, 9]), [9]);
        assert_eq!(holders(42, &[8, 1234]), [7, 9]);
        assert_eq!(holders(43, &[7]), [0u32; 0]);
    }
}
