//! What a process uses, from `/proc` (proc(5)).

use std::{fs, path::PathBuf};

/// Kernel clock ticks per second in `/proc/*/stat`: fixed for user space on every Linux architecture we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Memory and CPU of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessUsage {
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Virtual memory in bytes.
    pub virtual_bytes: u64,
    /// User and system time since its start.
    pub cpu_seconds: f64,
    /// Open file descriptors; 0 when we may not look.
    pub open_fds: u64,
    /// Seconds since the epoch when it started.
    pub start_time: f64,
}

/// Reads this process' resident memory in bytes and CPU seconds from /proc (or another's by pid). `None`: there is no such process,
/// or no `/proc`.
pub fn process_usage(pid: Option<u32>) -> Option<ProcessUsage> {
    let directory = PathBuf::from("/proc").join(pid.map_or("self".to_owned(), |p| p.to_string()));
    let stat = fs::read_to_string(directory.join("stat")).ok()?;
    let status = fs::read_to_string(directory.join("status")).ok()?;
    let boot = boot_time(&fs::read_to_string("/proc/stat").ok()?).unwrap_or_default();
    let mut usage = parse(&stat, &status, boot)?;
    usage.open_fds = fs::read_dir(directory.join("fd")).map_or(0, |fds| fds.count() as u64);
    Some(usage)
}

fn boot_time(stat: &str) -> Option<f64> {
    stat.lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}

fn parse(stat: &str, status: &str, boot: f64) -> Option<ProcessUsage> {
    // The second field is the command in parentheses and may itself hold spaces and parentheses.
    let after_command = &stat[stat.rfind(')')? + 1..];
    let fields: Vec<&str> = after_command.split_whitespace().collect();
    // Counted from field 3 (state): utime is field 14, stime 15, starttime 22.
    let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
    let kibibytes = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        let number: u64 = value.split_whitespace().next()?.parse().ok()?;
        Some(number * 1024)
    };
    Some(ProcessUsage {
        // A kernel thread or a zombie has no memory lines.
        resident_bytes: kibibytes("VmRSS:").unwrap_or_default(),
        virtual_bytes: kibibytes("VmSize:").unwrap_or_default(),
        cpu_seconds: (ticks(14)? + ticks(15)?) / TICKS_PER_SECOND,
        open_fds: 0,
        start_time: boot + ticks(22)? / TICKS_PER_SECOND,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "4242 (a) b (c) S 1 4242 4242 0 -1 4194560 1000 0 0 0 250 50 0 0 20 0 8 0 123400 23456789 5000 18446744073709551615";

    #[test]
    fn reads_a_stat_line_with_a_hostile_command_name() {
        let usage = parse(
            STAT,
            "Name:\ta\nVmSize:\t  200 kB\nVmRSS:\t     100 kB\n",
            1_000.0,
        );
        let usage = usage.expect("the line is whole");
        assert_eq!(usage.cpu_seconds, 3.0);
        assert_eq!(usage.resident_bytes, 102_400);
        assert_eq!(usage.virtual_bytes, 204_800);
        assert_eq!(usage.start_time, 2_234.0);
    }

    #[test]
    fn a_cut_line_is_nothing() {
        assert!(parse("4242 (a) S 1", "", 0.0).is_none());
        assert!(parse("", "", 0.0).is_none());
        assert_eq!(
            boot_time("cpu 1 2\nbtime 1700000000\n"),
            Some(1_700_000_000.0)
        );
    }

    #[test]
    fn this_process_is_there() {
        let usage = process_usage(None).expect("/proc");
        assert!(usage.resident_bytes > 0 && usage.open_fds > 2 && usage.start_time > 1.6e9);
        assert!(process_usage(Some(std::process::id())).is_some());
        assert!(process_usage(Some(u32::MAX)).is_none());
    }
}
