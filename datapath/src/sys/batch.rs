//! Many elements with one call (Linux 5.6 for hashes and arrays, 5.13 for longest-prefix maps).

use std::io;
use std::os::fd::BorrowedFd;

use aya::Pod;

use super::{address, call, number};

const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
const BPF_MAP_DELETE_BATCH: libc::c_int = 27;

/// `ENOTSUPP`: what the kernel says where it has no batches; it is no errno of POSIX.
const ENOTSUPP: i32 = 524;

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Where a walk over a map is. The kernel keeps its place there: a key, or a number of its own.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    place: Vec<u64>,
    begun: bool,
    done: bool,
}

impl Batch {
    /// At the beginning of a map with keys of `key_size` bytes.
    pub(crate) fn new(key_size: usize) -> Self {
        // At least four bytes, which hashes use for the number of a bucket.
        Self { place: vec![0; key_size.div_ceil(8).max(1)], begun: false, done: false }
    }

    /// Behind an index of an array; at its beginning for `None`.
    pub(crate) fn after_index(index: Option<u32>) -> Self {
        let mut batch = Self::new(size_of::<u32>());
        if let Some(index) = index {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&index.to_ne_bytes());
            batch.place[0] = u64::from_ne_bytes(bytes);
            batch.begun = true;
        }
        batch
    }

    /// Everything was seen.
    pub(crate) const fn is_done(&self) -> bool {
        self.done
    }
}

/// Appends up to `limit` elements. `Ok(false)`: this kernel or this kind of map has no batches.
///
/// An error of `ENOSPC` means that one bucket has more than `limit`.
pub(crate) fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    batch: &mut Batch,
    limit: usize,
    keys: &mut Vec<K>,
    values: &mut Vec<V>,
) -> io::Result<bool> {
    let mut next = vec![0_u64; batch.place.len()];
    keys.reserve(limit);
    values.reserve(limit);
    let (keys_len, values_len) = (keys.len(), values.len());
    let mut attr = BatchAttr {
        in_batch: if batch.begun { address(batch.place.as_ptr()) } else { 0 },
        out_batch: address(next.as_mut_ptr()),
        keys: address(keys.spare_capacity_mut().as_mut_ptr()),
        values: address(values.spare_capacity_mut().as_mut_ptr()),
        count: u32::try_from(limit).unwrap_or(u32::MAX),
        map_fd: number(map),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: there is room for `count` keys and values of the map's sizes (maps.rs compared them with K and V), and for
    // the kernel's place, which is never longer than a key or four bytes.
    let result = unsafe { call(BPF_MAP_LOOKUP_BATCH, &mut attr) };
    match result.as_ref().map_err(io::Error::raw_os_error) {
        Ok(_) => {}
        Err(Some(libc::ENOENT)) => batch.done = true,
        Err(Some(libc::EINVAL | ENOTSUPP)) => return Ok(false),
        Err(_) => return result.map(|_| true),
    }
    let found = usize::try_from(attr.count).unwrap_or(0).min(limit);
    // SAFETY: the kernel wrote that many of each, and any bytes are a K and a V.
    unsafe {
        keys.set_len(keys_len + found);
        values.set_len(values_len + found);
    }
    batch.place = next;
    batch.begun = true;
    Ok(true)
}

/// Deletes keys. Returns how many were tried before one was not there any more, all if none; `Ok(None)`: no batches here.
pub(crate) fn delete_batch<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> io::Result<Option<usize>> {
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys: address(keys.as_ptr()),
        values: 0,
        count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
        map_fd: number(map),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: `count` keys of the map's size, which the kernel only reads.
    match unsafe { call(BPF_MAP_DELETE_BATCH, &mut attr) } {
        Ok(_) => Ok(Some(keys.len())),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(Some(usize::try_from(attr.count).unwrap_or(0))),
            Some(libc::EINVAL | ENOTSUPP) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Sets values. `Ok(false)`: no batches here.
pub(crate) fn update_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<bool> {
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys: address(keys.as_ptr()),
        values: address(values.as_ptr()),
        count: u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX),
        map_fd: number(map),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: `count` keys and values of the map's sizes, which the kernel only reads.
    match unsafe { call(BPF_MAP_UPDATE_BATCH, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | ENOTSUPP)) => Ok(false),
        Err(error) => Err(error),
    }
}
