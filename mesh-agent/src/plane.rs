//! The data path of this node: opened, closed before anything carries, and kept on the links. Policy itself is
//! [`crate::policy`]'s.
//!
//! Everything here are system calls that return at once; call it from threads that may wait all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use datapath::{Capacities, Datapath, Endpoint, LinkKind, LoadOptions, Local};
use ipnet::IpNet;

use crate::devices;
use crate::kernel::{Kernel, KernelError, Link};
use crate::names::Register;
use crate::nft::NftInput;
use crate::policy::Attached;

/// `ENODEV`.
const NO_DEVICE: i32 = 19;

/// Prefixes that the guard has room for.
fn room() -> usize {
    usize::try_from(Capacities::default().guarded).unwrap_or(usize::MAX)
}

/// The other ends that the guard exempts; none: more than it has room for, so it exempts nothing.
pub(crate) fn exempt(input: &NftInput) -> Option<Vec<IpNet>> {
    devices::exempt(input, room())
}

/// Something about the data path that did not work, with the object and the kernel's answer.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct PlaneError {
    what: String,
    source: Box<datapath::Error>,
}

fn failed(what: impl FnOnce() -> String) -> impl FnOnce(datapath::Error) -> PlaneError {
    move |source| PlaneError { what: what(), source: Box::new(source) }
}

/// The data path, shared by all who write it.
#[derive(Clone, Debug)]
pub struct Plane {
    datapath: Arc<Datapath>,
    /// Of those who look at links and attach what is missing one at a time.
    links: Arc<Mutex<()>>,
    /// Programs of a former agent with another layout of the maps may still be on links.
    former: Arc<AtomicBool>,
    /// All pods that were here before this agent have its programs, and policy is in force.
    pods: Arc<AtomicBool>,
    /// The data path knows the addresses of all pods that were here before this agent: what the tunnel brings for others is
    /// dropped.
    placed: Arc<AtomicBool>,
}

/// Where the data path stands.
#[derive(Clone, Debug)]
pub enum PlaneState {
    /// The configuration wants none.
    Off,
    /// It is not there, and why: no pod is connected.
    Failed(String),
    /// It is in the kernel.
    Open(Plane),
}

impl PlaneState {
    /// The data path, if there is one.
    pub const fn open(&self) -> Option<&Plane> {
        match self {
            Self::Open(plane) => Some(plane),
            Self::Off | Self::Failed(_) => None,
        }
    }
}

/// What is wrong with links, by the code of a finding: a sentence each.
pub type Findings = Vec<(String, String)>;

impl Plane {
    /// Loads programs and maps, and guards what the configuration names. What a former agent has left stays in force: the guard
    /// covers at least as much as before.
    ///
    /// # Errors
    /// The kernel refuses, or another agent has the directory.
    pub fn open(pins: &Path, guarded: &[IpNet]) -> Result<Self, PlaneError> {
        let options = LoadOptions { pin_dir: pins.to_owned(), ..LoadOptions::default() };
        let datapath =
            Datapath::open(&options).map_err(failed(|| "Could not load the data path".to_owned()))?;
        let plane = Self {
            datapath: Arc::new(datapath),
            links: Arc::default(),
            former: Arc::new(AtomicBool::new(true)),
            pods: Arc::default(),
            placed: Arc::default(),
        };
        let set = || -> datapath::Result<()> {
            let mut all = plane.datapath.guarded()?;
            all.extend(guarded.iter().map(IpNet::trunc));
            plane.datapath.set_guarded(&all)?;
            plane.datapath.set_flow_events(true)?;
            Ok(())
        };
        set().map_err(failed(|| "Could not set the guard".to_owned()))?;
        Ok(plane)
    }

    /// All pods that were here before this agent have its programs, and policy is in force.
    pub fn pods_attached(&self) {
        self.pods.store(true, Ordering::Release);
    }

    /// The data path knows the addresses of all pods that were here before this agent.
    pub fn pods_placed(&self) {
        self.placed.store(true, Ordering::Release);
    }

    /// The data path itself.
    pub fn datapath(&self) -> &Arc<Datapath> {
        &self.datapath
    }

    /// What the guard covers, as the firewall does; with a complete picture nothing else.
    ///
    /// # Errors
    /// A map is full or cannot be written.
    pub fn guard(&self, input: &NftInput, synced: bool) -> Result<Findings, PlaneError> {
        let mut findings = Findings::new();
        let room = room();
        let exempt = exempt(input).unwrap_or_else(|| {
            findings.push((
                "guard-exempts-nothing".to_owned(),
                format!("nonMasqueradeCIDRs, less the addresses of nodes in them, are more than {room} prefixes: the data path's guard exempts none of them; name prefixes that hold no nodes"),
            ));
            Vec::new()
        });
        let set = || -> datapath::Result<()> {
            let mut guarded: BTreeSet<IpNet> = devices::guarded(input).into_iter().collect();
            if synced {
                self.datapath.set_exempt(&exempt.into_iter().collect())?;
            } else {
                guarded.extend(self.datapath.guarded()?);
            }
            self.datapath.set_guarded(&guarded).map(drop)
        };
        set().map_err(failed(|| "Could not set the guard".to_owned()))?;
        Ok(findings)
    }

    /// Own addresses, which the tunnel may deliver to.
    ///
    /// # Errors
    /// A map is full or cannot be written.
    pub fn own_addresses(&self, wanted: &BTreeSet<IpAddr>, synced: bool) -> Result<(), PlaneError> {
        let set = || -> datapath::Result<()> {
            let found = self.datapath.locals()?;
            for address in wanted.iter().filter(|address| found.get(address) != Some(&Local::Node)) {
                self.datapath.put_local(*address, Local::Node)?;
            }
            let stale =
                found.iter().filter(|(address, local)| **local == Local::Node && !wanted.contains(address));
            for (address, _) in stale.filter(|_| synced) {
                self.datapath.remove_local(*address)?;
            }
            Ok(())
        };
        set().map_err(failed(|| "Could not set own addresses".to_owned()))
    }

    /// Does the data path know any address of this node's own? Before, the tunnel could deliver nothing.
    fn has_addresses(&self) -> bool {
        self.datapath.locals().is_ok_and(|locals| locals.values().any(|local| *local == Local::Node))
    }

    /// Puts the guard on every uplink and the programs on slots and on pods' links that lack them, and forgets links that are
    /// gone. A pod's link without an endpoint is left to the request that makes it.
    ///
    /// `endpoints` were there before `links` were looked at; `gone` are those of them whose links do not exist any more.
    fn keep_links(
        &self,
        endpoints: &BTreeSet<u32>,
        gone: &BTreeSet<u32>,
        links: &BTreeMap<String, Link>,
    ) -> Findings {
        let _one = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let mut findings = Findings::new();
        let name = |index: u32| {
            links
                .iter()
                .find(|(_, link)| link.index == index)
                .map_or("", |(name, _)| name.as_str())
                .to_owned()
        };
        for index in gone {
            if let Err(error) = self.datapath.remove_endpoint(*index) {
                findings.push(("data-path-endpoints".to_owned(), error.to_string()));
            }
        }
        let attached = self.attached();
        let mut refused = false;
        let carries = self.has_addresses() && self.placed.load(Ordering::Acquire);
        for (index, kind) in devices::kinds(links) {
            let wanted = match kind {
                LinkKind::Uplink => true,
                LinkKind::Slot => carries,
                LinkKind::Pod => endpoints.contains(&index),
                LinkKind::Hold => false,
            };
            if !wanted || attached.contains(&(index, kind)) {
                continue;
            }
            match self.datapath.attach(kind, index) {
                Ok(()) => tracing::info!(device = name(index), %kind, "Put the data path onto a link"),
                // Gone since the look.
                Err(datapath::Error::Attach { source, .. }) if source.raw_os_error() == Some(NO_DEVICE) => {}
                Err(error) => {
                    refused = true;
                    findings.push((
                        format!("{kind}-without-data-path"),
                        format!("device {}: the data path is not on it: {error}", name(index)),
                    ));
                }
            }
        }
        if let Err(error) = self.datapath.forget_dead_links() {
            findings.push(("data-path-pins".to_owned(), error.to_string()));
        }
        // Not before ours are everywhere: until then those of the former agent are all that links have.
        let ours = carries && !refused && self.pods.load(Ordering::Acquire);
        if ours && self.former.load(Ordering::Acquire) {
            match self.datapath.remove_other_layouts() {
                Ok(gone) => {
                    self.former.store(false, Ordering::Release);
                    for path in gone {
                        tracing::info!(path = %path.display(), "Took a former agent's data path away");
                    }
                }
                Err(error) => findings.push(("data-path-pins".to_owned(), error.to_string())),
            }
        }
        findings
    }

    /// Links on which all programs of a kind are, and those of this process.
    fn attached(&self) -> BTreeSet<(u32, LinkKind)> {
        let all = self.datapath.attachments().unwrap_or_default();
        let mut hooks: BTreeMap<(u32, LinkKind), usize> = BTreeMap::new();
        for found in all.iter().filter(|found| found.current) {
            *hooks.entry((found.ifindex, found.kind)).or_insert(0) += 1;
        }
        let devices = self.datapath.devices().unwrap_or_default();
        let whole = |((index, kind), count): &(&(u32, LinkKind), &usize)| {
            **count == kind.programs().len() && devices.get(index) == Some(kind)
        };
        hooks.iter().filter(whole).map(|(key, _)| *key).collect()
    }

    /// A new pod's link: it is an endpoint that may do nothing yet, and the programs are on it. To be called before the link
    /// is up.
    ///
    /// # Errors
    /// The kernel refuses; nothing of it is left.
    pub fn connect(&self, pod: &Attached) -> Result<(), PlaneError> {
        let set = || -> datapath::Result<()> {
            // Whoever looks at links would find an endpoint without programs, and attach them at the same moment.
            let _one = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            // The index may be another link's that is gone: that one's policy must not be this one's. And an ADD that was
            // cut off half way may have left another link's endpoint with these addresses.
            self.datapath.remove_endpoint(pod.ifindex)?;
            let locals = self.datapath.locals()?;
            for address in &pod.ips {
                if let Some(Local::Pod(index)) = locals.get(address) {
                    self.datapath.remove_endpoint(*index)?;
                    self.datapath.detach(*index)?;
                }
            }
            self.place(pod)?;
            self.datapath.attach(LinkKind::Pod, pod.ifindex)
        };
        set().map_err(|source| {
            self.disconnect(&pod.ips);
            failed(|| format!("Could not put the data path onto {}", pod.veth))(source)
        })
    }

    /// The endpoint and its addresses, without programs.
    ///
    /// # Errors
    /// A map is full or cannot be written.
    pub fn place(&self, pod: &Attached) -> datapath::Result<()> {
        self.datapath.put_endpoint(pod.ifindex, &endpoint(pod))?;
        for address in &pod.ips {
            self.datapath.put_local(*address, Local::Pod(pod.ifindex))?;
        }
        Ok(())
    }

    /// Takes everything of the pod with these addresses out of the data path; what is gone already is fine.
    pub fn disconnect(&self, ips: &BTreeSet<IpAddr>) {
        let locals = self.datapath.locals().unwrap_or_default();
        let place = |address: &IpAddr| match locals.get(address) {
            Some(Local::Pod(index)) => Some(*index),
            Some(Local::Node) | None => None,
        };
        let indexes: BTreeSet<u32> = ips.iter().filter_map(place).collect();
        // Those that have no place any more, too: packets may have passed since they lost it.
        let is_theirs = |address: &IpAddr| locals.get(address) != Some(&Local::Node);
        let theirs: BTreeSet<IpAddr> = ips.iter().copied().filter(is_theirs).collect();
        let forget = || -> datapath::Result<()> {
            for index in indexes {
                self.datapath.remove_endpoint(index)?;
                self.datapath.detach(index)?;
            }
            for address in &theirs {
                self.datapath.remove_local(*address)?;
            }
            // Whoever gets the addresses next has nothing to do with their flows.
            self.datapath.forget_flows_of(&theirs).map(drop)
        };
        if let Err(error) = forget() {
            tracing::warn!(err = %error, "Could not take a pod out of the data path");
        }
    }

    /// Compares what a former agent left with the pods that are attached: takes away what is nobody's. Returns the pods that the
    /// data path does not know (connected by an agent without one); they go on as they are until policy is known.
    pub fn reconcile(&self, pods: &[Attached]) -> datapath::Result<Vec<Attached>> {
        let here: BTreeMap<u32, &Attached> = pods.iter().map(|pod| (pod.ifindex, pod)).collect();
        let found = self.datapath.endpoints()?;
        for index in found.keys().filter(|index| !here.contains_key(index)) {
            self.datapath.remove_endpoint(*index)?;
            self.datapath.detach(*index)?;
        }
        let mut vacant = BTreeSet::new();
        for (address, local) in self.datapath.locals()? {
            let Local::Pod(index) = local else { continue };
            if !here.get(&index).is_some_and(|pod| pod.ips.contains(&address)) {
                self.datapath.remove_local(address)?;
                vacant.insert(address);
            }
        }
        // Of pods that vanished while no agent ran: whoever gets their addresses next has nothing to do with their flows.
        self.datapath.forget_flows_of(&vacant)?;
        let mut missing = Vec::new();
        for (index, pod) in here {
            match found.get(&index) {
                // The same pod, though it may be shaped now and was not.
                Some(present) if Endpoint { slow: present.slow, ..endpoint(pod) } == *present => {
                    self.place(pod)?;
                    self.attach_pod(index)?;
                }
                // Another pod's link had this index: its policy must not be this one's, which is closed until its own is known.
                Some(_) => {
                    self.datapath.remove_endpoint(index)?;
                    self.place(pod)?;
                    self.attach_pod(index)?;
                }
                // Programs that are on it are those of a former agent, whose maps are lost or laid out in another way. They
                // stay until they are replaced.
                None => missing.push(pod.clone()),
            }
        }
        if missing.is_empty() {
            self.pods_placed();
        }
        Ok(missing)
    }

    fn attach_pod(&self, index: u32) -> datapath::Result<()> {
        match self.datapath.attach(LinkKind::Pod, index) {
            // Gone since the look; whoever looks next takes its endpoint away.
            Err(datapath::Error::Attach { source, .. }) if source.raw_os_error() == Some(NO_DEVICE) => Ok(()),
            result => result,
        }
    }
}

/// Looks at the links and puts onto them what is missing. Also says their names to who reads flows.
///
/// # Errors
/// The links cannot be listed.
pub async fn look(plane: &Plane, kernel: &Kernel, register: &Arc<Register>) -> Result<Findings, KernelError> {
    let first = plane.clone();
    let endpoints = tokio::task::spawn_blocking(move || first.datapath.endpoints()).await;
    let endpoints: BTreeSet<u32> =
        endpoints.ok().and_then(Result::ok).unwrap_or_default().into_keys().collect();
    let links = kernel.links().await?;
    let mut answers = Vec::new();
    for index in unlisted(&endpoints, &links) {
        answers.push((index, kernel.has_link(index).await));
    }
    let gone = gone(answers);
    let (plane, register) = (plane.clone(), Arc::clone(register));
    let work = move || {
        let names = links.iter().map(|(name, link)| (link.index, name.clone())).collect();
        register.write(|all| all.links = names);
        plane.keep_links(&endpoints, &gone, &links)
    };
    Ok(tokio::task::spawn_blocking(work).await.unwrap_or_default())
}

/// Endpoints that a list of links lacks. Their links may be there all the same ([`Kernel::find_in`] says why).
fn unlisted(endpoints: &BTreeSet<u32>, links: &BTreeMap<String, Link>) -> BTreeSet<u32> {
    let listed: BTreeSet<u32> = links.values().map(|link| link.index).collect();
    endpoints.difference(&listed).copied().collect()
}

/// Endpoints whose links are gone, by what the kernel answered of each: not to know it of a running pod's must not cut it off.
fn gone(answers: Vec<(u32, Result<bool, KernelError>)>) -> BTreeSet<u32> {
    let is_gone = |(index, has_link): (u32, Result<bool, KernelError>)| match has_link {
        Ok(has_link) => (!has_link).then_some(index),
        Err(error) => {
            tracing::warn!(index, err = %error, "Could not see whether a pod's link is gone; its endpoint stays");
            None
        }
    };
    answers.into_iter().filter_map(is_gone).collect()
}

fn endpoint(pod: &Attached) -> Endpoint {
    let v4 = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    };
    let v6 = |ip: &IpAddr| match ip {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => Some(*v6),
    };
    let (ip4, ip6): (Option<Ipv4Addr>, Option<Ipv6Addr>) =
        (pod.ips.iter().find_map(v4), pod.ips.iter().find_map(v6));
    Endpoint { ip4, ip6, pod_mac: pod.pod_mac, host_mac: pod.host_mac, slow: pod.slow }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_goes_only_when_the_kernel_says_that_its_link_does_not_exist() {
        let link = |index| Link { index, mtu: 1400, up: true, mac: Vec::new(), received: 0 };
        let links = BTreeMap::from([("eth0".to_owned(), link(2)), ("hw0123456789abc".to_owned(), link(7))]);
        assert_eq!(unlisted(&BTreeSet::from([7, 8, 9, 10]), &links), BTreeSet::from([8, 9, 10]));
        let unknown = KernelError::socket(std::io::Error::other("no answer"));
        let answers = vec![(8, Ok(true)), (9, Ok(false)), (10, Err(unknown))];
        assert_eq!(gone(answers), BTreeSet::from([9]));
    }
}
