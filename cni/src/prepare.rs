//! What a node needs before the agent's container starts: a BPF file system that outlives containers.
//!
//! Run in a container, before the agent, with the node's `/proc` mounted. A mount made in a container's own mount namespace ends
//! with it, and mount propagation needs a node whose mounts are shared, which not every node's are. So the runtime's
//! own namespace is entered: that of this process's parent as the node sees it, the shim that started the container. It is the one
//! in which the runtime finds what the agent's container mounts.
//!
//! Wants CAP_SYS_ADMIN and CAP_SYS_CHROOT to enter, CAP_SYS_PTRACE to open the parent's namespace.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open, statfs};
use rustix::mount::{MountFlags, mount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Magic number of the BPF file system (`linux/magic.h`).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Where things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepare {
    /// The node's `/proc`, as this process sees it.
    pub proc: PathBuf,
    /// Where the BPF file system shall be, as the node sees it.
    pub bpffs: PathBuf,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// It was there.
    AlreadyThere,
    /// It was mounted.
    Mounted,
}

/// Why it did not work.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The node's `/proc` does not say who started us.
    #[error("{}: {source}; mount the node's /proc at {}, or name the place by --proc", .path.display(), .proc.display())]
    Proc {
        /// What was read.
        path: PathBuf,
        /// Where `/proc` should be.
        proc: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The parent's mount namespace was refused.
    #[error(
        "mount namespace {} cannot be {step}: {source}; this needs the capabilities SYS_ADMIN, SYS_CHROOT and SYS_PTRACE", .path.display()
    )]
    Namespace {
        /// Its file.
        path: PathBuf,
        /// What we did.
        step: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// There is no place for it, or the kernel has no such file system.
    #[error("{} of the node cannot be {step}: {source}; the kernel needs CONFIG_BPF_SYSCALL and the node a mounted /sys", .path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// What we did.
        step: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// The parent in a line of `/proc/PID/stat` (proc(5)): the second field after the program's name, which may hold anything.
fn parent(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok().filter(|pid| *pid != 0)
}

/// Mounts it where there is none. This process is in the runtime's mount namespace afterwards; it must have one thread only.
///
/// # Errors
/// [`PrepareError`].
pub fn prepare(options: &Prepare) -> Result<Prepared, PrepareError> {
    let Prepare { proc, bpffs } = options;
    let unread = |path: &Path| {
        let (path, proc) = (path.to_owned(), proc.clone());
        move |source| PrepareError::Proc { path, proc, source }
    };
    // Our number there, not the one in our own PID namespace.
    let own = proc.join("self");
    let own = proc.join(fs::read_link(&own).map_err(unread(&own))?).join("stat");
    let stat = fs::read_to_string(&own).map_err(unread(&own))?;
    let parent = parent(&stat).ok_or_else(|| unread(&own)(io::Error::other("it names no parent")))?;
    let namespace = proc.join(parent.to_string()).join("ns/mnt");
    let refused = |step| {
        let path = namespace.clone();
        move |source: rustix::io::Errno| PrepareError::Namespace { path, step, source: source.into() }
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let target = open(&namespace, flags, Mode::empty()).map_err(refused("opened"))?;
    move_into_link_name_space(target.as_fd(), Some(LinkNameSpaceType::Mount)).map_err(refused("entered"))?;
    put(bpffs)
}

fn put(bpffs: &Path) -> Result<Prepared, PrepareError> {
    let failed = |step| {
        let path = bpffs.to_owned();
        move |source: rustix::io::Errno| PrepareError::Mount { path, step, source: source.into() }
    };
    let magic = statfs(bpffs).map_err(failed("looked at"))?.f_type;
    if u64::try_from(magic).is_ok_and(|magic| magic & 0xffff_ffff == BPF_FS_MAGIC) {
        return Ok(Prepared::AlreadyThere);
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", bpffs, "bpf", flags, Some(c"mode=0700")).map_err(failed("mounted"))?;
    Ok(Prepared::Mounted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent("42 (hawser-cni) S 7 42 42 0"), Some(7));
        assert_eq!(parent("42 (a) S 1) R 9) S 8 42"), Some(8));
        assert_eq!(parent("42 (outside) S 0 42"), None);
        assert_eq!(parent("nonsense"), None);
    }

    #[test]
    fn a_place_that_is_no_proc_is_named_with_the_remedy() {
        let options = Prepare { proc: "/nowhere".into(), bpffs: "/sys/fs/bpf".into() };
        let error = prepare(&options).unwrap_err().to_string();
        assert!(error.contains("/nowhere/self: ") && error.contains("mount the node's /proc"), "{error}");
    }
}
