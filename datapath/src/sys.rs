//! The `bpf` system call, as far as aya does not offer it: batches, links by interface index, information about links.
//!
//! Every structure here is a prefix of the kernel's `union bpf_attr` (`linux/bpf.h`): the kernel takes any length and wants
//! zeros in what it does not know.

#![allow(unsafe_code, reason = "the bpf system call takes pointers")]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya::Pod;

mod batch;
mod link;

pub(crate) use batch::{Batch, delete_batch, lookup_batch, update_batch};
pub(crate) use link::{link_create_tcx, link_detach, link_info, link_update, tcx_is_known};

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;

/// `struct bpf_attr` of the commands on one element.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    /// Also `next_key`.
    value: u64,
    flags: u64,
}

#[repr(C)]
struct CreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
}

#[repr(C)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// Calls the kernel. `attr` is what the command wants.
///
/// # Safety
/// All addresses in `attr` are of memory that lives during the call and is as large as the command takes it to be; and
/// `attr` has every field that the command writes, which the kernel does whatever length it is told.
unsafe fn call<A>(command: libc::c_int, attr: &mut A) -> io::Result<i64> {
    // SAFETY: attr is initialised memory of the length given; what it points to is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("invariant: an open descriptor is not negative")
}

fn address<T>(of: *const T) -> u64 {
    of as u64
}

/// Takes the descriptor that a command returned.
fn descriptor(result: i64) -> io::Result<OwnedFd> {
    let raw = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it for us, with O_CLOEXEC, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// The value of a key; `None` if there is none. In a longest-prefix map: of the longest prefix that the key lies in.
pub(crate) fn lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::uninit();
    let mut attr = ElementAttr {
        map_fd: number(map),
        pad: 0,
        key: address(key),
        value: address(value.as_mut_ptr()),
        flags: 0,
    };
    // SAFETY: the map was made or compared with sizes of K and V (maps.rs), so the kernel reads and writes just those.
    match unsafe { call(BPF_MAP_LOOKUP_ELEM, &mut attr) } {
        // SAFETY: the kernel wrote all of it, and any bytes are a V.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The values of one index of a per-CPU array, one for each possible CPU.
pub(crate) fn lookup_per_cpu(map: BorrowedFd<'_>, index: u32, cpus: usize) -> io::Result<Vec<u64>> {
    let mut values = vec![0_u64; cpus];
    let mut attr = ElementAttr {
        map_fd: number(map),
        pad: 0,
        key: address(&raw const index),
        value: address(values.as_mut_ptr()),
        flags: 0,
    };
    // SAFETY: a per-CPU array of u64 has eight bytes for each possible CPU, and `cpus` is their number.
    unsafe { call(BPF_MAP_LOOKUP_ELEM, &mut attr) }?;
    Ok(values)
}

/// Sets a value, whether there was one or not.
pub(crate) fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let mut attr =
        ElementAttr { map_fd: number(map), pad: 0, key: address(key), value: address(value), flags: 0 };
    // SAFETY: as for lookup; the kernel only reads.
    unsafe { call(BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Deletes a key. Returns whether it was there.
pub(crate) fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut attr = ElementAttr { map_fd: number(map), pad: 0, key: address(key), value: 0, flags: 0 };
    // SAFETY: as for lookup; the kernel only reads the key.
    match unsafe { call(BPF_MAP_DELETE_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The key after `key` in the map's own order, the first for `None`; `None` at the end.
pub(crate) fn next_key<K: Pod>(map: BorrowedFd<'_>, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = MaybeUninit::<K>::uninit();
    let mut attr = ElementAttr {
        map_fd: number(map),
        pad: 0,
        key: key.map_or(0, |key| address(key)),
        value: address(next.as_mut_ptr()),
        flags: 0,
    };
    // SAFETY: as for lookup; a null key asks for the first.
    match unsafe { call(BPF_MAP_GET_NEXT_KEY, &mut attr) } {
        // SAFETY: the kernel wrote all of it, and any bytes are a K.
        Ok(_) => Ok(Some(unsafe { next.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a map without a name.
pub(crate) fn create(
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    inner: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    let mut attr = CreateAttr {
        map_type: kind,
        key_size: key,
        value_size: value,
        max_entries: entries,
        map_flags: 0,
        inner_map_fd: inner.map_or(0, number),
    };
    // SAFETY: no addresses.
    descriptor(unsafe { call(BPF_MAP_CREATE, &mut attr) }?)
}

/// Puts a map into a map of maps.
pub(crate) fn set_inner_map(outer: BorrowedFd<'_>, index: u32, inner: BorrowedFd<'_>) -> io::Result<()> {
    update(outer, &index, &number(inner))
}

fn path_of(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Opens what is pinned there; `None` if nothing is.
pub(crate) fn open(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = path_of(path)?;
    let mut attr = ObjectAttr { pathname: address(path.as_ptr()), bpf_fd: 0, file_flags: 0 };
    // SAFETY: a string that ends with a zero and lives until the call returns.
    match unsafe { call(BPF_OBJ_GET, &mut attr) } {
        Ok(result) => descriptor(result).map(Some),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Pins an object.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_of(path)?;
    let mut attr = ObjectAttr { pathname: address(path.as_ptr()), bpf_fd: number(object), file_flags: 0 };
    // SAFETY: a string that ends with a zero and lives until the call returns.
    unsafe { call(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// The beginning of what the kernel tells of an object, as numbers of 32 bits; zeros where it tells less.
fn info<const N: usize>(object: BorrowedFd<'_>) -> io::Result<[u32; N]> {
    let mut numbers = [0_u32; N];
    let length = u32::try_from(size_of_val(&numbers)).expect("invariant: a few words");
    let mut attr = InfoAttr { bpf_fd: number(object), info_len: length, info: address(numbers.as_mut_ptr()) };
    // SAFETY: the kernel writes at most info_len bytes there.
    unsafe { call(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(numbers)
}

/// What `struct bpf_map_info` says of a map's definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

/// The definition of a map.
pub(crate) fn map_info(map: &impl AsFd) -> io::Result<MapInfo> {
    let [kind, _id, key_size, value_size, max_entries, flags] = info::<6>(map.as_fd())?;
    Ok(MapInfo { kind, key_size, value_size, max_entries, flags })
}

/// The kernel's number of a program.
pub(crate) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    let [_kind, id] = info::<2>(program)?;
    Ok(id)
}
