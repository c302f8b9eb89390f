//! Programs on links. What is attached is read from the kernel each time, never from memory.
//!
//! With tcx (Linux 6.6) each hook is a link of the BPF kind, pinned as `links/<kind>-<ifindex>-<hook>`: it stays when the agent
//! dies, its program is replaced atomically, and it is dead when its device is gone, even if another device has the index
//! by now. Older kernels have clsact and cls_bpf: the filter lies in the device and is replaced in place by its handle.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use crate::clsact;
use crate::error::{Error, Result};
use crate::load::Datapath;
use crate::program::{Hook, LinkKind, Program};
use crate::sys;

/// How programs get onto links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// Links of the BPF kind, before all others of the hook.
    Tcx,
    /// Filters of a clsact queueing discipline.
    Clsact,
}

/// A program on a link, as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// Index of the link.
    pub ifindex: u32,
    /// What the link was taken for.
    pub kind: LinkKind,
    /// Where the program is.
    pub hook: Hook,
    /// It is the program that this process loaded; false: a former agent's.
    pub current: bool,
}

impl Datapath {
    /// How this process attaches.
    pub const fn mode(&self) -> AttachMode {
        self.mode
    }

    /// Puts the programs of a kind onto a link, or replaces those that a former agent put there. Afterwards the link is in the
    /// map `devices`, and has no program of ours of another kind.
    ///
    /// # Errors
    /// The kernel refuses one of them: those before it stay, and the link is not in `devices`.
    pub fn attach(&self, kind: LinkKind, ifindex: u32) -> Result<()> {
        for (program, hook) in kind.programs() {
            let place = Place { kind, ifindex, hook: *hook };
            match self.mode {
                AttachMode::Tcx => self.attach_tcx(place, *program)?,
                AttachMode::Clsact => {
                    clsact::attach(ifindex, *hook, kind, *program, self.program_fd(*program)).map_err(
                        |source| Error::Attach { ifindex, action: "attach", program: program.name(), source },
                    )?;
                }
            }
        }
        for other in LinkKind::ALL.into_iter().filter(|other| *other != kind) {
            self.take_off(other, ifindex)?;
        }
        self.maps().devices.put(&ifindex, &kind.number())
    }

    /// Takes all programs of ours off a link, which may be gone. Returns whether there was one.
    pub fn detach(&self, ifindex: u32) -> Result<bool> {
        self.maps().devices.delete(&ifindex)?;
        let mut any = false;
        for kind in LinkKind::ALL {
            any |= self.take_off(kind, ifindex)?;
        }
        Ok(any)
    }

    /// Are all programs of this kind on the link, and those of this process?
    pub fn attached(&self, kind: LinkKind, ifindex: u32) -> Result<bool> {
        let found = match self.mode {
            AttachMode::Tcx => self.tcx_attachments(Some(ifindex))?,
            AttachMode::Clsact => self.clsact_attachments(ifindex)?,
        };
        let is_there = |hook| {
            found.iter().any(|found| {
                found.kind == kind && found.ifindex == ifindex && found.hook == hook && found.current
            })
        };
        Ok(kind.programs().iter().all(|(_, hook)| is_there(*hook)))
    }

    /// All programs of ours on links of this network namespace, in order.
    pub fn attachments(&self) -> Result<Vec<Attachment>> {
        let mut all = match self.mode {
            AttachMode::Tcx => self.tcx_attachments(None)?,
            AttachMode::Clsact => {
                let links = clsact::links().map_err(|source| Error::Attach {
                    ifindex: 0,
                    action: "list the links for",
                    program: "all programs",
                    source,
                })?;
                let mut all = Vec::new();
                for ifindex in links {
                    all.extend(self.clsact_attachments(ifindex)?);
                }
                all
            }
        };
        all.sort_unstable();
        Ok(all)
    }

    /// Deletes pins of links that are gone, and entries of `devices` for links without a program of ours. Returns the indexes.
    pub fn forget_dead_links(&self) -> Result<BTreeSet<u32>> {
        let mut dead = BTreeSet::new();
        for (place, path) in self.pins()? {
            if self.live_link(place, &path)?.is_none() {
                remove(&path)?;
                dead.insert(place.ifindex);
            }
        }
        // In this order: a link that gets its programs meanwhile is not in the first list, or is in the second.
        let devices = self.maps().devices.entries()?;
        let live: BTreeSet<u32> = self.attachments()?.iter().map(|found| found.ifindex).collect();
        for (ifindex, _) in devices {
            if !live.contains(&ifindex) {
                self.maps().devices.delete(&ifindex)?;
                dead.insert(ifindex);
            }
        }
        Ok(dead)
    }

    fn attach_tcx(&self, place: Place, program: Program) -> Result<()> {
        let path = self.pin_path(place);
        let error = |action| {
            move |source| Error::Attach { ifindex: place.ifindex, action, program: program.name(), source }
        };
        if let Some(link) = self.live_link(place, &path)? {
            match sys::link_update(link.as_fd(), self.program_fd(program)) {
                Ok(()) => return Ok(()),
                // The device went away since.
                Err(refused) if refused.raw_os_error() == Some(libc::ENOLINK) => {}
                Err(refused) => return Err(error("replace")(refused)),
            }
        }
        // Whatever is pinned there is dead: its device is gone.
        remove(&path)?;
        let egress = place.hook == Hook::Egress;
        let link =
            sys::link_create_tcx(self.program_fd(program), place.ifindex, egress).map_err(error("attach"))?;
        sys::pin(link.as_fd(), &path).map_err(error("pin the link of"))
    }

    /// The link that is pinned there, if it still is on the device that its name says.
    fn live_link(&self, place: Place, path: &Path) -> Result<Option<OwnedFd>> {
        let failed = |source| Error::Directory { path: path.to_owned(), action: "open", source };
        let Some(link) = sys::open(path).map_err(failed)? else { return Ok(None) };
        let info = sys::link_info(link.as_fd()).map_err(failed)?;
        let is_it = info.tcx && info.ifindex == place.ifindex && info.egress == (place.hook == Hook::Egress);
        Ok(is_it.then_some(link))
    }

    fn tcx_attachments(&self, only: Option<u32>) -> Result<Vec<Attachment>> {
        let mut found = Vec::new();
        for (place, path) in self.pins()? {
            if only.is_some_and(|only| only != place.ifindex) {
                continue;
            }
            let Some(link) = self.live_link(place, &path)? else { continue };
            let info = sys::link_info(link.as_fd()).map_err(|source| Error::Directory {
                path: path.clone(),
                action: "read",
                source,
            })?;
            found.push(self.attachment(place, info.program));
        }
        Ok(found)
    }

    fn clsact_attachments(&self, ifindex: u32) -> Result<Vec<Attachment>> {
        let mut found = Vec::new();
        for hook in [Hook::Ingress, Hook::Egress] {
            let filters = clsact::filters(ifindex, hook).map_err(|source| Error::Attach {
                ifindex,
                action: "look for",
                program: "all programs",
                source,
            })?;
            for (kind, program) in filters {
                found.push(self.attachment(Place { kind, ifindex, hook }, program));
            }
        }
        Ok(found)
    }

    fn attachment(&self, place: Place, program: u32) -> Attachment {
        let Place { kind, ifindex, hook } = place;
        let wanted = kind.programs().iter().find(|(_, its)| *its == hook).map(|(program, _)| *program);
        let current = wanted.is_some_and(|wanted| self.program_id(wanted) == program);
        Attachment { ifindex, kind, hook, current }
    }

    fn take_off(&self, kind: LinkKind, ifindex: u32) -> Result<bool> {
        let mut any = false;
        for (program, hook) in kind.programs() {
            let place = Place { kind, ifindex, hook: *hook };
            // Both ways: a former agent may have used the other.
            any |= remove(&self.pin_path(place))?;
            if self.mode == AttachMode::Clsact {
                any |= clsact::detach(ifindex, *hook, kind).map_err(|source| Error::Attach {
                    ifindex,
                    action: "take off",
                    program: program.name(),
                    source,
                })?;
            }
        }
        Ok(any)
    }

    fn pin_path(&self, place: Place) -> PathBuf {
        self.links_directory().join(place.name())
    }

    fn pins(&self) -> Result<Vec<(Place, PathBuf)>> {
        let directory = self.links_directory();
        let failed = |source: io::Error| Error::Directory { path: directory.clone(), action: "list", source };
        let mut pins = Vec::new();
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            pins.extend(Place::from_name(name).map(|place| (place, path.clone())));
        }
        pins.sort_unstable();
        Ok(pins)
    }
}

/// Takes a link off its device, if that still is, and deletes its pin. Returns whether it was there.
pub(crate) fn remove(path: &Path) -> Result<bool> {
    let failed = |action| move |source| Error::Directory { path: path.to_owned(), action, source };
    let Some(link) = sys::open(path).map_err(failed("open"))? else { return Ok(false) };
    match sys::link_detach(link.as_fd()) {
        Ok(()) => {}
        // Its device is gone.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOLINK | libc::ENODEV)) => {}
        Err(error) => return Err(failed("take off the link of")(error)),
    }
    fs::remove_file(path).map_err(failed("delete"))?;
    Ok(true)
}

/// Where a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    kind: LinkKind,
    ifindex: u32,
    hook: Hook,
}

impl Place {
    fn name(self) -> String {
        format!("{}-{}-{}", self.kind.name(), self.ifindex, self.hook.name())
    }

    fn from_name(name: &str) -> Option<Self> {
        let mut words = name.split('-');
        let (kind, ifindex, hook) = (words.next()?, words.next()?, words.next()?);
        let kind = LinkKind::ALL.into_iter().find(|known| known.name() == kind)?;
        let hook = [Hook::Ingress, Hook::Egress].into_iter().find(|known| known.name() == hook)?;
        Some(Self { kind, ifindex: ifindex.parse().ok()?, hook }).filter(|place| place.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_pins_come_back() {
        for kind in LinkKind::ALL {
            for (_, hook) in kind.programs() {
                let place = Place { kind, ifindex: 17, hook: *hook };
                assert_eq!(Place::from_name(&place.name()), Some(place));
            }
        }
        for odd in ["", "pod-7", "pod-x-ingress", "pod-07-ingress", "host-7-ingress", "pod-7-ingress-2"] {
            assert_eq!(Place::from_name(odd), None, "{odd}");
        }
    }
}
