//! What is there: nothing is changed, nothing is decided.
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "netlink has more kinds of links and attributes than concern us"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use datapath::Remains;
use futures::TryStreamExt as _;
use mesh_core::slot::Slot;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, StatxAttributes, StatxFlags, statx};

use super::files::Entry;
use super::plan::{Device, Found, Want, is_pods};
use crate::attachments::Attachment;
use crate::claim::{Claim, ClaimError};
use crate::config::{Config, DataPath};
use crate::host::Before;
use crate::kernel::{Kernel, KernelError, asked};

/// What was seen.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) found: Found,
    /// What could not be seen, with the reason.
    pub(super) unseen: Vec<String>,
    pub(super) taken: Taken,
}

/// Directories that are an agent's while one runs: no other one can have them for as long as this lives.
#[derive(Debug, Default)]
pub(super) struct Taken {
    _state: Option<Claim>,
    /// Of the pins.
    pub(super) remains: Option<Remains>,
    _keys: Option<OwnedFd>,
}

/// Looks at everything that [`super::plan::plan`] wants to know.
///
/// # Errors
/// Links, routes and rules cannot be listed.
pub(super) async fn look(config: &Config, want: &Want, kernel: &Kernel) -> anyhow::Result<Looked> {
    let state = kernel.observe().await?;
    let devices = devices(kernel).await?;
    let lo = state.links.get("lo").map(|lo| lo.index);
    let found = Found {
        devices,
        on_lo: state.addresses.iter().filter(|(index, _)| Some(*index) == lo).map(|(_, net)| *net).collect(),
        routes: state.routes,
        rules: state.rules,
        ..Found::default()
    };
    let (config, want) = (config.clone(), want.clone());
    tokio::task::spawn_blocking(move || rest(&config, &want, found))
        .await
        .context("a look at the node ended early")
}

/// Devices by name, with their kinds.
pub(super) async fn devices(kernel: &Kernel) -> Result<BTreeMap<String, Device>, KernelError> {
    let _one = kernel.one_dump().await;
    let mut all = BTreeMap::new();
    let mut dump = kernel.handle().link().get().execute();
    while let Some(message) = dump.try_next().await.or_else(asked(|| "Could not list links".into()))? {
        all.extend(device(&message));
    }
    Ok(all)
}

fn device(message: &LinkMessage) -> Option<(String, Device)> {
    let (mut name, mut kind) = (None, Device::Other);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    kind = match info {
                        LinkInfo::Kind(InfoKind::Veth) => Device::Veth,
                        LinkInfo::Kind(InfoKind::Tun) => Device::Tun,
                        LinkInfo::Kind(InfoKind::Wireguard) => Device::WireGuard,
                        LinkInfo::Kind(InfoKind::Ifb) => Device::Ifb,
                        _ => kind,
                    };
                }
            }
            _ => {}
        }
    }
    Some((name?, kind))
}

/// What needs system calls that wait.
fn rest(config: &Config, want: &Want, mut found: Found) -> Looked {
    let mut unseen = Vec::new();
    // First: an agent has it before anything else.
    let state = match Claim::take_if_there(&want.places.state) {
        Ok(state) => state,
        Err(ClaimError::InUse { path }) => {
            runs(&mut found, &format!("it has the state directory {}", path.display()));
            None
        }
        Err(error) => {
            unseen.push(error.to_string());
            None
        }
    };
    let remains = pins(config, &mut found, &mut unseen);
    let taken = Taken { _state: state, remains, _keys: keys(config, &mut found, &mut unseen) };
    running(config, want, &mut found);
    let attachments = want.places.state.join("attachments");
    for (name, kind) in &found.devices {
        if is_pods(name, *kind)
            && let Some(pod) = pod(&attachments.join(format!("{name}.json")))
        {
            found.pods.insert(name.clone(), pod);
        }
    }
    match crate::nft::tables() {
        Ok(tables) => found.tables = tables,
        Err(error) => unseen.push(format!("nf_tables tables: {error}")),
    }
    match crate::host::accept_rules(mesh_core::numbers::POD_VETH_PREFIX) {
        Ok(rules) => found.accepts = rules,
        Err(error) => unseen.push(format!("our rules in nf_tables chains of others: {error}")),
    }
    found.before = Before::load(&want.places.state);
    let proc_sys = crate::container::proc_sys();
    let now =
        |key: &String| Some((key.clone(), fs::read_to_string(proc_sys.join(key)).ok()?.trim().to_owned()));
    found.settings = found.before.0.keys().filter_map(now).collect();
    for (directory, depth) in want.places.directories() {
        // What it leads to holds keys, and is not to be found from here once the link is gone.
        if directory.is_symlink() {
            let at = directory.display();
            unseen.push(format!(
                "{at} is a link: name the directory itself in the configuration, and look again"
            ));
            continue;
        }
        if let Err((path, error)) = walk(&directory, depth, &mut found.files) {
            unseen.push(format!("{}: {error}", path.display()));
        }
    }
    Looked { found, unseen, taken }
}

/// Pins and filters of the data path; taking the directory tells whether an agent has it.
fn pins(config: &Config, found: &mut Found, unseen: &mut Vec<String>) -> Option<Remains> {
    if config.data_path == DataPath::Enforce
        && let Err(why) = crate::container::bpffs_is_mounted(&config.bpf_pin_dir)
    {
        unseen.push(format!("the data path: {why}"));
    }
    let remains = match Remains::open(&config.bpf_pin_dir) {
        Ok(remains) => remains,
        Err(datapath::Error::InUse { path }) => {
            runs(found, &format!("it has the data path in {}", path.display()));
            return None;
        }
        Err(error) => {
            unseen.push(error.to_string());
            return None;
        }
    };
    match remains.entries() {
        Ok((layouts, others)) => {
            found.layouts = layouts;
            found.pins = remains.root().map(|root| (root.to_owned(), others));
        }
        Err(error) => unseen.push(error.to_string()),
    }
    match remains.filters() {
        Ok(filters) => found.filters = filters,
        Err(error) => unseen.push(error.to_string()),
    }
    Some(remains)
}

/// The keys, taken as an agent takes them.
fn keys(config: &Config, found: &mut Found, unseen: &mut Vec<String>) -> Option<OwnedFd> {
    let path = config.state_dir.join("keys");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock = match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(lock) => lock,
        Err(rustix::io::Errno::NOENT) => return None,
        Err(error) => {
            unseen.push(format!("{}: {error}", path.display()));
            return None;
        }
    };
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Some(lock),
        Err(_) => {
            runs(found, &format!("it has the keys in {}", path.display()));
            None
        }
    }
}

/// Who answers on our sockets.
fn running(config: &Config, want: &Want, found: &mut Found) {
    if UnixStream::connect(&config.cni_socket).is_ok() {
        runs(found, &format!("it answers on {}", config.cni_socket.display()));
    }
    for slot in Slot::ALL {
        let socket = want.places.tunnel.join(format!("{slot}.sock"));
        if UnixStream::connect(&socket).is_ok() {
            found.running.push(format!(
                "mesh-tunnel runs, it answers on {}: end it first (kubectl -n hawser-system delete daemonset mesh-tunnel)",
                socket.display()
            ));
        }
    }
}

/// An agent runs: said once, by the first sign of it.
fn runs(found: &mut Found, how: &str) {
    if found.running.is_empty() {
        found.running.push(format!(
            "mesh-agent runs, {how}: end it first (kubectl -n hawser-system delete daemonset mesh-agent)"
        ));
    }
}

/// The pod of an attachment, for people.
fn pod(file: &Path) -> Option<String> {
    let attachment: Attachment = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    let pod = attachment.pod?;
    Some(format!("{}/{}", pod.namespace, pod.name))
}

/// A directory and what is in it, so deep. One that is not there is fine; a link to one is no directory.
fn walk(path: &Path, depth: usize, all: &mut BTreeMap<PathBuf, Entry>) -> Result<(), (PathBuf, io::Error)> {
    let failed = |error| (path.to_owned(), error);
    let entry = match entry(path) {
        Ok(entry) => entry,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    all.insert(path.to_owned(), entry);
    if entry == Entry::File {
        return Ok(());
    }
    for found in fs::read_dir(path).map_err(failed)? {
        let found = found.map_err(failed)?.path();
        match depth.checked_sub(1) {
            Some(depth) => walk(&found, depth, all)?,
            None => {
                all.insert(found.clone(), self::entry(&found).map_err(failed)?);
            }
        }
    }
    Ok(())
}

fn entry(path: &Path) -> io::Result<Entry> {
    let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE)?;
    if FileType::from_raw_mode(found.stx_mode.into()) != FileType::Directory {
        return Ok(Entry::File);
    }
    // A kernel that does not say (before 5.8) refuses to delete it.
    let mounted = found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    Ok(if mounted { Entry::Mount } else { Entry::Directory })
}
