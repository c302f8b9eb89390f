//! The pre-shared keys of a node's pairs, one file for each peer and slot.
//!
//! ```text
//! DIR                    0700, ours, locked (flock) while open
//! DIR/HASH.slot0.psk     0600   hawser-psk 1 / slot … / both ends / how far it is / psk … / sha256 …
//! DIR/.*.tmp             a write that did not finish; removed when the store is opened
//! ```
//!
//! `HASH` is the beginning of the SHA-256 of the peer's cluster and name, since both together can be longer than a file's
//! name may be. Writes are atomic and synced like those of the key files. A file that is not exactly what this module
//! writes costs its pair, and no other, the key.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_core::announcement::Epoch;
use mesh_core::psk::{Context, End, NodeId, Role, with_length};
use mesh_core::slot::Slot;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::disk::Directory;
use super::error::{Damage, FileKind, StoreError};
use super::format::{FORMAT, Fault, lines, number};
use crate::psk::{Psk, Record};

/// Most bytes of a file: its lines with the longest names and epochs take 992.
const PSK_MAX: usize = 1024;
const WORDS: [&str; 15] = [
    "hawser-psk",
    "slot",
    "cluster",
    "node",
    "public",
    "epoch",
    "cluster",
    "node",
    "public",
    "epoch",
    "confirmed",
    "seen",
    "peer-seen",
    "psk",
    "sha256",
];
const SUFFIX: &str = ".psk";

/// A directory of pre-shared keys, locked for this process.
#[derive(Debug)]
pub struct PskStore {
    directory: Directory,
    us: NodeId,
}

/// What the directory holds.
pub struct LoadedPsks {
    /// The records, of contexts that may be gone by now.
    pub records: Vec<Record>,
    /// The files that were refused and left alone.
    pub refused: Vec<PskFileError>,
}

impl std::fmt::Debug for LoadedPsks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<_> = self.records.iter().map(|record| record.id).collect();
        f.debug_struct("LoadedPsks").field("records", &ids).field("refused", &self.refused).finish()
    }
}

/// Why a file of a pre-shared key is refused. No message holds any content of it.
#[derive(Debug, thiserror::Error)]
#[error("{path} is refused: {fault}; remove it, and set hawser.dev/rotate on this node, since its peer holds on to the key", path = path.display())]
pub struct PskFileError {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub fault: PskFault,
}

/// What is wrong with a file of a pre-shared key.
#[derive(Debug, thiserror::Error)]
pub enum PskFault {
    /// Half written, or changed since.
    #[error("it is damaged: {0}")]
    Damaged(Damage),
    /// Written by a later version.
    #[error("it has format {0}, this version reads {FORMAT}")]
    Version(u32),
    /// It belongs to a pair without this node, or to another peer than its name says.
    #[error("it belongs to another pair than its name says")]
    Foreign,
    /// Another user may know the key.
    #[error("it belongs to user {0}")]
    Owner(u32),
    /// Group or others may have read it.
    #[error("it has mode {0:04o}, wanted 0600")]
    Mode(u32),
    /// Not a file.
    #[error("it is {0}, wanted a regular file")]
    Kind(FileKind),
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(StoreError),
}

impl From<StoreError> for PskFault {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Owner { found, .. } => Self::Owner(found),
            StoreError::Mode { found, .. } => Self::Mode(found),
            StoreError::Kind { found, .. } => Self::Kind(found),
            other @ (StoreError::Io { .. }
            | StoreError::InUse { .. }
            | StoreError::Damaged { .. }
            | StoreError::Version { .. }
            | StoreError::EqualSlots { .. }
            | StoreError::EpochsExhausted { .. }
            | StoreError::Random(_)) => Self::Unreadable(other),
        }
    }
}

impl From<Fault> for PskFault {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Version(found) => Self::Version(found),
            Fault::Damage(damage) => Self::Damaged(damage),
        }
    }
}

impl PskStore {
    /// Opens and locks `dir`, creates it (0700) if absent, and removes what interrupted writes left. `us` is this node.
    ///
    /// # Errors
    /// As [`Store::open`](super::Store::open).
    pub fn open(dir: &Path, us: NodeId) -> Result<Self, StoreError> {
        let directory = Directory::open(dir)?;
        for name in directory.names()? {
            if let Some(of) = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp")) {
                directory.remove_leftover(of)?;
            }
        }
        Ok(Self { directory, us })
    }

    /// Reads all files. One that is refused costs no other.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn load(&self) -> Result<LoadedPsks, StoreError> {
        let mut loaded = LoadedPsks { records: Vec::new(), refused: Vec::new() };
        for name in self.directory.names()?.into_iter().filter(|name| name.ends_with(SUFFIX)) {
            match self.read(&name) {
                Ok(Some(record)) => loaded.records.push(record),
                Ok(None) => {}
                Err(fault) => {
                    loaded.refused.push(PskFileError { path: self.directory.path_of(&name), fault });
                }
            }
        }
        Ok(loaded)
    }

    /// Writes a record in place of the earlier one of its peer and slot, and overwrites that one's bytes.
    ///
    /// # Errors
    /// It cannot be written; then the earlier one is still there. Or the earlier one's bytes could not be overwritten
    /// ([`Action::Wipe`](super::Action::Wipe)); then the new one is in force all the same.
    ///
    /// # Panics
    /// Never for records of an exchange of this node.
    pub fn write(&self, record: &Record) -> Result<(), StoreError> {
        let peer =
            self.peer(&record.context).expect("invariant: an exchange of this node has this node in it");
        let old = self.directory.write(&file(peer, record.context.slot()), &render(record))?;
        old.map_or(Ok(()), super::disk::Replaced::wipe)
    }

    /// Removes the record of a peer and slot, if there is one, and overwrites its bytes.
    ///
    /// # Errors
    /// It cannot be removed, or its bytes could not be overwritten.
    pub fn remove(&self, peer: &NodeId, slot: Slot) -> Result<(), StoreError> {
        let old = self.directory.remove(&file(peer, slot))?;
        old.map_or(Ok(()), super::disk::Replaced::wipe)
    }

    /// The record of a peer and slot.
    ///
    /// # Errors
    /// Its file is refused.
    pub fn get(&self, peer: &NodeId, slot: Slot) -> Result<Option<Record>, PskFileError> {
        let name = file(peer, slot);
        self.read(&name).map_err(|fault| PskFileError { path: self.directory.path_of(&name), fault })
    }

    /// When the record of a peer and slot was last written, in seconds since 1970. None: there is none, or it cannot be told.
    pub fn written(&self, peer: &NodeId, slot: Slot) -> Option<u64> {
        self.directory.modified(&file(peer, slot))
    }

    fn read(&self, name: &str) -> Result<Option<Record>, PskFault> {
        let Some(text) = self.directory.read(name, PSK_MAX)? else {
            return Ok(None);
        };
        let record = parse(&text)?;
        let peer = self.peer(&record.context).ok_or(PskFault::Foreign)?;
        if file(peer, record.context.slot()) == name { Ok(Some(record)) } else { Err(PskFault::Foreign) }
    }

    fn peer<'a>(&self, context: &'a Context) -> Option<&'a NodeId> {
        let other = match context.role(&self.us)? {
            Role::Initiator => Role::Responder,
            Role::Responder => Role::Initiator,
        };
        Some(&context.end(other).id)
    }
}

/// Name of the file of a peer and slot.
fn file(peer: &NodeId, slot: Slot) -> String {
    let fields = [peer.cluster.as_str(), peer.node.as_str()];
    let digest =
        Sha256::digest(fields.iter().flat_map(|field| with_length(field.as_bytes())).collect::<Vec<u8>>());
    let hash: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hash}.slot{}{SUFFIX}", slot.index())
}

/// The lines before the secret.
fn head(record: &Record) -> String {
    use std::fmt::Write as _;
    let mut text = format!("{} {FORMAT}\n{} {}\n", WORDS[0], WORDS[1], record.context.slot().index());
    for End { id, key, epoch } in record.context.ends() {
        write!(text, "cluster {}\nnode {}\npublic {key}\nepoch {}\n", id.cluster, id.node, epoch.0)
            .expect("invariant: writing to a string does not fail");
    }
    for (word, flag) in WORDS[10..13].iter().zip([record.confirmed, record.seen, record.peer_seen]) {
        writeln!(text, "{word} {}", u8::from(flag)).expect("invariant: writing to a string does not fail");
    }
    text
}

/// A file. The sum covers the name of the key in place of the key, as the key files' does.
fn render(record: &Record) -> Zeroizing<Vec<u8>> {
    let mut encoded = Zeroizing::new([0; 44]);
    let length = STANDARD
        .encode_slice(record.psk.expose().as_slice(), encoded.as_mut_slice())
        .expect("invariant: 32 bytes are 44 characters of base64");
    let head = head(record);
    // All room at once: a vector that grows would leave copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(PSK_MAX));
    text.extend_from_slice(head.as_bytes());
    text.extend_from_slice(b"psk ");
    text.extend_from_slice(&encoded[..length]);
    let sum = Sha256::new().chain_update(&head).chain_update(record.id.0).finalize();
    let sum: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    text.extend_from_slice(format!("\nsha256 {sum}\n").as_bytes());
    text
}

/// Reads what [`render`] writes, and nothing else.
fn parse(text: &[u8]) -> Result<Record, Fault> {
    let values = lines(text, WORDS, PSK_MAX)?;
    let wrong = |index: usize| Fault::Damage(Damage::Line { line: index + 1, wanted: WORDS[index] });
    let word = |index: usize| std::str::from_utf8(values[index]).map_err(|_| wrong(index));
    let slot = match values[1] {
        b"0" => Slot::Zero,
        b"1" => Slot::One,
        _ => return Err(wrong(1)),
    };
    let end = |first: usize| -> Result<End, Fault> {
        let cluster = word(first)?.parse().map_err(|_| wrong(first))?;
        let node = word(first + 1)?.parse().map_err(|_| wrong(first + 1))?;
        let key = word(first + 2)?.parse().map_err(|_| wrong(first + 2))?;
        let Epoch(epoch) = number(values[first + 3], first + 4)?;
        Ok(End { id: NodeId { node, cluster }, key, epoch: Epoch(epoch) })
    };
    let context = Context::new(slot, end(2)?, end(6)?).map_err(|_| wrong(6))?;
    let flag = |index: usize| match values[index] {
        b"0" => Ok(false),
        b"1" => Ok(true),
        _ => Err(wrong(index)),
    };
    // The decoder wants room for a whole number of its steps, three bytes for each four characters.
    let mut decoded = Zeroizing::new([0; 33]);
    let mut bytes = Zeroizing::new([0; 32]);
    match STANDARD.decode_slice(values[13], decoded.as_mut_slice()) {
        Ok(32) => bytes.copy_from_slice(&decoded[..32]),
        Ok(_) | Err(_) => return Err(wrong(13)),
    }
    let psk = Psk::from_bytes(bytes);
    let record = Record {
        context: Arc::new(context),
        id: psk.id(),
        psk: Arc::new(psk),
        confirmed: flag(10)?,
        seen: flag(11)?,
        peer_seen: flag(12)?,
    };
    // Also catches what no field shows: ends in the wrong order, zeros in front of a number.
    if render(&record).as_slice() == text { Ok(record) } else { Err(Fault::Damage(Damage::Checksum)) }
}

#[cfg(test)]
mod tests;
