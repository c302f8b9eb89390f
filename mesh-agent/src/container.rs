//! What is different where the agent runs in a container: it has `/proc/sys` read-only, and mounts that end with it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where kernels settings usually are.
const PROC_SYS: &str = "/proc/sys";
/// Magic number of the BPF file system (`linux/magic.h`).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

static WRITABLE: OnceLock<PathBuf> = OnceLock::new();

/// Kernel settings are read and written beneath `directory` from now on, which holds `net` of the node's `/proc/sys`. As there, they
/// are those of the network namespace of the thread that asks (`proc_sysctl.c`). Once, before anything else starts.
///
/// # Errors
/// It was said before, or a setting was already asked for.
pub fn settings_are_at(directory: PathBuf) -> Result<(), PathBuf> {
    WRITABLE.set(directory)
}

/// Where kernel settings are read and written.
pub(crate) fn proc_sys() -> &'static Path {
    WRITABLE.get_or_init(|| PathBuf::from(PROC_SYS))
}

/// Whether the kernel has IPv6: not where it was booted with `ipv6.disable=1`. It may come later, as a module, and never goes.
pub(crate) fn has_ipv6() -> bool {
    static SEEN: AtomicBool = AtomicBool::new(false);
    if !SEEN.load(Ordering::Relaxed) && shows_ipv6(proc_sys()) {
        SEEN.store(true, Ordering::Relaxed);
    }
    SEEN.load(Ordering::Relaxed)
}

/// Where no settings are seen at all nothing is known, and nothing may be left unguarded for that.
fn shows_ipv6(proc_sys: &Path) -> bool {
    let net = proc_sys.join("net");
    net.join("ipv6").is_dir() || !net.join("ipv4").is_dir()
}

/// Fails, with the remedy, where no BPF file system is at or above `pins`. An agent would mount one; in a container that ended
/// with the container, and with it every program that is pinned there: pods without policy, uplinks without guard.
///
/// # Errors
/// A sentence for people.
pub(crate) fn bpffs_is_mounted(pins: &Path) -> Result<(), String> {
    let place = pins.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or_else(|| Path::new("/"));
    let magic =
        rustix::fs::statfs(place).map(|fs| u64::try_from(fs.f_type).unwrap_or_default() & 0xffff_ffff);
    match magic {
        Ok(BPF_FS_MAGIC) => Ok(()),
        Ok(_) => Err(format!(
            "{} is on no BPF file system, and one that this container mounts would end with it; mount it on the node \
             (mount -t bpf bpf /sys/fs/bpf) and then delete this pod, which does not see what is mounted after its start, or let \
             hawser-cni prepare do so before the agent starts (bpffs.mount: true)",
            pins.display()
        )),
        Err(error) => Err(format!("{}: {error}; mount the node's /sys/fs/bpf there", place.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_has_no_ipv6_only_where_its_settings_are_seen_without_it() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str| std::fs::create_dir_all(folder.path().join("net").join(name)).unwrap();
        assert!(shows_ipv6(folder.path()), "nothing is seen");
        make("ipv4");
        assert!(!shows_ipv6(folder.path()));
        make("ipv6");
        assert!(shows_ipv6(folder.path()));
    }

    #[test]
    fn pins_on_an_ordinary_file_system_are_refused_with_the_remedy() {
        let error = bpffs_is_mounted(Path::new("/tmp/hawser/pins")).unwrap_err();
        assert!(
            error.contains("/tmp/hawser/pins is on no BPF file system") && error.contains("mount -t bpf"),
            "{error}"
        );
    }
}
