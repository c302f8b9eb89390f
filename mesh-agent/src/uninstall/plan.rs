//! What of a node is ours, in which order it goes, and what keeps it. Pure.
//!
//! ```text
//!   refused: an agent or a tunnel runs, or pods are connected and nobody said to cut them
//!      │ else
//!      ▼
//!   pods' links ──► what carries ──► what refuses ──► settings, files ──► the Node
//!                                    └──── only when no pod's link is left ─────┘
//! ```
//!
//! As long as a pod has its link, what keeps its packets from the uplink stays, and so does what a later attempt has to know.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use datapath::Filter;
use ipnet::IpNet;
use mesh_core::numbers::{RULE_HOSTS_END, RULE_PODS, TABLE_HOSTS, TABLE_NODES, TABLE_PODS};
use mesh_core::plan::{Route, Rule, TABLE_MAIN, Target};
use mesh_core::slot::Slot;

use super::files::{Entry, Places};
use crate::cni::is_pod_veth;
use crate::host::{AcceptRule, Before};

/// What kind of network device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Device {
    /// One end of a pair.
    Veth,
    /// Of a program.
    Tun,
    /// The kernel's WireGuard.
    WireGuard,
    /// Through which a shaped pod sends.
    Ifb,
    /// None of these.
    Other,
}

/// What was seen of a node.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Why an agent or a tunnel seems to run, a sentence each with the remedy.
    pub running: Vec<String>,
    /// Devices by name.
    pub devices: BTreeMap<String, Device>,
    /// Pods by the name of their link, as far as their files can be read.
    pub pods: BTreeMap<String, String>,
    /// Addresses on `lo`.
    pub on_lo: BTreeSet<IpNet>,
    /// Routes with our protocol.
    pub routes: BTreeSet<Route>,
    /// Rules with our protocol.
    pub rules: BTreeSet<Rule>,
    /// Tables of the family `inet`.
    pub tables: BTreeSet<String>,
    /// Our rules in chains of others.
    pub accepts: Vec<AcceptRule>,
    /// Programs of ours as filters on links.
    pub filters: Vec<Filter>,
    /// Pinned layouts of the data path.
    pub layouts: Vec<PathBuf>,
    /// The directory of pins, if it is there, and what else is in it.
    pub pins: Option<(PathBuf, Vec<PathBuf>)>,
    /// Settings of the host that an agent changed.
    pub before: Before,
    /// Their values now.
    pub settings: BTreeMap<String, String>,
    /// Files beneath our directories.
    pub files: BTreeMap<PathBuf, Entry>,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Want {
    /// Pod CIDRs of the cluster.
    pub pod_cidrs: Vec<IpNet>,
    /// Our directories.
    pub places: Places,
    /// Pods that are still connected lose their links.
    pub cut_pods: bool,
    /// Forwarding is switched off again if it was off.
    pub reset_forwarding: bool,
    /// The record of destroyed keys stays.
    pub keep_audit: bool,
    /// The Node object is left alone.
    pub keep_node: bool,
}

/// One thing to take away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The host's end of a pod's link, and the pod's with it.
    Pod(String),
    /// A device.
    Device(String),
    /// A mesh address on `lo`.
    Address(IpAddr),
    /// A rule of ours in a chain of somebody else.
    Accept(AcceptRule),
    /// A route.
    Route(Route),
    /// A rule.
    Rule(Rule),
    /// A program on a link.
    Filter(Filter),
    /// Pinned programs, which are taken off their links, and maps.
    Layout(PathBuf),
    /// The directory of pins.
    Pins(PathBuf),
    /// A table of the family `inet`.
    Table(String),
    /// A setting of the host.
    Setting {
        /// Path below `/proc/sys`.
        key: String,
        /// What it was.
        value: String,
    },
    /// A file; a secret is overwritten before.
    File {
        /// Where.
        path: PathBuf,
        /// Whether it is one.
        secret: bool,
    },
    /// An empty directory.
    Directory(PathBuf),
    /// Annotation and start-up taint of the Node object.
    Node,
}

/// When a step is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Pods are cut.
    Pods,
    /// What carries packets.
    Carries,
    /// What refuses them: not while a pod has its link.
    Refuses,
    /// What a later attempt would have to know: neither.
    Rest,
}

impl Step {
    /// When it is done.
    pub fn stage(&self) -> Stage {
        match self {
            Self::Pod(_) => Stage::Pods,
            Self::Device(_) | Self::Address(_) | Self::Accept(_) => Stage::Carries,
            Self::Route(route) => match route.target {
                Target::Device { .. } => Stage::Carries,
                Target::Unreachable => Stage::Refuses,
            },
            Self::Rule(_) | Self::Filter(_) | Self::Layout(_) | Self::Pins(_) | Self::Table(_) => {
                Stage::Refuses
            }
            Self::Setting { .. } | Self::File { .. } | Self::Directory(_) | Self::Node => Stage::Rest,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(veth) => write!(f, "link {veth} of a pod"),
            Self::Device(name) => write!(f, "link {name}"),
            Self::Address(address) => write!(f, "address {address} on lo"),
            Self::Accept(rule) => write!(f, "{rule}"),
            Self::Route(Route { table, prefix, target }) => match target {
                Target::Device { device, .. } => write!(f, "route {prefix} dev {device} table {table}"),
                Target::Unreachable => write!(f, "route unreachable {prefix} table {table}"),
            },
            Self::Rule(rule) => {
                write!(f, "rule {} ", rule.priority)?;
                rule.from.iter().try_for_each(|from| write!(f, "from {from} "))?;
                rule.to.iter().try_for_each(|to| write!(f, "to {to} "))?;
                write!(f, "({:?})", rule.family)
            }
            Self::Filter(Filter { ifindex, hook, kind }) => {
                write!(f, "program on device {ifindex} ({kind}, {hook:?}, clsact)")
            }
            Self::Layout(path) => write!(f, "programs and maps pinned in {}", path.display()),
            Self::Pins(path) | Self::Directory(path) => write!(f, "directory {}", path.display()),
            Self::Table(name) => write!(f, "nf_tables table inet {name}"),
            Self::Setting { key, value } => write!(f, "our value of /proc/sys/{key}, which is {value} again"),
            Self::File { path, .. } => write!(f, "file {}", path.display()),
            Self::Node => write!(f, "annotation and start-up taint of the Node object"),
        }
    }
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order; stages come one after the other.
    pub steps: Vec<Step>,
    /// What stays though somebody might have expected otherwise, and why: a sentence each.
    pub stays: Vec<String>,
}

/// Decides.
///
/// # Errors
/// Why nothing may be touched, a sentence each with the remedy.
pub fn plan(found: &Found, want: &Want) -> Result<Plan, Vec<String>> {
    let pods: Vec<&String> = found.pods_links().collect();
    let mut refused = found.running.clone();
    if !want.cut_pods && !pods.is_empty() {
        refused.push(connected(found, &pods));
    }
    if !refused.is_empty() {
        return Err(refused);
    }
    let mut plan = Plan::default();
    plan.steps.extend(pods.into_iter().cloned().map(Step::Pod));
    devices(found, &mut plan);
    addresses(found, want, &mut plan);
    plan.steps.extend(found.accepts.iter().cloned().map(Step::Accept));
    routes(found, &mut plan);
    data_path(found, &mut plan);
    let all_back = settings(found, want, &mut plan);
    files(found, want, all_back, &mut plan);
    if !want.keep_node {
        plan.steps.push(Step::Node);
    }
    // Stable: within a stage the order is that from above.
    plan.steps.sort_by_key(Step::stage);
    Ok(plan)
}

impl Found {
    /// Links of pods.
    pub(super) fn pods_links(&self) -> impl Iterator<Item = &String> {
        self.devices.iter().filter(|(name, kind)| is_pods(name, **kind)).map(|(name, _)| name)
    }
}

/// Is this the host's end of a pod's link?
pub(super) fn is_pods(name: &str, kind: Device) -> bool {
    kind == Device::Veth && is_pod_veth(name)
}

/// Most pods that a sentence names.
const NAMED: usize = 10;

fn connected(found: &Found, links: &[&String]) -> String {
    let name = |link: &&&String| found.pods.get(**link).map_or(link.as_str(), String::as_str).to_owned();
    let mut names: Vec<String> = links.iter().take(NAMED).map(|link| name(&link)).collect();
    if links.len() > NAMED {
        names.push(format!("{} more", links.len() - NAMED));
    }
    format!(
        "{} pods are connected ({}): without what protects them their packets would leave this node in plaintext. Drain the node, \
         and delete pods of DaemonSets that are not on its own network; or cut them off with --cut-pods",
        links.len(),
        names.join(", ")
    )
}

fn devices(found: &Found, plan: &mut Plan) {
    let slot = |name: &str| Slot::ALL.iter().any(|slot| slot.device() == name);
    for (name, kind) in &found.devices {
        let ours = match kind {
            Device::Tun => slot(name) || name == crate::hold::DEVICE,
            Device::WireGuard => slot(name),
            Device::Ifb => crate::shaping::shaped(name).is_some(),
            Device::Veth | Device::Other => false,
        };
        let called_so = slot(name) || name == crate::hold::DEVICE || is_pod_veth(name);
        if ours {
            plan.steps.push(Step::Device(name.clone()));
        } else if called_so && !is_pods(name, *kind) {
            plan.stays.push(format!("link {name}: it has a name of ours, but is no link that Hawser makes"));
        }
    }
}

fn addresses(found: &Found, want: &Want, plan: &mut Plan) {
    let host = |net: &&IpNet| net.prefix_len() == net.max_prefix_len();
    let inside = |net: &&IpNet| want.pod_cidrs.iter().any(|cidr| cidr.contains(*net));
    plan.steps.extend(found.on_lo.iter().filter(host).filter(inside).map(|net| Step::Address(net.addr())));
}

/// In a table of ours all with our protocol; in `main` those that refuse. Others may use the number elsewhere.
fn routes(found: &Found, plan: &mut Plan) {
    let ours = |route: &&Route| match route.table {
        TABLE_PODS | TABLE_NODES | TABLE_HOSTS => true,
        TABLE_MAIN => route.target == Target::Unreachable,
        _ => false,
    };
    plan.steps.extend(found.routes.iter().filter(ours).cloned().map(Step::Route));
    // One more: of the rule that makes sockets look up their routes.
    let priorities = RULE_PODS..=RULE_HOSTS_END + 1;
    let rules = found.rules.iter().filter(|rule| priorities.contains(&rule.priority));
    plan.steps.extend(rules.cloned().map(Step::Rule));
}

/// The guard of the data path goes before the firewall's, so that there is always one until nothing is left to guard.
fn data_path(found: &Found, plan: &mut Plan) {
    plan.steps.extend(found.filters.iter().copied().map(Step::Filter));
    plan.steps.extend(found.layouts.iter().cloned().map(Step::Layout));
    if let Some((root, others)) = &found.pins {
        if others.is_empty() {
            plan.steps.push(Step::Pins(root.clone()));
        }
        plan.stays.extend(others.iter().map(|other| not_ours(other)));
    }
    let tables = [crate::nft::TABLE, crate::host_ports::TABLE];
    let ours = |name: &&String| tables.contains(&name.as_str());
    plan.steps.extend(found.tables.iter().filter(ours).cloned().map(Step::Table));
}

fn not_ours(path: &Path) -> String {
    format!("{}: it is not Hawser's", path.display())
}

/// Settings go back if nobody has changed them since. Forwarding, and the `accept_ra` that goes with it, only on demand: another
/// network, containers or virtual machines may rest on it by now, and would not say so. True: none of ours is left.
fn settings(found: &Found, want: &Want, plan: &mut Plan) -> bool {
    let untouched = |key: &String, ours: &String| found.settings.get(key) == Some(ours);
    let (mut back, mut all_back) = (Vec::new(), true);
    for (key, change) in found.before.0.iter().filter(|(key, change)| untouched(key, &change.ours)) {
        if key.ends_with("/rp_filter") || want.reset_forwarding {
            back.push(Step::Setting { key: key.clone(), value: change.before.clone() });
        } else {
            all_back = false;
            plan.stays.push(format!(
                "/proc/sys/{key} = {}, which was {} before Hawser: others may rest on it; set it back if nobody does, or use \
                 --reset-forwarding",
                change.ours, change.before
            ));
        }
    }
    // A host that forwards and does not listen to routers in spite of it forgets what they told it.
    let listens = |step: &Step| matches!(step, Step::Setting { key, .. } if key.ends_with("/accept_ra"));
    back.sort_by_key(listens);
    plan.steps.extend(back);
    all_back
}

fn files(found: &Found, want: &Want, all_back: bool, plan: &mut Plan) {
    let judged = want.places.judge(&found.files);
    let (audit, record) =
        (want.places.state.join("audit"), want.places.state.join(crate::host::before::FILE));
    let keeps = |place: &Path| {
        let wanted = if place == audit { want.keep_audit } else { !all_back };
        wanted && found.files.contains_key(place)
    };
    let stay: Vec<&PathBuf> = [&audit, &record].into_iter().filter(|place| keeps(place)).collect();
    let kept = |path: &Path| stay.iter().any(|place| path.starts_with(place));
    let around = |path: &Path| stay.iter().any(|place| place.starts_with(path));
    let files = judged.files.into_iter().filter(|(path, _)| !kept(path));
    plan.steps.extend(files.map(|(path, secret)| Step::File { path, secret }));
    let directories = judged.directories.into_iter().filter(|path| !kept(path) && !around(path));
    plan.steps.extend(directories.map(Step::Directory));
    if kept(&audit) {
        plan.stays.push(format!("{}: the record of destroyed keys was to be kept", audit.display()));
    }
    if kept(&record) {
        plan.stays.push(format!(
            "{}: nothing else knows what these settings were; it goes with --reset-forwarding, or delete it",
            record.display()
        ));
    }
    let mounted =
        |path: &PathBuf| format!("{}: it is a mount, so that it is emptied and stays", path.display());
    plan.stays.extend(judged.mounts.iter().map(mounted));
    plan.stays.extend(judged.strange.iter().take(NAMED).map(|path| not_ours(path)));
    if judged.strange.len() > NAMED {
        let (more, state) = (judged.strange.len() - NAMED, want.places.state.display());
        plan.stays.push(format!("{more} more files beneath {state} that are not Hawser's"));
    }
}
