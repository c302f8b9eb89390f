//! Opening a TUN device.
#![allow(unsafe_code, reason = "ioctls of /dev/net/tun and of interfaces, which no safe wrapper covers")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use nix::libc;
use rustix::fs::{Mode, OFlags, open};

use crate::offload::{Offloads, Techniques, vnet};

mod ioctl {
    nix::ioctl_write_ptr_bad!(set_iff, nix::libc::TUNSETIFF, nix::libc::ifreq);
    nix::ioctl_write_int_bad!(set_persist, nix::libc::TUNSETPERSIST);
    nix::ioctl_write_int_bad!(set_offload, nix::libc::TUNSETOFFLOAD);
    nix::ioctl_write_ptr_bad!(set_header_size, nix::libc::TUNSETVNETHDRSZ, nix::libc::c_int);
    nix::ioctl_read_bad!(mtu, nix::libc::SIOCGIFMTU, nix::libc::ifreq);
}

/// Why an interface could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The name cannot be an interface name.
    #[error("interface name {name:?}: 1 to 15 letters, digits or one of _ . = + - are needed")]
    Name {
        /// The name.
        name: String,
    },
    /// `/dev/net/tun` cannot be opened.
    #[error("/dev/net/tun: {0}: load the module tun, and run as root with access to the device{more}", more = forbidden(.0))]
    Open(io::Error),
    /// Another process holds the interface, or it is not a TUN device.
    #[error("interface {name} is taken ({source}): waiting until its owner exits; if it has none, delete it")]
    Taken {
        /// The interface.
        name: String,
        /// `EBUSY` if another process has it open, `EINVAL` if it is of another kind.
        source: io::Error,
    },
    /// Any other failure to create it.
    #[error("interface {name} cannot be created: {source}: CAP_NET_ADMIN is needed")]
    Create {
        /// The interface.
        name: String,
        /// The cause.
        source: io::Error,
    },
}

/// runc 1.2.0 to 1.2.3 left the device out of what every container may open, which a hostPath does not make good.
fn forbidden(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => "; the container's device cgroup forbids it: runc 1.2.4 or later is needed",
        _ => "",
    }
}

/// Whether a name is one that we give to an interface: it also names files and appears in logs.
pub(super) fn valid_name(name: &str) -> bool {
    (1..16).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.=+-".contains(&b))
        && name != "."
        && name != ".."
}

/// What a kernel may be asked to leave to us, best first: UDP since Linux 6.2.
///
/// Not `TUN_F_TSO_ECN`: segments with CWR are rare, and the kernel makes them as the connection wants them.
const WANTED: [(libc::c_uint, Offloads); 2] = [
    (
        libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_USO4 | libc::TUN_F_USO6,
        Offloads::ALL,
    ),
    (libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6, Offloads { vnet: true, tcp: true, udp: false }),
];

const ONLY_HEADERS: Offloads = Offloads { vnet: true, tcp: false, udp: false };

/// Creates the interface: layer 3, no packet information, gone with the descriptor, which does not block. With
/// techniques for it, packets have a [`vnet::Header`] in front, and may be super-packets as far as this kernel has them; says
/// which may be written.
pub(super) fn open_tun(name: &str, techniques: Techniques) -> Result<(OwnedFd, Offloads), TunError> {
    if !valid_name(name) {
        return Err(TunError::Name { name: name.to_owned() });
    }
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = open("/dev/net/tun", flags, Mode::empty()).map_err(|e| TunError::Open(e.into()))?;
    let ifr_name = ifr_name(name);
    let vnet = techniques.cut || techniques.join;
    let vnet_hdr = if vnet { libc::IFF_VNET_HDR } else { 0 };
    let iff = libc::IFF_TUN | libc::IFF_NO_PI | vnet_hdr;
    let ifru_flags = libc::c_short::try_from(iff).expect("invariant: the flags fit a short");
    let mut request = libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags } };
    // SAFETY: `fd` is an open descriptor of /dev/net/tun, and `request` is a complete `ifreq` with a
    // NUL-terminated name (at most 15 bytes of 16) that lives until the call returns, and may be written to: the kernel
    // answers in it with the name and the flags that it took.
    unsafe { ioctl::set_iff(fd.as_raw_fd(), (&raw mut request).cast_const()) }.map_err(|e| {
        let (name, source) = (name.to_owned(), e.into());
        if matches!(e, nix::errno::Errno::EBUSY | nix::errno::Errno::EINVAL) {
            TunError::Taken { name, source }
        } else {
            TunError::Create { name, source }
        }
    })?;
    // A persistent interface that somebody left behind becomes ours, and goes with us.
    // SAFETY: `fd` is attached to a TUN interface; the argument is a plain integer.
    unsafe { ioctl::set_persist(fd.as_raw_fd(), 0) }
        .map_err(|e| TunError::Create { name: name.to_owned(), source: e.into() })?;
    if !vnet {
        leave_nothing_to_us(&fd);
        return Ok((fd, Offloads::NONE));
    }
    let size = libc::c_int::try_from(vnet::LEN).expect("invariant: the header is short");
    // SAFETY: `fd` is attached to a TUN interface, and `size` is an int that lives until the call returns.
    unsafe { ioctl::set_header_size(fd.as_raw_fd(), &raw const size) }
        .map_err(|e| TunError::Create { name: name.to_owned(), source: e.into() })?;
    for (features, offloads) in WANTED {
        let features = libc::c_int::try_from(features).expect("invariant: the features fit an int");
        // SAFETY: `fd` is attached to a TUN interface; the argument is a plain integer.
        if unsafe { ioctl::set_offload(fd.as_raw_fd(), features) }.is_ok() {
            if !techniques.cut {
                leave_nothing_to_us(&fd);
            }
            let written = if techniques.join { offloads } else { ONLY_HEADERS };
            return Ok((fd, written));
        }
    }
    leave_nothing_to_us(&fd);
    Ok((fd, ONLY_HEADERS))
}

/// The present MTU of an interface in bytes. The kernel answers at once, whatever else is done to links meanwhile.
pub(super) fn mtu_by_name(socket: &UnixDatagram, name: &str) -> io::Result<usize> {
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_mtu: 0 };
    let mut request = libc::ifreq { ifr_name: ifr_name(name), ifr_ifru };
    // SAFETY: `socket` is an open socket, of which any kind will do, and `request` is a complete `ifreq` with a NUL-terminated name
    // that lives until the call returns, and may be written to.
    unsafe { ioctl::mtu(socket.as_raw_fd(), &raw mut request) }?;
    // SAFETY: the kernel has written this member, and every value of an int is one.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    usize::try_from(mtu).map_err(io::Error::other)
}

/// A name as the kernel takes it, of at most 15 bytes and a NUL.
fn ifr_name(name: &str) -> [libc::c_char; libc::IFNAMSIZ] {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    ifr_name
}

/// An interface that somebody left behind has what was asked of it then. A kernel that refuses has no such thing.
fn leave_nothing_to_us(fd: &OwnedFd) {
    // SAFETY: `fd` is attached to a TUN interface; the argument is a plain integer.
    let _ = unsafe { ioctl::set_offload(fd.as_raw_fd(), 0) };
}
