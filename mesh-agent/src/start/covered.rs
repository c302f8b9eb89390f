//! Before anything is touched: pods that run have their addresses inside `podCIDRs`.
//!
//! Of a prefix that somebody has mistyped or taken out, all that refuses would go as soon as the Nodes are read, and what pods
//! in it send would leave in plaintext. An agent that does not start leaves it as it is, and the ways through the tunnel, too:
//! pods go on talking while somebody reads the error.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use mesh_core::numbers::TABLE_PODS;
use mesh_core::plan::Target;

use crate::attachments::{Attachment, Directory};
use crate::cni;
use crate::config::Config;
use crate::kernel::{Kernel, KernelState};

/// Pods that the error names.
const NAMED: usize = 3;

/// What is wrong where a pod that runs has an address outside `podCIDRs` of the configuration, which was read from `path`.
///
/// # Errors
/// It could not be seen: no reason to leave open what is to be closed.
pub(super) async fn check(path: &Path, config: &Config, kernel: &Kernel) -> anyhow::Result<Option<String>> {
    // After a boot nobody runs, whatever files say, and everything is to be closed at once.
    if !kernel.links().await?.keys().any(|name| cni::is_pod_veth(name)) {
        return Ok(None);
    }
    let state = kernel.observe().await?;
    let directory = config.state_dir.join("attachments");
    // Without files the routes tell. Why there are none is said later on, before anything is opened.
    let read = move || Directory::open(&directory).and_then(|directory| directory.load()).unwrap_or_default();
    let files = tokio::task::spawn_blocking(read).await?.attachments;
    let outside = outside(&config.settings.pod_cidrs, &files, &state);
    if outside.is_empty() {
        return Ok(None);
    }
    let refusal = refusal(&config.settings.pod_cidrs, &outside);
    Ok(Some(format!("configuration {}: {refusal}", path.display())))
}

/// Pods that run with addresses outside `pod_cidrs`. Whose link is gone does not run, though its file may still be there.
fn outside(pod_cidrs: &[IpNet], files: &BTreeMap<String, Attachment>, state: &KernelState) -> Vec<String> {
    let mut running: BTreeMap<&str, BTreeSet<IpAddr>> = BTreeMap::new();
    for veth in state.links.keys().filter(|name| cni::is_pod_veth(name)) {
        let ips = files.get(veth).into_iter().flat_map(|file| file.ips.iter().copied());
        running.insert(veth.as_str(), ips.collect());
    }
    // Files may be lost.
    for route in state.routes.iter().filter(|route| route.table == TABLE_PODS) {
        let Target::Device { device, .. } = &route.target else { continue };
        if let Some(addresses) = running.get_mut(device.as_str()) {
            addresses.insert(route.prefix.addr());
        }
    }
    let mut outside = Vec::new();
    for (veth, addresses) in running {
        let uncovered = addresses.iter().filter(|ip| !pod_cidrs.iter().any(|cidr| cidr.contains(*ip)));
        let uncovered: Vec<String> = uncovered.map(ToString::to_string).collect();
        if uncovered.is_empty() {
            continue;
        }
        let pod = files.get(veth).and_then(|file| file.pod.as_ref());
        let pod = pod.map_or_else(
            || format!("the pod on link {veth}"),
            |pod| format!("pod {}/{}", pod.namespace, pod.name),
        );
        outside.push(format!("{} of {pod}", uncovered.join(" and ")));
    }
    outside
}

fn refusal(pod_cidrs: &[IpNet], outside: &[String]) -> String {
    let cidrs: Vec<String> = pod_cidrs.iter().map(ToString::to_string).collect();
    let named = outside.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    let more = match outside.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more pods of this node"),
    };
    format!(
        "field podCIDRs: [{}] does not cover {named}{more}: an agent with it would let what they send out in plaintext. It does not start, and \
         what is closed stays closed; name their prefix there, too, as long as such pods run, or delete them first",
        cidrs.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use mesh_core::plan::Route;
    use proto::cni::{AttachmentId, PodRef};

    use super::*;
    use crate::kernel::Link;

    const LINKS: [&str; 3] = ["hw0000000000001", "hw0000000000002", "hw0000000000003"];

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn file(pod: &str, ips: &[&str]) -> Attachment {
        let pod = PodRef { namespace: "shop".into(), name: pod.into(), uid: None };
        Attachment {
            v: 1,
            id: AttachmentId { container_id: "c".into(), ifname: "eth0".into() },
            network: "hawser".into(),
            pod: Some(pod),
            netns: "/run/netns/x".into(),
            ips: ips.iter().map(|text| text.parse().unwrap()).collect(),
            mac: None,
            port_mappings: Vec::new(),
            bandwidth: None,
        }
    }

    /// Links, and routes of pods by prefix and device; none: it refuses.
    fn kernel(links: &[&str], routes: &[(&str, Option<&str>)]) -> KernelState {
        let link = |index| Link { index, mtu: 1500, up: true, mac: Vec::new(), received: 0 };
        let route = |(prefix, device): &(&str, Option<&str>)| Route {
            table: TABLE_PODS,
            prefix: prefix.parse().unwrap(),
            target: device.map_or(Target::Unreachable, |device| Target::Device {
                device: device.to_owned(),
                source: None,
            }),
        };
        KernelState {
            links: links.iter().zip(1..).map(|(name, index)| ((*name).to_owned(), link(index))).collect(),
            routes: routes.iter().map(route).collect(),
            ..KernelState::default()
        }
    }

    #[test]
    fn pods_that_run_outside_the_pod_cidrs_are_named_and_those_that_are_gone_hold_up_nobody() {
        let files: BTreeMap<String, Attachment> = [
            (LINKS[0].to_owned(), file("web", &["10.244.1.2", "fd00:10:244:1::2"])),
            (LINKS[1].to_owned(), file("db", &["10.244.1.3", "fd00:10:244:1::3"])),
        ]
        .into();
        let routes =
            [("10.244.1.4/32", Some(LINKS[2])), ("10.244.2.0/24", Some("hawser0")), ("10.244.0.0/16", None)];
        let all = kernel(&[LINKS[0], LINKS[2], "eth0", "hawser0"], &routes);
        let both = nets(&["10.244.0.0/16", "fd00:10:244::/48"]);
        assert_eq!(outside(&both, &files, &all), Vec::<String>::new());
        let mistyped = nets(&["10.242.0.0/16", "fd00:10:244::/48"]);
        assert_eq!(
            outside(&mistyped, &files, &all),
            ["10.244.1.2 of pod shop/web", "10.244.1.4 of the pod on link hw0000000000003"]
        );
        // Taken out: every address counts.
        assert_eq!(outside(&nets(&["10.244.0.0/16"]), &files, &all), ["fd00:10:244:1::2 of pod shop/web"]);
        assert_eq!(
            outside(&nets(&["10.99.0.0/16"]), &files, &kernel(&[LINKS[0]], &[])),
            ["10.244.1.2 and fd00:10:244:1::2 of pod shop/web"]
        );
        // After a boot.
        assert_eq!(outside(&mistyped, &files, &kernel(&["eth0"], &[])), Vec::<String>::new());
        // The Node was made anew with another pod CIDR of the cluster's.
        let smaller = nets(&["10.244.0.0/20", "fd00:10:244::/56"]);
        assert_eq!(outside(&smaller, &files, &all), Vec::<String>::new());
    }

    #[test]
    fn the_refusal_names_the_field_some_pods_and_the_remedy() {
        let pods: Vec<String> =
            (1..=5).map(|number| format!("10.244.1.{number} of pod shop/p{number}")).collect();
        let text = refusal(&nets(&["10.242.0.0/16", "fd00:10:244::/48"]), &pods);
        for part in [
            "field podCIDRs: [10.242.0.0/16, fd00:10:244::/48] does not cover 10.244.1.1 of pod shop/p1, ",
            "10.244.1.3 of pod shop/p3 and 2 more pods of this node",
            "name their prefix there",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        assert!(!text.contains("p4"), "{text}");
        assert!(!refusal(&nets(&["10.242.0.0/16"]), &pods[..1]).contains("more pods"));
    }
}
