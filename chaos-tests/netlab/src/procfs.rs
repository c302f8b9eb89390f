//! Facts about processes, read from /proc.

use crate::error::{Context, LabError};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long processes may take to vanish after SIGKILL (a write to a slow disk may have to end first).
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// A process, told apart from a later one with the same number by its start time in clock ticks since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    pub(crate) start: u64,
}

impl ProcessId {
    /// The process with this number now, or `None` when there is none.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, start: start_time(&stat)? })
    }

    pub(crate) fn is_alive(self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .is_ok_and(|stat| start_time(&stat) == Some(self.start) && state(&stat) != Some('Z'))
    }
}

/// Field 22 of /proc/PID/stat (proc_pid_stat(5)); the command name in field 2 may hold spaces and brackets.
pub(crate) fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// All process numbers except our own.
pub(crate) fn others() -> Result<Vec<i32>, LabError> {
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").context("list", "/proc")?;
    Ok(entries.filter_map(|e| e.ok()?.file_name().to_str().filter(|n| *n != own)?.parse().ok()).collect())
}

/// Inode of the network namespace behind `path`.
pub(crate) fn netns_inode(path: impl AsRef<Path>) -> Result<u64, LabError> {
    let path = path.as_ref();
    Ok(fs::metadata(path).context("inspect network namespace", path.display())?.ino())
}

/// Whether the process lives in the network namespace with this inode.
pub(crate) fn lives_in(pid: i32, netns: u64) -> bool {
    fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|m| m.ino() == netns)
}

/// Whether the process was started with `NAME=value` in its environment.
pub(crate) fn has_environment(pid: i32, entry: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|e| e.split(|b| *b == 0).any(|v| v == std::ffi::OsStr::new(entry).as_bytes()))
}

/// Sends SIGKILL to every process but our own for which `doomed` holds, until none is left.
///
/// The predicate is asked again after the process is held by a pidfd, so that a number that was
/// given to another process in between is not killed. Returns how many were signalled.
pub(crate) fn kill_all(object: &str, doomed: impl Fn(i32) -> bool) -> Result<usize, LabError> {
    let start = Instant::now();
    let mut killed = std::collections::BTreeSet::new();
    loop {
        let mut left = Vec::new();
        for pid in others()?.into_iter().filter(|p| doomed(*p)) {
            let Some(id) = ProcessId::of(pid).filter(|id| id.is_alive()) else { continue };
            let Some(target) = Pid::from_raw(pid) else { continue };
            let Ok(pidfd) = pidfd_open(target, PidfdFlags::empty()) else { continue };
            if !doomed(pid) || ProcessId::of(pid) != Some(id) {
                continue;
            }
            left.push(pid);
            // ESRCH only: it ended by itself.
            if pidfd_send_signal(&pidfd, Signal::KILL).is_ok() {
                killed.insert(id);
            }
        }
        if left.is_empty() {
            return Ok(killed.len());
        }
        if start.elapsed() > KILL_DEADLINE {
            return Err(LabError::Unkillable { object: object.to_owned(), pids: left, after: KILL_DEADLINE });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::{ProcessId, start_time};

    #[test]
    fn a_command_name_with_brackets_and_spaces_does_not_shift_the_start_time() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 99 100";
        assert_eq!(start_time(&format!("77 (a) b (c) {tail}")), Some(4242));
        assert_eq!(start_time("77 (short) S 1 2"), None);
        assert_eq!(start_time("nonsense"), None);
    }

    #[test]
    fn our_own_process_is_alive_and_one_with_another_start_time_is_not() {
        let me = ProcessId::of(std::process::id().cast_signed()).unwrap();
        assert!(me.is_alive());
        assert!(!ProcessId { start: me.start + 1, ..me }.is_alive());
    }
}
