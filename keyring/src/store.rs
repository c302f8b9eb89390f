//! The key files of a node: one per slot, and the greatest epoch that was ever given out.
//!
//! ```text
//! DIR            0700, ours, locked (flock) while a store is open
//! DIR/slot0.key  0600   hawser-key 1 / epoch N / public … / private … / sha256 …
//! DIR/slot1.key  0600
//! DIR/epoch      0600   hawser-epoch 1 / epoch N / sha256 …
//! DIR/.*.tmp     a write that did not finish; removed when the store is opened
//! ```
//!
//! Every write goes to a temporary file, which is synced and renamed, then the directory is synced: after a crash
//! or on a full disk a file is the old one or the new one. A new epoch is on disk before the key that bears it, so
//! no epoch is given out twice, even when a key file was moved away. A file that is not exactly what this module
//! writes is refused and left alone.

mod disk;
mod error;
mod format;
pub(crate) mod psk;

use std::path::{Path, PathBuf};

use mesh_core::announcement::Epoch;
use mesh_core::key::PublicKey;
use mesh_core::slot::Slot;

use self::disk::Directory;
pub use self::error::{Action, Damage, FileKind, StoreError};
use crate::private::PrivateKey;

/// Name of the file with the greatest epoch.
const EPOCH_FILE: &str = "epoch";

/// Name of a slot's key file.
const fn key_file(slot: Slot) -> &'static str {
    match slot {
        Slot::Zero => "slot0.key",
        Slot::One => "slot1.key",
    }
}

/// The key of one slot.
pub struct SlotKey {
    /// Its number.
    pub epoch: Epoch,
    /// The key.
    pub private: PrivateKey,
}

impl SlotKey {
    /// The public key.
    pub fn public(&self) -> PublicKey {
        self.private.public()
    }
}

impl std::fmt::Debug for SlotKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlotKey")
            .field("epoch", &self.epoch)
            .field("public", &self.public())
            .finish_non_exhaustive()
    }
}

/// A directory of keys, locked for this process, its keys not read yet.
#[derive(Debug)]
pub struct Store {
    directory: Directory,
    floor: Epoch,
}

/// A directory of keys with both keys in memory.
#[derive(Debug)]
pub struct LoadedStore {
    directory: Directory,
    slots: [SlotKey; 2],
    created: Vec<Slot>,
    /// The greatest epoch given out.
    last: Epoch,
}

/// The key of a slot was replaced.
#[derive(Debug)]
pub struct Replaced {
    /// Epoch of the new key.
    pub epoch: Epoch,
    /// Set when the bytes of the old key could not be overwritten on the disk after its file was replaced. The new
    /// key is in force all the same; the old one may be recoverable from the raw disk.
    pub not_wiped: Option<StoreError>,
}

impl Store {
    /// Opens and locks `dir`, creates it (0700) if absent, and removes what an interrupted write left.
    ///
    /// # Errors
    /// The directory cannot be created or opened, is not a directory (a symbolic link included), belongs to another
    /// user, is open to group or others, or another process has it open.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let directory = Directory::open(dir)?;
        for name in [EPOCH_FILE, key_file(Slot::Zero), key_file(Slot::One)] {
            directory.remove_leftover(name)?;
        }
        Ok(Self { directory, floor: Epoch(0) })
    }

    /// New keys get epochs above `epoch`, for example the greatest that this node's annotation bears: on a node
    /// whose disk was wiped the files know nothing of earlier keys.
    #[must_use]
    pub fn above(mut self, epoch: Epoch) -> Self {
        self.floor = self.floor.max(epoch);
        self
    }

    /// Reads both keys and makes those that are absent. If either file is refused, nothing is made.
    ///
    /// # Errors
    /// A file is refused (see [`StoreError`]), both slots hold the same key or epoch, a new key cannot be made or
    /// written. Files that exist are never changed.
    pub fn load_or_create_all(self) -> Result<LoadedStore, StoreError> {
        let Self { directory, floor } = self;
        let recorded = directory
            .read(EPOCH_FILE, format::EPOCH_MAX)?
            .map(|text| format::parse_epoch(&text).map_err(|fault| fault.at(directory.path_of(EPOCH_FILE))))
            .transpose()?;
        let [zero, one] = [load(&directory, Slot::Zero)?, load(&directory, Slot::One)?];
        if let (Some(a), Some(b)) = (&zero, &one)
            && (a.epoch == b.epoch || a.public() == b.public())
        {
            return Err(StoreError::EqualSlots { dir: directory.path().to_owned(), epoch: a.epoch });
        }
        let seen = [&zero, &one].map(|key| key.as_ref().map_or(Epoch(0), |key| key.epoch));
        let mut last = seen[0].max(seen[1]).max(recorded.unwrap_or(Epoch(0))).max(floor);
        if recorded != Some(last) && zero.is_some() && one.is_some() {
            directory.write(EPOCH_FILE, &format::render_epoch(last))?;
        }
        let mut created = Vec::new();
        let mut ready = |slot, key: Option<SlotKey>| match key {
            Some(key) => Ok(key),
            None => {
                created.push(slot);
                create(&directory, slot, &mut last).map(|(key, _)| key)
            }
        };
        let slots = [ready(Slot::Zero, zero)?, ready(Slot::One, one)?];
        Ok(LoadedStore { directory, slots, created, last })
    }
}

impl LoadedStore {
    /// The keys of slot zero and slot one.
    pub fn slots(&self) -> [&SlotKey; 2] {
        self.slots.each_ref()
    }

    /// The key of one slot.
    pub fn slot(&self, slot: Slot) -> &SlotKey {
        &self.slots[slot.index()]
    }

    /// The slots whose key was made when the store was loaded, since no file held one.
    pub fn created(&self) -> &[Slot] {
        &self.created
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Gives `slot` a new key with an epoch above all earlier ones, and overwrites the old key's bytes on the disk
    /// as far as the file system lets itself be told (one that copies on write, or flash, may keep a copy).
    ///
    /// # Errors
    /// The key cannot be made or written. Then the key in memory is still the old one, and the file holds the old
    /// key or, if only the last sync failed, the new one, which the next start would find.
    pub fn replace(&mut self, slot: Slot) -> Result<Replaced, StoreError> {
        let (key, old) = create(&self.directory, slot, &mut self.last)?;
        let epoch = key.epoch;
        self.slots[slot.index()] = key;
        let not_wiped = old.and_then(|old| old.wipe().err());
        Ok(Replaced { epoch, not_wiped })
    }
}

/// The key in a slot's file, if there is one.
fn load(directory: &Directory, slot: Slot) -> Result<Option<SlotKey>, StoreError> {
    let name = key_file(slot);
    let Some(text) = directory.read(name, format::KEY_MAX)? else {
        return Ok(None);
    };
    format::parse_key(&text).map(Some).map_err(|fault| fault.at(directory.path_of(name)))
}

/// Makes a key with the epoch after `last`, writes the epoch and then the key, and advances `last`.
fn create(
    directory: &Directory,
    slot: Slot,
    last: &mut Epoch,
) -> Result<(SlotKey, Option<disk::Replaced>), StoreError> {
    let epoch = last.0.checked_add(1).map(Epoch);
    let epoch = epoch.ok_or_else(|| StoreError::EpochsExhausted { dir: directory.path().to_owned() })?;
    let key = SlotKey { epoch, private: PrivateKey::generate()? };
    directory.write(EPOCH_FILE, &format::render_epoch(epoch))?;
    *last = epoch;
    let old = directory.write(key_file(slot), &format::render_key(&key))?;
    Ok((key, old))
}

/// For errors that concern a file rather than the directory.
impl format::Fault {
    fn at(self, path: PathBuf) -> StoreError {
        match self {
            Self::Version(found) => StoreError::Version { path, found },
            Self::Damage(damage) => StoreError::Damaged { path, damage },
        }
    }
}

#[cfg(test)]
mod tests;
