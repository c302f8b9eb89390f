//! Rates of pods, by token bucket filters (`tbf`): towards a pod on the host's end of its link, from it on a device (`ifb`)
//! that everything it sends is led through before the stack sees it.
//!
//! ```text
//! stack ─► to_pod ─► tbf ─► pod           pod ─► from_pod ─► redirect ─► ifb: tbf ─► stack
//! ```
//!
//! On the pod's own end a rate would be the pod's to change, and a policer in eBPF has no queue: what is over the rate would be
//! lost instead of waiting. The data path leaves a shaped pod's packets to the stack (`HW_ENDPOINT_SLOW`), since the fast
//! ways pass queues by.
#![allow(clippy::wildcard_enum_match_arm, reason = "netlink has more attributes than concern us")]

mod bucket;

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt};
use mesh_core::numbers::{POD_VETH_PREFIX, SHAPER_PREFIX};
use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload, Nla,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcActionAttribute, TcActionMirrorOption, TcActionOption, TcAttribute, TcFilterU32Option, TcHandle,
    TcMessage, TcOption,
};
use proto::cni::Bandwidth;
use rtnetlink::{LinkIfb, LinkMessageBuilder, LinkUnspec};
use rustix::io::Errno;

pub use bucket::Bucket;

use crate::attachments::Attachment;
use crate::host::{Host, Sysctl, SysctlError};
use crate::kernel::{Kernel, KernelError, asked, tolerate};

/// `tbf`.
const TBF: &str = "tbf";
/// Of the redirecting filter: behind the data path's own (1), which on kernels without tcx are filters, too.
const PRIORITY: u16 = 0x6877;
/// `ETH_P_ALL` in network order, as `tcm_info` has it.
const ALL_PROTOCOLS: u16 = 0x0300;

/// What a pod is limited to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Towards the pod.
    pub ingress: Option<Bucket>,
    /// From the pod.
    pub egress: Option<Bucket>,
}

impl Shape {
    /// What a runtime asked for, on a link with this MTU in bytes.
    pub fn of(bandwidth: Option<&Bandwidth>, mtu: u32) -> Self {
        let Some(asked) = bandwidth else { return Self::default() };
        Self {
            ingress: Bucket::of(asked.ingress_rate, asked.ingress_burst, mtu),
            egress: Bucket::of(asked.egress_rate, asked.egress_burst, mtu),
        }
    }
}

/// A rate that could not be put into force, or is not.
#[derive(Debug, thiserror::Error)]
pub enum ShapingError {
    /// The kernel refused.
    #[error("{0}; does the kernel have sch_tbf, sch_ingress, ifb, cls_u32 and act_mirred?")]
    Kernel(#[from] KernelError),
    /// A setting of the device could not be made.
    #[error(transparent)]
    Setting(#[from] SysctlError),
}

/// Name of the device through which goes what the pod behind `veth` sends.
pub fn shaper(veth: &str) -> String {
    format!("{SHAPER_PREFIX}{}", veth.strip_prefix(POD_VETH_PREFIX).unwrap_or(veth))
}

/// `hs` and 13 hexadecimal digits: the link of the pod whose shaper this is.
pub fn shaped(name: &str) -> Option<String> {
    let veth = format!("{POD_VETH_PREFIX}{}", name.strip_prefix(SHAPER_PREFIX)?);
    crate::cni::is_pod_veth(&veth).then_some(veth)
}

fn index(link: u32) -> i32 {
    i32::try_from(link).unwrap_or(i32::MAX)
}

/// Puts a pod's rates into force on the host's end of its link, number `link`; to be called before the link is up. Repeating it
/// changes nothing that is right. Returns whether anything was not.
///
/// # Errors
/// The kernel refused.
pub async fn put(kernel: &Kernel, veth: &str, link: u32, shape: &Shape) -> Result<bool, ShapingError> {
    let mut changed = false;
    if let Some(bucket) = &shape.ingress {
        changed |= put_bucket(kernel, veth, link, bucket).await?;
    }
    let Some(bucket) = &shape.egress else { return Ok(changed) };
    let name = shaper(veth);
    let (device, made) = put_shaper(kernel, &name).await?;
    changed |= made | put_bucket(kernel, &name, device, bucket).await?;
    // Last: until the device has its queue, nothing goes there.
    if redirected(kernel, veth, link).await? != [device] {
        redirect(kernel, veth, link, device).await?;
        changed = true;
    }
    Ok(changed)
}

/// What of a pod's rates is not in force, a sentence; none: everything is.
///
/// # Errors
/// The kernel did not say.
pub async fn check(
    kernel: &Kernel,
    veth: &str,
    link: u32,
    shape: &Shape,
) -> Result<Option<String>, ShapingError> {
    if let Some(bucket) = &shape.ingress
        && seen(kernel, veth, link).await? != Some(bucket.seen())
    {
        return Ok(Some(format!("the rate towards the pod is gone from {veth}")));
    }
    let Some(bucket) = &shape.egress else { return Ok(None) };
    let (name, links) = (shaper(veth), kernel.links().await?);
    let Some(device) = links.get(&name).filter(|device| device.up) else {
        return Ok(Some(format!("device {name}, through which the pod sends, is gone or down")));
    };
    if seen(kernel, &name, device.index).await? != Some(bucket.seen()) {
        return Ok(Some(format!("the rate from the pod is gone from {name}")));
    }
    let leads = redirected(kernel, veth, link).await? == [device.index];
    Ok((!leads).then(|| format!("what the pod sends is not led through {name}")))
}

/// Puts right what somebody changed on links that are there. `wanted` are all pods with a rate, by link, with what they asked
/// for; `busy` says whose links somebody is working on. Returns the links whose devices none of `wanted` sends through.
///
/// # Errors
/// The links cannot be listed; what fails besides is reported and left for the next time.
pub async fn keep(
    kernel: &Kernel,
    wanted: &BTreeMap<String, Bandwidth>,
    busy: impl Fn(&str) -> bool,
) -> Result<Vec<String>, KernelError> {
    let links = kernel.links().await?;
    for (veth, bandwidth) in wanted {
        let Some(link) = links.get(veth).filter(|_| !busy(veth)) else { continue };
        match put(kernel, veth, link.index, &Shape::of(Some(bandwidth), link.mtu)).await {
            Ok(true) => tracing::warn!(veth, "Put a pod's rates into force again"),
            Ok(false) => {}
            Err(error) => tracing::error!(veth, err = %error, "A pod's rates are not in force"),
        }
    }
    let sends = |veth: &String| wanted.get(veth).is_some_and(|bandwidth| bandwidth.egress_rate != 0);
    Ok(links.keys().filter_map(|name| shaped(name)).filter(|veth| !sends(veth)).collect())
}

/// Does nobody send through the device of a link? `attachment` is what is known of the pod behind it; `is_there`: it exists.
/// What is led to a device that is gone is lost, so of a file that cannot be read the worst is taken: that it asked for a rate.
pub fn is_unused(attachment: Option<&Attachment>, is_there: bool) -> bool {
    let Some(attachment) = attachment.filter(|_| is_there) else { return true };
    let rate = attachment.bandwidth.map_or(0, |bandwidth| bandwidth.egress_rate);
    rate == 0 && !attachment.is_recovered()
}

/// The device, up and with nothing to say itself; and whether it was not.
async fn put_shaper(kernel: &Kernel, name: &str) -> Result<(u32, bool), ShapingError> {
    let there = kernel.links().await?.get(name).cloned();
    if let Some(link) = there.filter(|link| link.up) {
        return Ok((link.index, false));
    }
    let result = kernel.handle().link().add(LinkIfb::new(name).build()).execute().await;
    tolerate(result, &[Errno::EXIST], || format!("Could not create the device {name} (ifb)"))?;
    let key = format!("net/ipv6/conf/{name}/disable_ipv6");
    if crate::container::proc_sys().join(&key).exists() {
        Host::default().set(&[Sysctl::new(key, "1")])?;
    }
    let index = kernel.index(name).await?;
    let up = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
    let result = kernel.handle().link().set(up).execute().await;
    result.or_else(asked(|| format!("Could not bring up {name}")))?;
    Ok((index, true))
}

/// A token bucket filter as the root of a device. True: it was not there.
async fn put_bucket(kernel: &Kernel, name: &str, link: u32, bucket: &Bucket) -> Result<bool, KernelError> {
    if seen(kernel, name, link).await? == Some(bucket.seen()) {
        return Ok(false);
    }
    let options = bucket.options().map(|(kind, value)| TcOption::Other(DefaultNla::new(kind, value)));
    let attributes = vec![TcAttribute::Kind(TBF.to_owned()), TcAttribute::Options(options.collect())];
    let at = (TcHandle::ROOT, TcHandle { major: 1, minor: 0 });
    let result = put_queue(kernel, link, at, attributes, NLM_F_REPLACE).await;
    result.or_else(asked(|| format!("Could not limit {name} to {} bit/s", bucket.rate * 8)))?;
    Ok(true)
}

/// A queueing discipline under a parent and by a handle.
async fn put_queue(
    kernel: &Kernel,
    link: u32,
    (parent, handle): (TcHandle, TcHandle),
    attributes: Vec<TcAttribute>,
    flags: u16,
) -> Result<(), rtnetlink::Error> {
    let mut message = TcMessage::with_index(index(link));
    (message.header.parent, message.header.handle) = (parent, handle);
    message.attributes = attributes;
    acknowledged(kernel, RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | flags).await
}

/// A request that is answered by yes or no.
async fn acknowledged(
    kernel: &Kernel,
    message: RouteNetlinkMessage,
    flags: u16,
) -> Result<(), rtnetlink::Error> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    let mut netlink = kernel.handle().clone();
    let mut answers = netlink.request(request)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(rtnetlink::Error::NetlinkError(error));
        }
    }
    Ok(())
}

/// Rate and limit of the token bucket filter at the root of a device, if there is one.
async fn seen(kernel: &Kernel, name: &str, link: u32) -> Result<Option<(u64, u32)>, KernelError> {
    let mut found = None;
    let _one = kernel.one_dump().await;
    let mut dump = kernel.handle().qdisc().get().index(index(link)).execute();
    let what = || format!("Could not list the queues of {name}");
    while let Some(message) = dump.try_next().await.or_else(asked(what))? {
        // The kernel may list those of all devices.
        if message.header.index == index(link) && message.header.parent == TcHandle::ROOT {
            found = bucket_of(&message);
        }
    }
    Ok(found)
}

fn bucket_of(message: &TcMessage) -> Option<(u64, u32)> {
    let is_tbf = |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == TBF);
    message.attributes.iter().find(|attribute| is_tbf(attribute))?;
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => options.iter().find_map(|option| match option {
            TcOption::Other(all) => {
                let mut bytes = vec![0; all.value_len()];
                all.emit_value(&mut bytes);
                Bucket::read(&bytes)
            }
            _ => None,
        }),
        _ => None,
    })
}

/// Devices to which everything that comes in by a link is redirected by us.
async fn redirected(kernel: &Kernel, name: &str, link: u32) -> Result<Vec<u32>, KernelError> {
    let mut devices = Vec::new();
    let _one = kernel.one_dump().await;
    let mut dump = kernel.handle().traffic_filter(index(link)).get().ingress().execute();
    let what = || format!("Could not list the filters of {name}");
    loop {
        match dump.try_next().await {
            Ok(Some(message)) if message.header.info >> 16 == u32::from(PRIORITY) => {
                devices.extend(message.attributes.iter().filter_map(mirrored_to));
            }
            Ok(Some(_)) => {}
            Ok(None) => return Ok(devices),
            // No filter can be where there is no clsact.
            Err(error) => {
                tolerate(Err(error), &[Errno::INVAL, Errno::NOENT], what)?;
                return Ok(devices);
            }
        }
    }
}

fn mirrored_to(attribute: &TcAttribute) -> Option<u32> {
    let TcAttribute::Options(options) = attribute else { return None };
    let actions = options.iter().filter_map(|option| match option {
        TcOption::U32(TcFilterU32Option::Action(actions)) => Some(actions),
        _ => None,
    });
    let attributes = actions.flatten().flat_map(|action| &action.attributes);
    let options = attributes.filter_map(|attribute| match attribute {
        TcActionAttribute::Options(options) => Some(options),
        _ => None,
    });
    options.flatten().find_map(|option| match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(parms)) => Some(parms.ifindex),
        _ => None,
    })
}

/// Leads everything that comes in by a link to the device, instead of wherever it was led before.
async fn redirect(kernel: &Kernel, name: &str, link: u32, device: u32) -> Result<(), KernelError> {
    let what = || format!("Could not lead what comes by {name} to its queue");
    let at = (TcHandle::CLSACT, TcHandle { major: TcHandle::CLSACT.major, minor: 0 });
    let kind = vec![TcAttribute::Kind("clsact".to_owned())];
    // There may be the data path's, where the kernel has no tcx.
    tolerate(put_queue(kernel, link, at, kind, NLM_F_EXCL).await, &[Errno::EXIST], what)?;
    // All of the priority, wherever they lead.
    let mut old = TcMessage::with_index(index(link));
    old.header.parent = TcHandle { major: TcHandle::CLSACT.major, minor: TcHandle::MIN_INGRESS };
    old.header.info = u32::from(PRIORITY) << 16 | u32::from(ALL_PROTOCOLS);
    let old = acknowledged(kernel, RouteNetlinkMessage::DelTrafficFilter(old), 0).await;
    tolerate(old, &[Errno::NOENT, Errno::INVAL], what)?;
    let filter = kernel.handle().traffic_filter(index(link)).add().ingress();
    let filter = filter.priority(PRIORITY).protocol(ALL_PROTOCOLS).redirect(device).or_else(asked(what))?;
    filter.execute().await.or_else(asked(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachments::{Loaded, Table};
    use mesh_core::ipam::{Ipam, Millis};
    use proto::cni::AttachmentId;

    #[test]
    fn a_device_is_unused_only_where_it_is_known_that_no_pod_sends_through_it() {
        let of = |bandwidth| Attachment {
            v: 1,
            id: AttachmentId { container_id: "c".into(), ifname: "eth0".into() },
            network: "hawser".into(),
            pod: None,
            netns: "/run/netns/c".into(),
            ips: Vec::new(),
            mac: None,
            port_mappings: Vec::new(),
            bandwidth,
        };
        let slow = of(Some(Bandwidth { egress_rate: 1_000_000, ..Bandwidth::default() }));
        let receives = of(Some(Bandwidth { ingress_rate: 1_000_000, ..Bandwidth::default() }));
        let free = of(None);
        let ipam = Ipam::new("node-1".parse().unwrap(), &[]);
        let mut table = Table::new(ipam, Loaded::default(), Millis(0));
        table.recover("hw0123456789abc", Vec::new());
        let unread = table.attachments.get("hw0123456789abc");
        assert!(unread.is_some());

        assert!(is_unused(None, true), "nobody is behind that link");
        assert!(!is_unused(Some(&slow), true));
        assert!(is_unused(Some(&receives), true) && is_unused(Some(&free), true));
        assert!(!is_unused(unread, true), "its file may have asked for a rate");
        for attachment in [None, Some(&slow), Some(&free), unread] {
            assert!(is_unused(attachment, false), "without a link nobody sends");
        }
    }
}
