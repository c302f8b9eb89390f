//! tcx links (Linux 6.6): attached by interface index, replaced atomically, gone with their device.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::{call, descriptor, info, number};

const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_LINK_TYPE_TCX: u32 = 11;
/// Before all others of the hook.
const BPF_F_BEFORE: u32 = 1 << 3;

#[repr(C)]
struct CreateAttr {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    pad: u32,
    expected_revision: u64,
}

#[repr(C)]
struct UpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
struct DetachAttr {
    link_fd: u32,
}

#[repr(C)]
struct QueryAttr {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    /// Written by the kernel whatever length it is told, so it has to be there.
    revision: u64,
}

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    /// Number of its program.
    pub(crate) program: u32,
    /// Device; 0: it is gone.
    pub(crate) ifindex: u32,
    /// It is on the device's egress.
    pub(crate) egress: bool,
    /// Whether it is a tcx link at all.
    pub(crate) tcx: bool,
}

const fn hook(egress: bool) -> u32 {
    if egress { BPF_TCX_EGRESS } else { BPF_TCX_INGRESS }
}

/// Does this kernel have tcx? It answers a question about the loopback device, or does not know what that means.
pub(crate) fn tcx_is_known() -> bool {
    let mut attr = QueryAttr {
        target_ifindex: 1,
        attach_type: BPF_TCX_INGRESS,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: 0,
        count: 0,
        pad: 0,
        prog_attach_flags: 0,
        link_ids: 0,
        link_attach_flags: 0,
        revision: 0,
    };
    // SAFETY: no addresses: it is asked for the count alone. All fields that the kernel writes are there.
    match unsafe { call(BPF_PROG_QUERY, &mut attr) } {
        Ok(_) => true,
        Err(error) => error.raw_os_error() != Some(libc::EINVAL),
    }
}

/// Attaches a program before all others of the hook.
pub(crate) fn link_create_tcx(program: BorrowedFd<'_>, ifindex: u32, egress: bool) -> io::Result<OwnedFd> {
    let mut attr = CreateAttr {
        prog_fd: number(program),
        target_ifindex: ifindex,
        attach_type: hook(egress),
        flags: BPF_F_BEFORE,
        relative_fd: 0,
        pad: 0,
        expected_revision: 0,
    };
    // SAFETY: no addresses.
    descriptor(unsafe { call(BPF_LINK_CREATE, &mut attr) }?)
}

/// Replaces the program of a link: every packet meets the former or the new one.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr =
        UpdateAttr { link_fd: number(link), new_prog_fd: number(program), flags: 0, old_prog_fd: 0 };
    // SAFETY: no addresses.
    unsafe { call(BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes the program off the device at once. Without this a link that nobody refers to any more is taken off some time later,
/// by a worker of the kernel.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = DetachAttr { link_fd: number(link) };
    // SAFETY: no addresses.
    unsafe { call(BPF_LINK_DETACH, &mut attr) }.map(drop)
}

/// What a link is.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // type, id, prog_id, four bytes of padding, then by type: for tcx ifindex and attach_type.
    let [kind, _id, program, _pad, ifindex, attach_type] = info::<6>(link)?;
    let tcx = kind == BPF_LINK_TYPE_TCX;
    Ok(LinkInfo {
        program,
        ifindex: if tcx { ifindex } else { 0 },
        egress: attach_type == BPF_TCX_EGRESS,
        tcx,
    })
}
