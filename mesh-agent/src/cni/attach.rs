//! ADD, DEL, CHECK, STATUS and GC (design D9).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::Client;
use kube::api::ApiResource;
use mesh_core::ipam::{Ipam, IpamError, Millis};
use mesh_core::name::NodeName;
use mesh_core::numbers::ANNOTATION_IPS;
use mesh_core::policy::model::ObjectName;
use proto::cni::{Attach, Attached, AttachedIp, AttachmentId, Failure, Gc, PodRef, PortMapping, code};
use tokio::sync::{mpsc, watch};

use crate::announced::{self, Announced};
use crate::attachments::{Attachment, Directory, Table};
use crate::condition::Broken;
use crate::facts::pod::{HostPort, OwnPod, Pod};
use crate::host_ports::{self, HostPorts};
use crate::kernel::Kernel;
use crate::metrics::Metrics;
use crate::plane::PlaneState;
use crate::podlink::{self, PodLink, PodLinkError};
use crate::shaping;
use crate::watch::Pods;
use crate::watch::mail::Mailbox;

/// How long ADD waits for the watch to show its pod before it asks the API itself.
const POD_PATIENCE: Duration = Duration::from_secs(2);
/// How long ADD goes on asking for a pod that the API does not know yet.
const POD_DEADLINE: Duration = Duration::from_secs(10);
/// How long one request to the API may take inside ADD; kube repeats what fails for a while by itself.
const API_DEADLINE: Duration = Duration::from_secs(8);

/// How long DEL waits for an ADD of the same attachment to end; shorter than the plugin waits for the answer.
const BUSY_DEADLINE: Duration = Duration::from_secs(25);

/// Whether pods can be connected, as the last reconciliation found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Own mesh addresses: gateways of the pods.
    pub mesh: BTreeSet<IpAddr>,
    /// From where this node speaks to pods: at most one address of each family.
    pub home: BTreeSet<IpAddr>,
    /// MTU of pods in bytes.
    pub mtu: u32,
    /// Why ADD cannot be served; empty: it can.
    pub obstacles: Vec<String>,
    /// Why pods that run have limited connectivity; empty: they have not.
    pub limits: Vec<String>,
    /// Why pods would have no network at all; what the Node is told, when it lasts.
    pub broken: Option<Broken>,
}

/// Serves the verbs.
#[derive(Debug)]
pub struct Attacher {
    /// This node.
    pub(crate) node: NodeName,
    pub(crate) kernel: Kernel,
    pub(crate) directory: Directory,
    pub(crate) table: Arc<Mutex<Table>>,
    pub(crate) pods: watch::Receiver<Pods>,
    pub(crate) readiness: watch::Receiver<Readiness>,
    /// The data path.
    pub(crate) plane: watch::Receiver<PlaneState>,
    /// Who decides policy.
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) api: Api,
    pub(crate) metrics: Metrics,
    /// Wakes the main loop, which reports a pool that is nearly full.
    pub(crate) nudge: mpsc::Sender<()>,
    /// Wakes who keeps the annotations of pods right.
    pub(crate) unannounced: Arc<tokio::sync::Notify>,
    /// hostPorts of the attachments.
    pub(crate) host_ports: HostPorts,
}

/// The API, with a `Debug` that says nothing.
#[derive(Clone)]
pub(crate) struct Api(pub(crate) Client);

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}

pub(super) fn io_failure(error: &dyn std::error::Error) -> Failure {
    Failure::new(code::IO, error.to_string(), "")
}

pub(super) fn try_again(msg: impl Into<String>, details: impl Into<String>) -> Failure {
    Failure::new(code::TRY_AGAIN, msg, details)
}

/// Milliseconds since boot, sleep included: a quarantine does not depend on what somebody does to the wall clock. After a
/// reboot times of before may lie ahead; they count as now.
pub(crate) fn now() -> Millis {
    let since = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(since.tv_sec), u64::try_from(since.tv_nsec));
    Millis(seconds.unwrap_or(0).saturating_mul(1000).saturating_add(nanos.unwrap_or(0) / 1_000_000))
}

impl Attacher {
    pub(crate) const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        // A panic in another holder leaves the table as it was between two steps; it is still the truth.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// STATUS.
    pub(crate) fn status(&self) -> Result<(), Failure> {
        let readiness = self.readiness.borrow();
        let node = &self.node;
        if !readiness.obstacles.is_empty() {
            let msg = format!("node {node} cannot connect pods yet");
            return Err(Failure::new(code::NOT_AVAILABLE, msg, readiness.obstacles.join("; ")));
        }
        if !readiness.limits.is_empty() {
            let msg = format!("pods of node {node} have limited connectivity");
            return Err(Failure::new(code::LIMITED, msg, readiness.limits.join("; ")));
        }
        Ok(())
    }

    /// ADD.
    pub(crate) async fn add(&self, attach: Attach, netns: Option<OwnedFd>) -> Result<Attached, Failure> {
        let netns = need_netns(netns, &attach)?;
        let pod = attach.pod.clone().ok_or_else(|| {
            let details = "Hawser connects pods of Kubernetes; the runtime must give K8S_POD_NAMESPACE and K8S_POD_NAME";
            Failure::new(code::ENVIRONMENT, "CNI_ARGS names no pod", details)
        })?;
        let readiness = self.ready()?;
        let veth = attach.id.veth();
        // Before the pod is awaited: the DEL of a runtime that lost patience has to come after us, not before.
        let _busy = self.busy(&veth).ok_or_else(|| {
            try_again(format!("{} is being worked on by another request", attach.id.container_id), "")
        })?;
        let own = self.await_pod(&pod).await?;
        let (attachment, fresh) = self.reserve(&veth, &attach)?;
        let result = self.connect(&veth, &attachment, &own, netns, &readiness).await;
        // What an earlier ADD reserved stays its own until DEL.
        if result.is_err() && fresh {
            // The runtime is told of what went wrong first; what is left here is taken away later.
            if let Err(error) = self.release(&veth).await {
                tracing::warn!(veth, err = %error, "Could not take back what a failed ADD has reserved");
            }
        }
        result
    }

    fn ready(&self) -> Result<Readiness, Failure> {
        let readiness = self.readiness.borrow().clone();
        if readiness.obstacles.is_empty() {
            return Ok(readiness);
        }
        let msg = format!("node {} cannot connect pods yet", self.node);
        Err(try_again(msg, readiness.obstacles.join("; ")))
    }

    /// Waits until the pod of that UID is known: from the watch, else from the API itself.
    async fn await_pod(&self, pod: &PodRef) -> Result<Arc<OwnPod>, Failure> {
        let key = ObjectName { namespace: pod.namespace.clone(), name: pod.name.clone() };
        let known = |pods: &Pods| {
            let found = pods.pods.get(&key).filter(|found| found.meta.is(pod.uid.as_deref()));
            found.map(Arc::clone)
        };
        let mut pods = self.pods.clone();
        let begun = tokio::time::Instant::now();
        loop {
            let waited =
                tokio::time::timeout(POD_PATIENCE, pods.wait_for(|pods| known(pods).is_some())).await;
            let found = waited.ok().and_then(|pods| pods.ok().and_then(|pods| known(&pods)));
            if let Some(found) = found {
                return Ok(found);
            }
            let last = match self.ask_for(pod).await? {
                Some(found) if found.meta.is(pod.uid.as_deref()) => return Ok(Arc::new(found)),
                Some(found) => format!("the API knows it with UID {}", found.meta.uid),
                None => "the API does not know it".to_owned(),
            };
            if begun.elapsed() >= POD_DEADLINE {
                let uid = pod.uid.as_deref().unwrap_or("none");
                let msg = format!("pod {}/{} with UID {uid} is not known", pod.namespace, pod.name);
                return Err(try_again(msg, last));
            }
        }
    }

    async fn ask_for(&self, pod: &PodRef) -> Result<Option<OwnPod>, Failure> {
        let resource = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
        let api: kube::Api<Pod> = kube::Api::namespaced_with(self.api.0.clone(), &pod.namespace, &resource);
        let away = |reason: String| {
            let details = "a pod is connected only once its identity is known; the kubelet will try again";
            try_again(
                format!("API server did not answer for pod {}/{}: {reason}", pod.namespace, pod.name),
                details,
            )
        };
        match tokio::time::timeout(API_DEADLINE, api.get_opt(&pod.name)).await {
            Ok(Ok(found)) => Ok(found.as_ref().and_then(OwnPod::of)),
            Ok(Err(error)) => Err(away(error.to_string())),
            Err(_) => Err(away(format!("no answer in {} s", API_DEADLINE.as_secs()))),
        }
    }

    /// Addresses for an attachment, and whether they are new. An attachment that is there already keeps its own.
    fn reserve(&self, veth: &str, attach: &Attach) -> Result<(Attachment, bool), Failure> {
        let mut table = self.table();
        if let Some(present) = table.attachments.get(veth) {
            return Ok((present.clone(), false));
        }
        // Policy, annotation and services know one link and its addresses for a pod; a second would take them from the first.
        if let Some(first) = table.sibling(&attach.id) {
            return Err(second_interface(first, &attach.id));
        }
        let ports = mapped(&attach.port_mappings)?;
        host_ports::claim(&ports, attach.pod.as_ref(), &attach.id, &table.attachments)
            .map_err(|taken| port_taken(&taken))?;
        let ips = self.pool(&mut table, |ipam| ipam.allocate(&attach.requested_ips, now()));
        let ips = ips.map_err(|error| pool_failure(&error))?;
        let attachment = Attachment {
            v: 1,
            id: attach.id.clone(),
            network: attach.network.clone(),
            pod: attach.pod.clone(),
            netns: attach.netns.clone(),
            ips,
            mac: attach.requested_mac.clone(),
            port_mappings: attach.port_mappings.clone(),
            bandwidth: attach.bandwidth,
        };
        table.insert(veth, attachment.clone());
        Ok((attachment, true))
    }

    async fn connect(
        &self,
        veth: &str,
        attachment: &Attachment,
        own: &Arc<OwnPod>,
        netns: OwnedFd,
        readiness: &Readiness,
    ) -> Result<Attached, Failure> {
        let link = self.link(veth, attachment, readiness)?;
        self.write(veth, attachment).await?;
        // Both at once: neither needs the other, and ADD answers when both are done.
        let (made, told) =
            tokio::join!(self.make(netns, &link, attachment, own), self.annotate(attachment, own));
        let wait = made.map_err(|error| match &error {
            PodLinkError::Exists(_) => {
                let details = "ADD without a DEL before it; the runtime has to call DEL first";
                Failure::new(code::ENVIRONMENT, format!("CNI_IFNAME: {error}"), details)
            }
            PodLinkError::Netns(_) => Failure::new(code::INVALID_NETNS, error.to_string(), ""),
            PodLinkError::Kernel(_)
            | PodLinkError::Request { .. }
            | PodLinkError::Setting(_)
            | PodLinkError::Sysctl { .. }
            | PodLinkError::NotLocal { .. }
            | PodLinkError::DataPath(_)
            | PodLinkError::Changed(_) => io_failure(&error),
        })?;
        told?;
        if let Some(wait) = wait {
            self.await_policy(veth, wait).await?;
        }
        // Last: who comes from outside finds a pod whose policy is in force.
        self.publish_ports(veth, attachment).await?;
        let ip = |(address, gateway): &(IpAddr, IpAddr)| AttachedIp {
            address: mesh_core::prefix::host(*address),
            gateway: *gateway,
        };
        Ok(Attached {
            host_ifname: link.veth.clone(),
            host_mac: podlink::mac_text(link.host_mac),
            pod_mac: podlink::mac_text(link.pod_mac),
            mtu: link.mtu,
            ips: link.ips.iter().map(ip).collect(),
        })
    }

    fn link(&self, veth: &str, attachment: &Attachment, readiness: &Readiness) -> Result<PodLink, Failure> {
        let gateway = |address: &IpAddr| {
            let mesh = readiness.mesh.iter().copied().find(|m| mesh_core::prefix::same_family(*m, *address));
            mesh.map(|mesh| (*address, mesh))
        };
        let ips: Vec<_> = attachment.ips.iter().filter_map(gateway).collect();
        if ips.len() != attachment.ips.len() {
            let msg = format!("node {} has no mesh address for {:?}", self.node, attachment.ips);
            return Err(try_again(msg, "its pod CIDRs have just changed"));
        }
        let pod_mac = match &attachment.mac {
            Some(text) => parse_mac(text)?,
            None => podlink::mac(veth, "pod"),
        };
        Ok(PodLink {
            veth: veth.to_owned(),
            host_mac: podlink::mac(veth, "host"),
            ifname: attachment.id.ifname.clone(),
            pod_mac,
            mtu: readiness.mtu,
            ips,
            home: readiness.home.clone(),
        })
    }

    /// Writes the pod's addresses and port names where every agent reads them, long before the kubelet's status does.
    async fn annotate(&self, attachment: &Attachment, own: &OwnPod) -> Result<(), Failure> {
        let Some(pod) = &attachment.pod else { return Ok(()) };
        let patch = announced::annotations(&Announced::of(&attachment.ips, &own.ports));
        let request = announced::write(&self.api.0, &pod.namespace, &pod.name, &patch);
        let failed = |reason: String| {
            let msg =
                format!("could not write {ANNOTATION_IPS} on pod {}/{}: {reason}", pod.namespace, pod.name);
            try_again(msg, "the kubelet will try again")
        };
        match tokio::time::timeout(API_DEADLINE, request).await {
            Ok(Ok(written)) => {
                // The name may have passed to a new pod between our look and our patch.
                let meta = crate::facts::PodMeta::of(&written.metadata);
                if meta.is_some_and(|meta| meta.is(pod.uid.as_deref())) {
                    Ok(())
                } else {
                    Err(failed("the pod was replaced meanwhile".to_owned()))
                }
            }
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed(format!("no answer in {} s", API_DEADLINE.as_secs()))),
        }
    }

    async fn write(&self, veth: &str, attachment: &Attachment) -> Result<(), Failure> {
        let (directory, veth, attachment) = (self.directory.clone(), veth.to_owned(), attachment.clone());
        let written = tokio::task::spawn_blocking(move || directory.write(&veth, &attachment)).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(io_failure(&error)),
            Err(error) => Err(io_failure(&error)),
        }
    }

    /// DEL: link, file, addresses, in this order. What is gone already is fine.
    pub(crate) async fn del(&self, id: &AttachmentId) -> Result<(), Failure> {
        let veth = id.veth();
        let _busy = self.await_busy(&veth).await.ok_or_else(|| {
            let msg = format!("{} is still being worked on by another request", id.container_id);
            try_again(msg, "the runtime will call DEL again")
        })?;
        self.release(&veth).await
    }

    /// A DEL that the plugin wrote down at `note`. False: the note is gone, since the plugin itself came back to it; what
    /// is attached under that name now is new and stays.
    pub(crate) async fn del_noted(&self, id: &AttachmentId, note: &Path) -> Result<bool, Failure> {
        // Not waited for: notes are looked at again in seconds, and others should not wait for this one.
        let Some(_busy) = self.busy(&id.veth()) else { return Ok(false) };
        if !note.exists() {
            return Ok(false);
        }
        self.release(&id.veth()).await?;
        std::fs::remove_file(note).map_err(|error| io_failure(&error))?;
        Ok(true)
    }

    /// Unmakes an attachment that this request holds busy.
    async fn release(&self, veth: &str) -> Result<(), Failure> {
        self.withdraw_ports(veth).await?;
        self.kernel.remove_link(veth).await.map_err(|error| io_failure(&error))?;
        self.kernel.remove_link(&shaping::shaper(veth)).await.map_err(|error| io_failure(&error))?;
        self.leave(veth).await;
        let (directory, name) = (self.directory.clone(), veth.to_owned());
        let freed = tokio::task::spawn_blocking(move || directory.free(&name, now())).await;
        match freed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(io_failure(&error)),
            Err(error) => return Err(io_failure(&error)),
        }
        let mut table = self.table();
        self.unannounced.notify_one();
        if let Some(attachment) = table.remove(veth) {
            self.pool(&mut table, |ipam| attachment.ips.iter().for_each(|ip| ipam.release(*ip, now())));
        }
        Ok(())
    }

    /// Changes the pools and says at once how full they are. The main loop is woken only where a problem comes or goes.
    fn pool<T>(&self, table: &mut Table, change: impl FnOnce(&mut Ipam) -> T) -> T {
        let troubled = |table: &Table| table.ipam.problems(now()).len();
        let before = troubled(table);
        let result = change(&mut table.ipam);
        self.metrics.set_pools(&table.ipam.usage(now()));
        if troubled(table) != before {
            // A full queue is a nudge that is already there.
            let _ = self.nudge.try_send(());
        }
        result
    }

    /// CHECK.
    pub(crate) async fn check(&self, attach: Attach, netns: Option<OwnedFd>) -> Result<(), Failure> {
        let netns = need_netns(netns, &attach)?;
        let readiness = self.ready()?;
        let veth = attach.id.veth();
        let attachment = self.table().attachments.get(&veth).cloned();
        let failed = |msg: String| Failure::new(code::CHECK_FAILED, msg, "recreate the pod");
        let Some(attachment) = attachment else {
            return Err(failed(format!("no attachment for container {}", attach.id.container_id)));
        };
        // Later plugins may have added addresses and changed routes: prevResult says what is to be there.
        let expected = &attach.expected_ips;
        if let Some(missing) = attachment.ips.iter().find(|ip| !expected.contains(ip))
            && !expected.is_empty()
        {
            return Err(failed(format!("prevResult names {expected:?}, the attachment has {missing}")));
        }
        if attach.port_mappings != attachment.port_mappings {
            let (has, wants) = (&attachment.port_mappings, &attach.port_mappings);
            return Err(failed(format!("portMappings are {wants:?}, the attachment has {has:?}")));
        }
        if attach.bandwidth != attachment.bandwidth {
            let (has, wants) = (&attachment.bandwidth, &attach.bandwidth);
            return Err(failed(format!("bandwidth is {wants:?}, the attachment has {has:?}")));
        }
        let link = self.link(&veth, &attachment, &readiness)?;
        if let Some(text) = self.check_ports(&attachment).await? {
            return Err(failed(text));
        }
        if let Some(text) = self.check_rates(&veth, &attachment).await? {
            return Err(failed(text));
        }
        let gateways = link.ips.iter().map(|(_, gateway)| *gateway);
        let defaults = gateways.filter(|gateway| attach.expects_default(*gateway)).collect();
        podlink::check(&self.kernel, netns, &link, defaults).await.map_err(|error| match error {
            PodLinkError::Changed(text) => failed(text),
            PodLinkError::Kernel(_)
            | PodLinkError::Request { .. }
            | PodLinkError::Netns(_)
            | PodLinkError::Setting(_)
            | PodLinkError::Sysctl { .. }
            | PodLinkError::NotLocal { .. }
            | PodLinkError::DataPath(_)
            | PodLinkError::Exists(_) => io_failure(&error),
        })
    }

    /// GC: removes what the runtime no longer knows, goes on after failures and reports them together.
    pub(crate) async fn gc(&self, gc: Gc) -> Result<(), Failure> {
        let valid: BTreeSet<String> = gc.valid.iter().map(AttachmentId::veth).collect();
        let stale: Vec<String> = {
            let table = self.table();
            let of_network = table.attachments.iter().filter(|(_, a)| a.network == gc.network);
            of_network.map(|(veth, _)| veth.clone()).filter(|veth| !valid.contains(veth)).collect()
        };
        let mut failures = Vec::new();
        for veth in stale {
            let Some(_busy) = self.busy(&veth) else { continue };
            match self.release(&veth).await {
                Ok(()) => tracing::info!(veth, "Removed an attachment that the runtime no longer knows"),
                Err(failure) => failures.push(format!("{veth}: {failure}")),
            }
        }
        if failures.is_empty() {
            return Ok(());
        }
        let msg = format!("{} attachments could not be removed", failures.len());
        Err(Failure::new(code::IO, msg, failures.join("; ")))
    }

    /// Frees attachments whose link is gone (with their pod's namespace), removes links that no attachment knows, and puts right
    /// the rates of those that stay.
    pub(crate) async fn reap(&self) -> Result<(), Failure> {
        let known: BTreeSet<String> = {
            let table = self.table();
            table.attachments.keys().filter(|veth| !table.busy.contains(*veth)).cloned().collect()
        };
        let links = self.kernel.links().await.map_err(|error| io_failure(&error))?;
        for veth in known.iter().filter(|veth| !links.contains_key(*veth)) {
            // Looked at again under the lock: a DEL and an ADD may have passed since.
            let Some(_busy) = self.busy(veth) else { continue };
            match self.kernel.find_link(veth).await {
                Ok(None) => match self.release(veth).await {
                    Ok(()) => tracing::info!(veth, "Freed an attachment whose pod is gone"),
                    // One that cannot be freed must not keep the others.
                    Err(failure) => tracing::warn!(veth, err = %failure, "Could not free an attachment"),
                },
                Ok(Some(_)) => {}
                Err(error) => {
                    tracing::warn!(veth, err = %error, "Could not see whether a pod is gone; its attachment stays");
                }
            }
        }
        for veth in links.keys().filter(|name| is_pod_veth(name)) {
            if let Some(_busy) = self.busy(veth)
                && !self.table().attachments.contains_key(veth)
            {
                match self.kernel.remove_link(veth).await {
                    Ok(_) => tracing::info!(veth, "Removed a link that no attachment knows"),
                    Err(error) => tracing::warn!(veth, err = %error, "Could not remove a link"),
                }
            }
        }
        self.keep_rates().await
    }

    /// As [`Self::busy`], but waits for its turn: an ADD whose plugin was killed may still be at work.
    async fn await_busy(&self, veth: &str) -> Option<Busy> {
        let begun = tokio::time::Instant::now();
        loop {
            if let Some(busy) = self.busy(veth) {
                return Some(busy);
            }
            if begun.elapsed() >= BUSY_DEADLINE {
                return None;
            }
            // Rare and short: a notification would be more to get wrong than it saves.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Marks a veth as being worked on; none: somebody is at it already.
    pub(super) fn busy(&self, veth: &str) -> Option<Busy> {
        let mut table = self.table();
        table
            .busy
            .insert(veth.to_owned())
            .then(|| Busy { table: Arc::clone(&self.table), veth: veth.to_owned() })
    }
}

/// Holds a veth until dropped.
pub(super) struct Busy {
    table: Arc<Mutex<Table>>,
    veth: String,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).busy.remove(&self.veth);
    }
}

/// `hw` and 13 hexadecimal digits.
pub(crate) fn is_pod_veth(name: &str) -> bool {
    let digits = name.strip_prefix(mesh_core::numbers::POD_VETH_PREFIX);
    digits
        .is_some_and(|d| d.len() == 13 && d.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()))
}

fn need_netns(netns: Option<OwnedFd>, attach: &Attach) -> Result<OwnedFd, Failure> {
    netns.ok_or_else(|| {
        let msg = format!("no descriptor of the network namespace {} came with the request", attach.netns);
        Failure::new(code::INVALID_NETNS, msg, "reinstall the plugin with hawser-cni install")
    })
}

/// What a runtime asked for, as hostPorts.
fn mapped(mappings: &[PortMapping]) -> Result<Vec<HostPort>, Failure> {
    let read = |mapping: &PortMapping| {
        let wrong = || {
            let msg =
                format!("port mapping {mapping:?} is not one of tcp, udp or sctp with ports from 1 to 65535");
            Failure::new(code::INVALID_CONFIG, msg, "correct runtimeConfig.portMappings")
        };
        HostPort::mapped(mapping).ok_or_else(wrong)
    };
    mappings.iter().map(read).collect()
}

fn second_interface(first: &AttachmentId, second: &AttachmentId) -> Failure {
    let (container, has, wants) = (&first.container_id, &first.ifname, &second.ifname);
    let msg =
        format!("container {container} has interface {has} of Hawser already, and {wants} would be a second");
    Failure::new(code::INVALID_CONFIG, msg, "use another plugin for secondary interfaces")
}

fn port_taken(taken: &host_ports::Taken) -> Failure {
    let (code, details) = if taken.own {
        (code::INVALID_CONFIG, "publish each port of the node once, and none of Hawser's")
    } else {
        // It may be leaving: the kubelet tries again.
        (code::TRY_AGAIN, "one of the two needs another hostPort, hostIP or node")
    };
    Failure::new(code, taken.to_string(), details)
}

fn pool_failure(error: &IpamError) -> Failure {
    let (code, details) = match error {
        IpamError::Exhausted { resting, .. } if *resting > 0 => {
            (code::TRY_AGAIN, "addresses leave quarantine within 30 s")
        }
        IpamError::Exhausted { .. } => {
            (code::POOL_EXHAUSTED, "move pods to other nodes, or give the node a larger pod CIDR")
        }
        IpamError::NoPool { .. } => {
            (code::TRY_AGAIN, "run the controller manager with --allocate-node-cidrs")
        }
        IpamError::NotOurs { .. } | IpamError::Taken { .. } | IpamError::TwoOfOneFamily { .. } => {
            (code::INVALID_CONFIG, "ask for another address, or for none")
        }
    };
    Failure::new(code, error.to_string(), details)
}

pub(crate) fn parse_mac(text: &str) -> Result<[u8; 6], Failure> {
    let bytes: Vec<u8> = text.split(':').filter_map(|part| u8::from_str_radix(part, 16).ok()).collect();
    let mac: Option<[u8; 6]> = bytes.try_into().ok();
    // The lowest bit of the first byte marks a group address.
    mac.filter(|mac| mac[0] & 1 == 0).ok_or_else(|| {
        Failure::new(code::INVALID_CONFIG, format!("hardware address {text:?} is not a unicast one"), "")
    })
}
