//! The attachments of this node: one JSON file each, the only truth about which pod has which address.
//!
//! Writes are atomic and synced before anything of the attachment is in force. A freed attachment's file is renamed to
//! `<veth>-<milliseconds>.freed` and stays until its addresses have rested, so that the quarantine survives a restart.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use mesh_core::ipam::{Ipam, Millis, QUARANTINE};
use proto::cni::{AttachmentId, Bandwidth, PodRef, PortMapping};
use serde::{Deserialize, Serialize};

/// One attachment, as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Version of the form: 1.
    pub v: u16,
    /// Sandbox and interface.
    pub id: AttachmentId,
    /// CNI network.
    pub network: String,
    /// The pod.
    pub pod: Option<PodRef>,
    /// `CNI_NETNS`, for people.
    pub netns: String,
    /// Addresses, one per family.
    pub ips: Vec<IpAddr>,
    /// Hardware address of the pod's end, where one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Host ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// Rate limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
}

impl Attachment {
    /// Its file could not be read, so nothing but its addresses is known ([`Table::recover`]): a runtime names every sandbox.
    pub fn is_recovered(&self) -> bool {
        self.id.container_id.is_empty()
    }
}

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AttachmentsError {
    /// A file operation failed.
    #[error("Could not {what} {path}: {source}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AttachmentsError {
    let path = path.to_owned();
    move |source| AttachmentsError::Io { what, path, source }
}

/// What was found at start.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Attachments by veth.
    pub attachments: BTreeMap<String, Attachment>,
    /// When their files were written, which says no more than which is newer.
    pub written: BTreeMap<String, SystemTime>,
    /// Addresses at rest and since when, in milliseconds since boot.
    pub resting: Vec<(IpAddr, Millis)>,
    /// Files that could not be read, with the reason: left where they are, their addresses unknown.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// The directory.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Opens or makes it, mode 0700.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(path: &Path) -> Result<Self, AttachmentsError> {
        use std::os::unix::fs::DirBuilderExt;
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(failed("create directory", path))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Reads everything. Temporary files of a crash are removed.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn load(&self) -> Result<Loaded, AttachmentsError> {
        let mut loaded = Loaded::default();
        let entries = fs::read_dir(&self.path).map_err(failed("list", &self.path))?;
        for entry in entries {
            let path = entry.map_err(failed("list", &self.path))?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
            if let Some(veth) = name.strip_suffix(".json") {
                match read(&path) {
                    Ok(attachment) => {
                        if let Ok(at) = fs::metadata(&path).and_then(|file| file.modified()) {
                            loaded.written.insert(veth.to_owned(), at);
                        }
                        loaded.attachments.insert(veth.to_owned(), attachment);
                    }
                    Err(reason) => loaded.unreadable.push((path, reason)),
                }
            } else if let Some(freed) = name.strip_suffix(".freed") {
                let at = freed.rsplit_once('-').and_then(|(_, at)| at.parse().ok()).map(Millis);
                match (at, read(&path)) {
                    (Some(at), Ok(attachment)) => {
                        loaded.resting.extend(attachment.ips.into_iter().map(|ip| (ip, at)));
                    }
                    // An address that rests too short is better than a pool that leaks.
                    (None, _) | (_, Err(_)) => remove(&path)?,
                }
            } else {
                remove(&path)?;
            }
        }
        Ok(loaded)
    }

    /// Writes an attachment; on return it is on disk.
    ///
    /// # Errors
    /// It could not be written; nothing is left.
    pub fn write(&self, veth: &str, attachment: &Attachment) -> Result<(), AttachmentsError> {
        let path = self.file(veth);
        let temporary = self.path.join(format!(".{veth}.tmp"));
        let result = self.write_through(&temporary, &path, attachment);
        if result.is_err() {
            // Best effort: the error that counts is already there.
            drop(fs::remove_file(&temporary));
        }
        result
    }

    fn write_through(
        &self,
        temporary: &Path,
        path: &Path,
        attachment: &Attachment,
    ) -> Result<(), AttachmentsError> {
        use std::os::unix::fs::OpenOptionsExt;
        let text = serde_json::to_vec(attachment).map_err(io::Error::from);
        let text = text.map_err(failed("encode", path))?;
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(temporary);
        let mut file = file.map_err(failed("create", temporary))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed("write", temporary))?;
        fs::rename(temporary, path).map_err(failed("rename to", path))?;
        self.sync()
    }

    /// Frees an attachment at `now` (milliseconds since boot). Gone already is fine.
    ///
    /// # Errors
    /// It could not be renamed.
    pub fn free(&self, veth: &str, now: Millis) -> Result<(), AttachmentsError> {
        let (from, to) = (self.file(veth), self.path.join(format!("{veth}-{}.freed", now.0)));
        match fs::rename(&from, &to) {
            Ok(()) => self.sync(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("rename", &from)(error)),
        }
    }

    /// Forgets what was freed longer ago than the quarantine.
    ///
    /// # Errors
    /// A file could not be removed.
    pub fn forget_rested(&self, now: Millis) -> Result<(), AttachmentsError> {
        let entries = fs::read_dir(&self.path).map_err(failed("list", &self.path))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let freed = name.to_str().and_then(|n| n.strip_suffix(".freed")).and_then(|n| n.rsplit_once('-'));
            let at = freed.and_then(|(_, at)| at.parse::<u64>().ok());
            // A time ahead is of before a reboot; what rests is in memory by now.
            if at.is_some_and(|at| at > now.0 || now.0 - at >= QUARANTINE) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    fn file(&self, veth: &str) -> PathBuf {
        self.path.join(format!("{veth}.json"))
    }

    fn sync(&self) -> Result<(), AttachmentsError> {
        File::open(&self.path).and_then(|dir| dir.sync_all()).map_err(failed("sync", &self.path))
    }
}

fn remove(path: &Path) -> Result<(), AttachmentsError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Attachment, String> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let attachment: Attachment = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if attachment.v == 1 {
        Ok(attachment)
    } else {
        Err(format!("version {} is unknown, wanted 1", attachment.v))
    }
}

/// Attachments and addresses in memory: what the files say, and what is being made or unmade right now.
#[derive(Debug)]
pub struct Table {
    /// Addresses.
    pub ipam: Ipam,
    /// Attachments by veth.
    pub attachments: BTreeMap<String, Attachment>,
    /// Veths that a request is working on: nobody else touches them.
    pub busy: BTreeSet<String>,
    /// Which is newer: by veth a number that grows.
    made: BTreeMap<String, u64>,
}

impl Table {
    /// From what was loaded.
    pub fn new(mut ipam: Ipam, loaded: Loaded, now: Millis) -> Self {
        for attachment in loaded.attachments.values() {
            for address in &attachment.ips {
                if !ipam.claim(*address) {
                    tracing::error!(%address, id = ?attachment.id, "Two attachments hold one address");
                }
            }
        }
        for (address, at) in loaded.resting {
            ipam.rest(address, at.min(now));
        }
        let mut written: Vec<_> = loaded.written.into_iter().map(|(veth, at)| (at, veth)).collect();
        written.sort();
        let made = (0_u64..).zip(written).map(|(number, (_, veth))| (veth, number)).collect();
        Self { ipam, attachments: loaded.attachments, busy: BTreeSet::new(), made }
    }

    /// Takes note of an attachment that is being made.
    pub fn insert(&mut self, veth: &str, attachment: Attachment) {
        let next = self.made.values().max().map_or(0, |last| last + 1);
        self.made.insert(veth.to_owned(), next);
        self.attachments.insert(veth.to_owned(), attachment);
    }

    /// Forgets an attachment. Returns what it was.
    pub fn remove(&mut self, veth: &str) -> Option<Attachment> {
        self.made.remove(veth);
        self.attachments.remove(veth)
    }

    /// The attachments, the newest first. A pod has two where its former sandbox was never taken down, as after a reboot,
    /// until the reaper finds that its link is gone.
    pub fn newest_first(&self) -> Vec<(&String, &Attachment)> {
        let mut all: Vec<_> = self.attachments.iter().collect();
        all.sort_by_key(|(veth, _)| Reverse(self.made.get(*veth).copied()));
        all
    }

    /// Takes note of a veth whose file cannot be read, by the addresses that are routed to it: they stay taken until the
    /// link goes or DEL names it.
    pub fn recover(&mut self, veth: &str, ips: Vec<IpAddr>) {
        for address in &ips {
            self.ipam.claim(*address);
        }
        let id = AttachmentId { container_id: String::new(), ifname: String::new() };
        let attachment = Attachment {
            v: 1,
            id,
            network: String::new(),
            pod: None,
            netns: String::new(),
            ips,
            mac: None,
            port_mappings: Vec::new(),
            bandwidth: None,
        };
        self.attachments.entry(veth.to_owned()).or_insert(attachment);
    }

    /// Another interface of the same container.
    pub fn sibling(&self, id: &AttachmentId) -> Option<&AttachmentId> {
        let mut ids = self.attachments.values().map(|attachment| &attachment.id);
        ids.find(|other| other.container_id == id.container_id && other.ifname != id.ifname)
    }

    /// Addresses by veth, for plans.
    pub fn addresses(&self) -> BTreeMap<String, BTreeSet<IpAddr>> {
        self.attachments.iter().map(|(veth, a)| (veth.clone(), a.ips.iter().copied().collect())).collect()
    }
}

#[cfg(test)]
mod tests;
