//! Kernel settings below `/proc/sys`.

use std::fmt;
use std::path::{Path, PathBuf};

/// A setting and the value that it shall have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sysctl {
    /// Path below `/proc/sys`, such as `net/ipv4/ip_forward`.
    pub key: String,
    /// The value.
    pub value: &'static str,
}

impl Sysctl {
    pub(crate) fn new(key: impl Into<String>, value: &'static str) -> Self {
        Self { key: key.into(), value }
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/proc/sys/{} = {}", self.key, self.value)
    }
}

/// A setting that could not be made.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot write {} to {} (now {}): {source}; mount the host's /proc/sys/net writable and name its place with --proc-sys, or set it on the host in \
     /etc/sysctl.d", sysctl.value, path.display(), found.as_deref().unwrap_or("absent")
)]
pub struct SysctlError {
    /// What was to be set.
    pub sysctl: Sysctl,
    /// The file.
    pub path: PathBuf,
    /// The value found, `None` when there is no such file.
    pub found: Option<String>,
    /// Why it failed.
    pub source: std::io::Error,
}

/// The value of a setting, without its newline; `None` when the kernel has no such setting.
pub(crate) fn read(proc_sys: &Path, key: &str) -> Option<String> {
    std::fs::read_to_string(proc_sys.join(key)).ok().map(|text| text.trim().to_owned())
}

/// Makes one setting below `proc_sys`, for the network namespace of the calling thread; a value that is already right is
/// not written (so a read-only mount with right values is no error).
pub(crate) fn write(proc_sys: &Path, sysctl: &Sysctl) -> Result<(), SysctlError> {
    let found = read(proc_sys, &sysctl.key);
    if found.as_deref() == Some(sysctl.value) {
        return Ok(());
    }
    let path = proc_sys.join(&sysctl.key);
    // Never creates: below a real /proc/sys nothing can be made, and elsewhere nothing shall be.
    let written = std::fs::OpenOptions::new().write(true).open(&path);
    let written = written.and_then(|mut file| std::io::Write::write_all(&mut file, sysctl.value.as_bytes()));
    written.map_err(|source| SysctlError { sysctl: sysctl.clone(), path, found, source })
}

/// What a slot's device needs: packets of remote pods arrive by either slot, and the way back is by the other while a
/// pair switches, so the reverse path is checked loosely. The kernel takes the greater of `all` and the device's value,
/// and 2 is the greatest. Where the kernel has no IPv6, its settings are left out (`ipv6` false).
#[must_use]
pub fn slot_sysctls(slot: &str, ipv6: bool) -> Vec<Sysctl> {
    let mut all = vec![
        Sysctl::new(format!("net/ipv4/conf/{slot}/rp_filter"), "2"),
        Sysctl::new(format!("net/ipv4/conf/{slot}/forwarding"), "1"),
    ];
    if ipv6 {
        all.push(Sysctl::new(format!("net/ipv6/conf/{slot}/accept_ra"), "0"));
        all.push(Sysctl::new(format!("net/ipv6/conf/{slot}/forwarding"), "1"));
    }
    all
}

/// What the host side of a pod's veth needs, to be set before the link is up: a pod may not forge IPv4 sources (IPv6 has
/// no such setting; the guard on the veth sees to it), advertise routes, or have addresses answered for it.
///
/// `ipv4` and `ipv6`: the families of the pod. `kernel_ipv6`: whether the kernel has IPv6 at all
/// ([`super::HostFacts::has_ipv6`]); where it has and the pod has not, IPv6 is switched off on the link.
#[must_use]
pub fn pod_veth_sysctls(veth: &str, ipv4: bool, ipv6: bool, kernel_ipv6: bool) -> Vec<Sysctl> {
    let v4 = |name: &str, value| Sysctl::new(format!("net/ipv4/conf/{veth}/{name}"), value);
    let v6 = |name: &str, value| Sysctl::new(format!("net/ipv6/conf/{veth}/{name}"), value);
    let mut all = vec![
        v4("rp_filter", "1"),
        v4("accept_local", "0"),
        v4("route_localnet", "0"),
        v4("proxy_arp", "0"),
        v4("accept_redirects", "0"),
        v4("send_redirects", "0"),
        v4("forwarding", if ipv4 { "1" } else { "0" }),
    ];
    if kernel_ipv6 {
        all.push(v6("accept_ra", "0"));
        all.push(v6("accept_redirects", "0"));
        all.push(v6("proxy_ndp", "0"));
        all.push(v6("forwarding", if ipv6 { "1" } else { "0" }));
        all.push(v6("disable_ipv6", if ipv6 { "0" } else { "1" }));
    }
    all
}
