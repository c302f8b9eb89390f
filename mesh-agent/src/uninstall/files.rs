//! Which files beneath our directories are ours. Pure: what is there is an argument.
//!
//! A directory is never deleted with all that is in it: a `stateDir: /etc` in a configuration would be the end of the node. Each
//! file goes by its name, a directory goes when nothing else is in it, and whatever has another name stays and is told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mesh_core::slot::Slot;

use crate::cni::is_pod_veth;

/// Directories that have files of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Keys, attachments, records.
    pub state: PathBuf,
    /// Sockets of the agent, in a directory that is ours if it is called `hawser`.
    pub sockets: Vec<PathBuf>,
    /// Sockets of `mesh-tunnel`, in a directory that belongs to all programs that do WireGuard.
    pub tunnel: PathBuf,
}

/// What a name stands for. Links are not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Directory,
    /// A directory at which a file system is mounted: it is emptied, and whoever mounted it takes it away.
    Mount,
    /// Anything else: it goes by being unlinked.
    File,
}

/// What is to go, in order, and what stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// To be unlinked; true: its bytes are overwritten before, since they are a secret.
    pub files: Vec<(PathBuf, bool)>,
    /// To be deleted afterwards, when they are empty.
    pub directories: Vec<PathBuf>,
    /// To be emptied, but not deleted.
    pub mounts: Vec<PathBuf>,
    /// Beneath our directories and not ours.
    pub strange: Vec<PathBuf>,
}

/// Directories in the state directory.
const DIRECTORIES: [&str; 5] = ["attachments", "audit", "keys", "pending-deletes", "psk"];
/// Files in the state directory; each is written as `NAME.tmp` first, without its own ending.
const STATE: [&str; 5] = ["api-servers", "host-traffic", "joined-clusters", "retired", "settings"];

impl Places {
    /// Directories to look into, each with how many directories deep its own may lie.
    pub(super) fn directories(&self) -> Vec<(PathBuf, usize)> {
        let mut all = vec![(self.state.clone(), 1), (self.tunnel.clone(), 0)];
        all.extend(self.run().map(|run| (run, 0)));
        all
    }

    /// Directories of the agent's sockets.
    fn run(&self) -> impl Iterator<Item = PathBuf> {
        let mut all: Vec<PathBuf> =
            self.sockets.iter().filter_map(|socket| socket.parent().map(Path::to_owned)).collect();
        all.sort();
        all.dedup();
        all.into_iter()
    }

    /// Judges everything that is in [`Self::directories`], by its path; a directory is there itself, too.
    pub fn judge(&self, found: &BTreeMap<PathBuf, Entry>) -> Judged {
        let mut judged = Judged::default();
        for (path, entry) in found {
            match (self.is_ours(path, *entry), entry) {
                (Some(secret), Entry::File) => judged.files.push((path.clone(), secret)),
                // Decided below, by what is in it.
                (Some(_), Entry::Directory) => {}
                (Some(_), Entry::Mount) => judged.mounts.push(path.clone()),
                (None, _) => judged.strange.push(path.clone()),
            }
        }
        let ours = |path: &PathBuf| self.is_ours(path, Entry::Directory).is_some();
        let stays = |path: &PathBuf| {
            judged.strange.iter().chain(&judged.mounts).any(|inside| inside.starts_with(path))
        };
        let directories = found.iter().filter(|(path, entry)| **entry == Entry::Directory && ours(path));
        judged.directories = directories.map(|(path, _)| path.clone()).filter(|path| !stays(path)).collect();
        // What is inside goes first.
        judged.directories.reverse();
        // Not ours, and nobody asked: other programs' sockets, and what is beside a socket that was put elsewhere.
        let shared = |path: &PathBuf| path.parent() == Some(&self.tunnel) || !self.is_inside_ours(path);
        judged.strange.retain(|path| !shared(path));
        judged
    }

    fn is_inside_ours(&self, path: &Path) -> bool {
        path.starts_with(&self.state) || self.run().any(|run| is_run(&run) && path.starts_with(&run))
    }

    /// None: not ours. Else whether it is a secret.
    fn is_ours(&self, path: &Path, entry: Entry) -> Option<bool> {
        let entry = if entry == Entry::Mount { Entry::Directory } else { entry };
        let name = path.file_name()?.to_str()?;
        let public = |is: bool| is.then_some(false);
        if let Ok(beneath) = path.strip_prefix(&self.state) {
            let words: Vec<&str> = beneath.iter().map(|word| word.to_str()).collect::<Option<_>>()?;
            return match (&words[..], entry) {
                ([], Entry::Directory) => Some(false),
                ([directory], Entry::Directory) => public(DIRECTORIES.contains(directory)),
                ([file], Entry::File) => {
                    let stem = file.strip_suffix(".json").or_else(|| file.strip_suffix(".tmp"));
                    public(stem.is_some_and(|stem| STATE.contains(&stem)))
                }
                ([directory, file], Entry::File) => {
                    is_in(directory, file).then(|| ["keys", "psk"].contains(directory))
                }
                _ => None,
            };
        }
        if path == self.tunnel || path.parent() == Some(&self.tunnel) {
            let device = name.split_once('.').and_then(|(device, kind)| {
                ["sock", "stats", "next", "former"].contains(&kind).then_some(device)
            });
            let slot = |name: &str| Slot::ALL.iter().any(|slot| slot.device() == name);
            return match entry {
                Entry::Directory | Entry::Mount => public(path == self.tunnel),
                Entry::File => public(device.is_some_and(slot)),
            };
        }
        match entry {
            Entry::Directory | Entry::Mount => public(is_run(path) && self.run().any(|run| run == path)),
            // What the plugin's installer tells is beside the socket.
            Entry::File => public(
                self.sockets.iter().any(|socket| socket == path)
                    || is_told(name) && self.run().any(|run| path.parent() == Some(&run)),
            ),
        }
    }
}

/// Is it what the plugin's installer tells, or a rest of that?
fn is_told(file: &str) -> bool {
    use proto::cni::INSTALLED_FILE;
    let rest = file.strip_prefix('.').and_then(|rest| rest.strip_prefix(INSTALLED_FILE));
    file == INSTALLED_FILE || rest.is_some_and(|rest| rest.ends_with(".tmp"))
}

/// Is a directory of sockets our own?
fn is_run(directory: &Path) -> bool {
    directory.file_name().is_some_and(|name| name == "hawser")
}

/// Is a file of this name in a directory of the state directory ours?
fn is_in(directory: &str, file: &str) -> bool {
    let unfinished = |inner: &dyn Fn(&str) -> bool| {
        file.strip_prefix('.').and_then(|rest| rest.strip_suffix(".tmp")).is_some_and(inner)
    };
    match directory {
        "audit" => file == "keys.jsonl",
        "keys" => is_key(file) || unfinished(&is_key),
        "psk" => is_psk(file) || unfinished(&is_psk),
        "attachments" => is_attachment(file) || unfinished(&is_pod_veth),
        // A note's temporary name ends in random digits.
        "pending-deletes" => {
            let note = |name: &str| name.split('.').next().is_some_and(is_pod_veth);
            let whole = file.ends_with(".json") || file.ends_with(".unreadable");
            whole && note(file) || unfinished(&note)
        }
        _ => false,
    }
}

fn is_key(file: &str) -> bool {
    ["epoch", "rotation", "slot0.key", "slot0.next", "slot1.key", "slot1.next"].contains(&file)
}

fn is_psk(file: &str) -> bool {
    file.ends_with(".slot0.psk") || file.ends_with(".slot1.psk")
}

fn is_attachment(file: &str) -> bool {
    let freed = |rest: &str| {
        rest.split_once('-').is_some_and(|(veth, at)| is_pod_veth(veth) && at.parse::<u64>().is_ok())
    };
    file.strip_suffix(".json").is_some_and(is_pod_veth) || file.strip_suffix(".freed").is_some_and(freed)
}

#[cfg(test)]
mod tests;
