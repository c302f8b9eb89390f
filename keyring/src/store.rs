//! The key files of a node: one per slot, and the greatest epoch that was ever given out.
//!
//! ```text
//! DIR            0700, ours, locked (flock) while a store is open
//! DIR/slot0.key  0600   hawser-key 1 / epoch N / public … / private … / sha256 …
//! DIR/slot1.key  0600
//! DIR/slot0.next 0600   the same, of a key that is staged: it will follow the one in slot0.key
//! DIR/slot1.next 0600
//! DIR/epoch      0600   hawser-epoch 1 / epoch N / sha256 …
//! DIR/.*.tmp     a write that did not finish; removed when the store is opened
//! ```
//!
//! Every write goes to a temporary file, which is synced and renamed, then the directory is synced: after a crash
//! or on a full disk a file is the old one or the new one. A new epoch is on disk before the key that bears it, so
//! no epoch is given out twice, even when a key file was moved away. A file that is not exactly what this module
//! writes is refused and left alone.
//!
//! A key is destroyed by zeros over its file before the staged file takes its name, so that a crash between the two
//! leaves no file without a name and with a key in it. A key file of nothing but zeros beside a staged one is such a
//! crash: the staged key is the slot's.

mod disk;
mod error;
mod format;
pub(crate) mod psk;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_core::announcement::Epoch;
use mesh_core::key::PublicKey;
use mesh_core::slot::Slot;

use self::disk::Directory;
pub use self::error::{Action, Damage, FileKind, StoreError};
use crate::private::PrivateKey;

/// Name of the file with the greatest epoch.
const EPOCH_FILE: &str = "epoch";

/// Name of the file with the state of a rotation.
const ROTATION_FILE: &str = "rotation";

/// Longest state of a rotation, in bytes: one that names 5,000 nodes that were late.
const ROTATION_MAX: usize = 2 << 20;

/// Name of a slot's key file.
const fn key_file(slot: Slot) -> &'static str {
    match slot {
        Slot::Zero => "slot0.key",
        Slot::One => "slot1.key",
    }
}

/// Name of the file of a slot's staged key.
const fn staged_file(slot: Slot) -> &'static str {
    match slot {
        Slot::Zero => "slot0.next",
        Slot::One => "slot1.next",
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
    slots: [Arc<SlotKey>; 2],
    staged: [Option<Arc<SlotKey>>; 2],
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
        directory.remove_leftover(EPOCH_FILE)?;
        for slot in Slot::ALL {
            directory.remove_leftover(key_file(slot))?;
            directory.remove_leftover(staged_file(slot))?;
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
        let all = [&zero.key, &one.key, &zero.staged, &one.staged];
        let known: Vec<&SlotKey> = all.into_iter().flatten().collect();
        for (index, a) in known.iter().enumerate() {
            if known[..index].iter().any(|b| a.epoch == b.epoch || a.public() == b.public()) {
                return Err(StoreError::EqualSlots { dir: directory.path().to_owned(), epoch: a.epoch });
            }
        }
        let seen = known.iter().map(|key| key.epoch).max();
        let mut last = seen.max(recorded).unwrap_or(Epoch(0)).max(floor);
        // Nothing is refused from here on.
        let [(zero, next_of_zero), (one, next_of_one)] =
            [zero.settle(&directory, Slot::Zero)?, one.settle(&directory, Slot::One)?];
        if recorded != Some(last) && zero.is_some() && one.is_some() {
            directory.write(EPOCH_FILE, &format::render_epoch(last))?;
        }
        let mut created = Vec::new();
        let mut ready = |slot, key: Option<SlotKey>| match key {
            Some(key) => Ok(key),
            None => {
                created.push(slot);
                create(&directory, key_file(slot), &mut last)
            }
        };
        let slots = [ready(Slot::Zero, zero)?, ready(Slot::One, one)?];
        let slots = slots.map(Arc::new);
        let staged = [next_of_zero, next_of_one].map(|key| key.map(Arc::new));
        Ok(LoadedStore { directory, slots, staged, created, last })
    }
}

impl LoadedStore {
    /// The keys of slot zero and slot one.
    pub fn slots(&self) -> [&SlotKey; 2] {
        self.slots.each_ref().map(|key| &**key)
    }

    /// The key of one slot.
    pub fn slot(&self, slot: Slot) -> &SlotKey {
        &self.slots[slot.index()]
    }

    /// The key of one slot, for another thread. It is zeroized when the last one lets go of it.
    pub fn shared(&self, slot: Slot) -> Arc<SlotKey> {
        Arc::clone(&self.slots[slot.index()])
    }

    /// The staged key of a slot, for another thread.
    pub fn staged_shared(&self, slot: Slot) -> Option<Arc<SlotKey>> {
        self.staged[slot.index()].clone()
    }

    /// The slots whose key was made when the store was loaded, since no file held one.
    pub fn created(&self) -> &[Slot] {
        &self.created
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The staged key of a slot.
    pub fn staged(&self, slot: Slot) -> Option<&SlotKey> {
        self.staged[slot.index()].as_deref()
    }

    /// What [`LoadedStore::save_rotation`] wrote last.
    ///
    /// # Errors
    /// The file cannot be read, is too long or not ours alone.
    pub fn rotation(&self) -> Result<Option<String>, StoreError> {
        let text = self.directory.read(ROTATION_FILE, ROTATION_MAX)?;
        Ok(text.map(|text| String::from_utf8_lossy(&text).into_owned()))
    }

    /// Puts the state of this node's rotation on the disk, durably.
    ///
    /// # Errors
    /// It cannot be written; then the former one is there.
    pub fn save_rotation(&self, document: &str) -> Result<(), StoreError> {
        self.directory.write(ROTATION_FILE, document.as_bytes()).map(drop)
    }

    /// When the file of a slot's key was written, in seconds since 1970: the key's age. None: it cannot be told.
    pub fn made(&self, slot: Slot) -> Option<u64> {
        self.directory.modified(key_file(slot))
    }

    /// Makes the key that will follow the present one of `slot`, with an epoch above all earlier ones, and puts it on
    /// the disk beside it. Where one is staged already, nothing is done.
    ///
    /// # Errors
    /// The key cannot be made or written.
    pub fn stage(&mut self, slot: Slot) -> Result<&SlotKey, StoreError> {
        let staged = &mut self.staged[slot.index()];
        let key = match staged.take() {
            Some(key) => key,
            None => Arc::new(create(&self.directory, staged_file(slot), &mut self.last)?),
        };
        Ok(staged.insert(key))
    }

    /// Makes the staged key of `slot` its key, and overwrites the old key's bytes on the disk as far as the file
    /// system lets itself be told (one that copies on write, or flash, may keep a copy). The old key in memory is
    /// zeroized. None: nothing was staged, and nothing was done.
    ///
    /// # Errors
    /// The file cannot be renamed or the directory not be synced. Then the key in memory is the old one, the staged one is
    /// staged, and either is found by the next start: what was overwritten is never taken for a key.
    pub fn commit(&mut self, slot: Slot) -> Result<Option<Replaced>, StoreError> {
        let Some(staged) = self.staged(slot) else { return Ok(None) };
        let epoch = staged.epoch;
        if !self.directory.has(staged_file(slot))? {
            // An earlier try has renamed it, and failed afterwards: what would be wiped now is the only copy. Or somebody took it away.
            self.directory.write(staged_file(slot), &format::render_key(staged))?;
        }
        let not_wiped = self.directory.wipe(key_file(slot)).err();
        self.directory.rename(staged_file(slot), key_file(slot))?;
        if let Some(key) = self.staged[slot.index()].take() {
            self.slots[slot.index()] = key;
        }
        Ok(Some(Replaced { epoch, not_wiped }))
    }

    /// Both at once, for a slot that nobody uses: [`LoadedStore::stage`], then [`LoadedStore::commit`].
    ///
    /// # Errors
    /// Those of the two.
    pub fn replace(&mut self, slot: Slot) -> Result<Replaced, StoreError> {
        let epoch = self.stage(slot)?.epoch;
        let nothing = Replaced { epoch, not_wiped: None };
        Ok(self.commit(slot)?.unwrap_or(nothing))
    }
}

/// What the files of a slot hold.
struct Found {
    key: Option<SlotKey>,
    staged: Option<SlotKey>,
}

impl Found {
    /// Finishes a commit that was cut off: key and staged key.
    fn settle(
        self,
        directory: &Directory,
        slot: Slot,
    ) -> Result<(Option<SlotKey>, Option<SlotKey>), StoreError> {
        match self {
            Self { key: None, staged: Some(staged) } => {
                directory.rename(staged_file(slot), key_file(slot))?;
                Ok((Some(staged), None))
            }
            Self { key, staged } => Ok((key, staged)),
        }
    }
}

/// The keys in a slot's files, if there are any.
fn load(directory: &Directory, slot: Slot) -> Result<Found, StoreError> {
    let read = |name| directory.read(name, format::KEY_MAX);
    let parse =
        |name, text: &[u8]| format::parse_key(text).map_err(|fault| fault.at(directory.path_of(name)));
    let staged = read(staged_file(slot))?.map(|text| parse(staged_file(slot), &text)).transpose()?;
    let text = read(key_file(slot))?;
    let wiped = text.as_ref().is_some_and(|text| !text.is_empty() && text.iter().all(|byte| *byte == 0));
    let key = match text {
        Some(text) if !(wiped && staged.is_some()) => Some(parse(key_file(slot), &text)?),
        Some(_) | None => None,
    };
    Ok(Found { key, staged })
}

/// Makes a key with the epoch after `last`, writes the epoch and then the key, and advances `last`.
fn create(directory: &Directory, name: &str, last: &mut Epoch) -> Result<SlotKey, StoreError> {
    let epoch = last.0.checked_add(1).map(Epoch);
    let epoch = epoch.ok_or_else(|| StoreError::EpochsExhausted { dir: directory.path().to_owned() })?;
    let key = SlotKey { epoch, private: PrivateKey::generate()? };
    directory.write(EPOCH_FILE, &format::render_epoch(epoch))?;
    *last = epoch;
    directory.write(name, &format::render_key(&key))?;
    Ok(key)
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
