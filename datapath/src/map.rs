//! Maps with types: what is read and written, and what an error says of it.

use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use aya::Pod;

use crate::error::{Error, Result};
use crate::sys::{self, Batch};

/// Elements that one call brings or deletes: a few dozen KiB, so that a walk over a large map costs few calls.
const BATCH: usize = 1024;
/// A bucket of a hash is never this long: with as many buckets as entries, chains are a few elements.
const BATCH_LIMIT: usize = 1 << 20;
/// Times that an insertion is tried when the kernel has no memory at hand. Elements are allocated without sleeping from a
/// stock of each CPU that is filled up behind it.
const ALLOCATION_TRIES: u32 = 8;

/// A hash, an LRU hash or a longest-prefix map.
#[derive(Debug)]
pub struct Keyed<K, V> {
    fd: OwnedFd,
    name: &'static str,
    capacity: u32,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Pod + Debug, V: Pod> Keyed<K, V> {
    pub(crate) const fn new(fd: OwnedFd, name: &'static str, capacity: u32) -> Self {
        Self { fd, name, capacity, types: PhantomData }
    }

    /// Entries it has room for.
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    fn error(&self, action: &str, key: Option<&K>, source: io::Error) -> Error {
        let action = key.map_or_else(|| action.to_owned(), |key| format!("{action} {key:?}"));
        Error::Map { map: self.name, action, source }
    }

    /// The value of a key. In a longest-prefix map: of the longest prefix that it lies in.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        sys::lookup(self.fd.as_fd(), key).map_err(|error| self.error("read", Some(key), error))
    }

    /// Sets a value.
    pub fn put(&self, key: &K, value: &V) -> Result<()> {
        let mut tries = 1;
        loop {
            let Err(error) = sys::update(self.fd.as_fd(), key, value) else { return Ok(()) };
            match error.raw_os_error() {
                Some(libc::E2BIG | libc::ENOSPC) => {
                    return Err(Error::Full { map: self.name, capacity: self.capacity });
                }
                Some(libc::ENOMEM) if tries < ALLOCATION_TRIES => {
                    tries += 1;
                    std::thread::yield_now();
                }
                _ => return Err(self.error("write", Some(key), error)),
            }
        }
    }

    /// Deletes a key. Returns whether it was there.
    pub fn delete(&self, key: &K) -> Result<bool> {
        sys::delete(self.fd.as_fd(), key).map_err(|error| self.error("delete", Some(key), error))
    }

    /// All entries. What others put or delete meanwhile may be in it or not; an entry may be there twice.
    pub fn entries(&self) -> Result<Vec<(K, V)>> {
        let mut all = Vec::new();
        self.walk(self.capacity, |key, value| all.push((*key, *value)))?;
        Ok(all)
    }

    /// Calls `see` for up to `limit` entries. Returns how many they were.
    ///
    /// The limit is what ends a walk by keys over a map that the programs write to: whoever stands on a key that is deleted
    /// begins anew.
    pub fn walk(&self, limit: u32, mut see: impl FnMut(&K, &V)) -> Result<u32> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut batch = Batch::new(size_of::<K>());
        let mut size = BATCH;
        let mut seen = 0;
        while !batch.is_done() && seen < limit {
            keys.clear();
            values.clear();
            match sys::lookup_batch(self.fd.as_fd(), &mut batch, size, &mut keys, &mut values) {
                Ok(true) => {}
                Ok(false) => return self.walk_by_key(limit, see),
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && size < BATCH_LIMIT => size *= 4,
                Err(error) => return Err(self.error("read", None, error)),
            }
            for (key, value) in
                keys.iter().zip(&values).take(usize::try_from(limit - seen).unwrap_or(usize::MAX))
            {
                see(key, value);
                seen += 1;
            }
        }
        Ok(seen)
    }

    fn walk_by_key(&self, limit: u32, mut see: impl FnMut(&K, &V)) -> Result<u32> {
        let mut key = None;
        let mut seen = 0;
        while seen < limit {
            let next = sys::next_key(self.fd.as_fd(), key.as_ref());
            let Some(next) = next.map_err(|error| self.error("read", None, error))? else { break };
            if let Some(value) = self.get(&next)? {
                see(&next, &value);
            }
            seen += 1;
            key = Some(next);
        }
        Ok(seen)
    }

    /// Deletes keys, those that are not there included. Returns how many were.
    pub fn delete_all(&self, keys: &[K]) -> Result<u32> {
        let mut deleted = 0;
        let mut rest = keys;
        while !rest.is_empty() {
            let some = &rest[..rest.len().min(BATCH)];
            match sys::delete_batch(self.fd.as_fd(), some)
                .map_err(|error| self.error("delete", None, error))?
            {
                Some(done) => {
                    deleted += u32::try_from(done).unwrap_or(u32::MAX);
                    // The one at which it stopped was not there.
                    rest = &rest[(done + usize::from(done < some.len())).min(rest.len())..];
                }
                None => {
                    for key in rest {
                        deleted += u32::from(self.delete(key)?);
                    }
                    break;
                }
            }
        }
        Ok(deleted)
    }
}

impl<K, V> AsFd for Keyed<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An array.
#[derive(Debug)]
pub struct Array<V> {
    fd: OwnedFd,
    name: &'static str,
    capacity: u32,
    types: PhantomData<fn() -> V>,
}

impl<V: Pod> Array<V> {
    pub(crate) const fn new(fd: OwnedFd, name: &'static str, capacity: u32) -> Self {
        Self { fd, name, capacity, types: PhantomData }
    }

    /// Entries it has.
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    fn error(&self, action: &str, index: u32, source: io::Error) -> Error {
        Error::Map { map: self.name, action: format!("{action} index {index} of {}", self.capacity), source }
    }

    /// The value at an index.
    pub fn get(&self, index: u32) -> Result<V> {
        let value = sys::lookup(self.fd.as_fd(), &index).map_err(|error| self.error("read", index, error))?;
        value.ok_or_else(|| self.error("read", index, io::Error::from_raw_os_error(libc::ENOENT)))
    }

    /// Sets the value at an index.
    pub fn set(&self, index: u32, value: &V) -> Result<()> {
        sys::update(self.fd.as_fd(), &index, value).map_err(|error| self.error("write", index, error))
    }

    /// The values of `count` indexes from `first` on.
    pub fn range(&self, first: u32, count: u32) -> Result<Vec<V>> {
        let end = first.checked_add(count).filter(|end| *end <= self.capacity);
        let end = end.ok_or_else(|| self.error("read", first, io::Error::from_raw_os_error(libc::ERANGE)))?;
        let (mut keys, mut values) = (Vec::<u32>::new(), Vec::new());
        let mut batch = Batch::after_index(first.checked_sub(1));
        while let Ok(wanted @ 1..) = usize::try_from(count).map(|count| count - values.len()) {
            keys.clear();
            let next = first + u32::try_from(values.len()).unwrap_or(0);
            match sys::lookup_batch(self.fd.as_fd(), &mut batch, wanted.min(BATCH), &mut keys, &mut values) {
                Ok(true) if !keys.is_empty() => {}
                Ok(_) => return (first..end).map(|index| self.get(index)).collect(),
                Err(error) => return Err(self.error("read", next, error)),
            }
        }
        Ok(values)
    }

    /// Sets the values of the indexes from `first` on.
    pub fn set_range(&self, first: u32, values: &[V]) -> Result<()> {
        let mut index = first;
        for some in values.chunks(BATCH) {
            let keys: Vec<u32> = (index..).take(some.len()).collect();
            match sys::update_batch(self.fd.as_fd(), &keys, some) {
                Ok(true) => {}
                Ok(false) => keys.iter().zip(some).try_for_each(|(index, value)| self.set(*index, value))?,
                Err(error) => return Err(self.error("write", index, error)),
            }
            index = keys.last().map_or(index, |last| last.saturating_add(1));
        }
        Ok(())
    }
}

/// A per-CPU array of counters.
#[derive(Debug)]
pub struct Counters {
    fd: OwnedFd,
    name: &'static str,
}

impl Counters {
    pub(crate) const fn new(fd: OwnedFd, name: &'static str) -> Self {
        Self { fd, name }
    }

    /// A second descriptor.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone().map_err(|source| Error::Map {
            map: self.name,
            action: "duplicate its descriptor".to_owned(),
            source,
        })?;
        Ok(Self { fd, name: self.name })
    }

    /// The sum over all CPUs.
    pub fn sum(&self, index: u32) -> Result<u64> {
        let error = |source| Error::Map { map: self.name, action: format!("read index {index}"), source };
        let cpus = possible_cpus().map_err(error)?;
        let values = sys::lookup_per_cpu(self.fd.as_fd(), index, cpus).map_err(error)?;
        Ok(values.iter().fold(0, |sum, value| sum.wrapping_add(*value)))
    }
}

/// How many CPUs the kernel keeps per-CPU values for. It never changes.
fn possible_cpus() -> io::Result<usize> {
    static CPUS: OnceLock<usize> = OnceLock::new();
    if let Some(cpus) = CPUS.get() {
        return Ok(*cpus);
    }
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
    Ok(*CPUS.get_or_init(|| cpus))
}
