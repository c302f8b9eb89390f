//! kube-proxy beside ours: what enters a node from outside, and what the node itself says, is translated by rules as
//! kube-proxy writes them, while pods are served by the data path.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use chaos_tests::kube_proxy::kube_proxy;
use chaos_tests::{Lab, LabOptions};
use netlab::eventually;
use serde_json::json;

use crate::support::objects::{
    BACKEND_PORT, Endpoint, SERVICE_PORT, apply, cluster_ips, delete_service, ingress_only, network_policy,
    service, set_endpoints, with_cluster_ips,
};
use crate::support::{Ask, Counts, Namer};
use crate::{SOON, lab, lab_of};

const NODE_PORT: u16 = 30_090;

fn answered(lab: &Lab, from: &netlab::Namespace, to: SocketAddr, by: &str) -> Result<()> {
    for ask in [Ask::Tcp, Ask::Udp] {
        let what = format!("{by} answers {} over {ask:?} at {to}", from.name());
        eventually(SOON, &what, || match ask.once(from, to, Duration::from_secs(1)) {
            Ok(name) if name == by => Ok(()),
            other => Err(format!("{other:?}; {:?}", Counts::of(lab.node(1)))),
        })?;
    }
    Ok(())
}

#[test]
fn rules_like_kube_proxys_serve_the_world_and_the_host_beside_ours() -> Result<()> {
    let lab = lab("proxy", 2)?;
    let [client, near, far] = [lab.add_pod(1, "client")?, lab.add_pod(1, "near")?, lab.add_pod(2, "far")?];
    let mut servers = Vec::new();
    let mut before = Counts::of(lab.node(1))?;
    for (backend, number) in [(&near, 40), (&far, 41)] {
        servers.push(Namer::new(&backend.namespace, &backend.name, &backend.ips, BACKEND_PORT)?);
        let mut spec = with_cluster_ips(number);
        spec["type"] = json!("NodePort");
        spec["ports"] = json!([
            {"name": "tcp", "protocol": "TCP", "port": SERVICE_PORT, "nodePort": NODE_PORT},
            {"name": "udp", "protocol": "UDP", "port": SERVICE_PORT, "nodePort": NODE_PORT},
        ]);
        apply(&lab, &service("web", &spec))?;
        set_endpoints(&lab, "web", &[Endpoint::ready(backend)])?;
        let ips = cluster_ips(number);
        kube_proxy(lab.node(1), ips, NODE_PORT, &backend.ips)?;
        for ip in ips {
            let to = SocketAddr::new(ip, SERVICE_PORT);
            // A pod by the data path, the host by kube-proxy's rules.
            answered(&lab, &client.namespace, to, &backend.name)?;
            answered(&lab, &lab.node(1).namespace, to, &backend.name)?;
        }
        for ip in lab.node(1).addresses()? {
            let to = SocketAddr::new(ip, NODE_PORT);
            answered(&lab, &lab.world, to, &backend.name)?;
            answered(&lab, &client.namespace, to, &backend.name)?;
        }
        let now = Counts::of(lab.node(1))?;
        let translated = now.since(&before).get("translated")?;
        ensure!(translated > 0, "the data path has translated nothing");
        before = now;
        lab.node(1).sh("nft delete table inet kube-proxy")?;
        // Both want one node port; one at a time has it. A Service keeps its cluster addresses for life.
        delete_service(&lab, "web")?;
        println!(
            "{}: the world and the host by kube-proxy's rules, pods by ours ({translated} flows)",
            backend.name
        );
    }
    Ok(())
}

#[test]
fn a_service_that_kube_proxy_knows_first_answers_nobody_from_a_wrong_address_and_is_found_at_the_next_try()
-> Result<()> {
    let options = LabOptions {
        drift_interval: 1,
        allocates_services: true,
        ..LabOptions::new(netlab::unique_name("first")).nodes(2)
    };
    let lab = lab_of(options)?;
    let [client, far] = [lab.add_pod(1, "client")?, lab.add_pod(2, "far")?];
    let _namer = Namer::new(&far.namespace, "far", &far.ips, BACKEND_PORT)?;
    let ips = cluster_ips(44);
    kube_proxy(lab.node(1), ips, NODE_PORT, &far.ips)?;
    let refused = || lab.node(1).metric("hawser_firewall_packets_total{kind=\"service_unknown\"}");
    for ip in ips {
        for ask in [Ask::Tcp, Ask::Udp] {
            let before = refused()?;
            let answer =
                ask.once(&client.namespace, SocketAddr::new(ip, SERVICE_PORT), Duration::from_millis(400));
            ensure!(answer.is_err(), "{answer:?}: by kube-proxy alone, whose answers cannot come back");
            let counted = || refused().map_err(|error| format!("{error:#}")).map(|now| now > before);
            eventually(SOON, "that is counted", || match counted() {
                Ok(true) => Ok(()),
                other => Err(format!("{other:?}")),
            })?;
        }
    }
    apply(&lab, &service("late", &with_cluster_ips(44)))?;
    set_endpoints(&lab, "late", &[Endpoint::ready(&far)])?;
    for ip in ips {
        answered(&lab, &client.namespace, SocketAddr::new(ip, SERVICE_PORT), "far")?;
    }
    Ok(())
}

#[test]
fn what_enters_from_outside_meets_the_policy_of_its_backend() -> Result<()> {
    let lab = lab("outsider", 2)?;
    let [client, server] = [lab.add_pod(1, "client")?, lab.add_pod(1, "server")?];
    let namer = Namer::new(&server.namespace, "server", &server.ips, BACKEND_PORT)?;
    kube_proxy(lab.node(1), cluster_ips(42), NODE_PORT, &server.ips)?;
    let world: Vec<SocketAddr> =
        lab.node(1).addresses()?.into_iter().map(|ip| SocketAddr::new(ip, NODE_PORT)).collect();
    for to in &world {
        answered(&lab, &lab.world, *to, "server")?;
    }
    // Now its own node's masquerade hides the world; what is let in or not is told by the port alone.
    apply(&lab, &network_policy("inside", ingress_only("server", &["client"])))?;
    crate::support::settle(&client.namespace, &server.ips, BACKEND_PORT, true)?;
    let stranger = lab.add_pod(2, "stranger")?;
    crate::support::settle(&stranger.namespace, &server.ips, BACKEND_PORT, false)?;
    namer.forget();
    let before = Counts::of(lab.node(1))?;
    let mut refused = BTreeSet::new();
    for to in &world {
        for ask in [Ask::Tcp, Ask::Udp] {
            if ask.once(&lab.world, *to, Duration::from_millis(400)).is_err() {
                refused.insert((*to, ask));
            }
        }
    }
    let since = Counts::of(lab.node(1))?.since(&before);
    println!("after the policy {} of {} from outside are refused: {since:?}", refused.len(), 2 * world.len());
    ensure!(refused.len() == 2 * world.len() && namer.count() == 0, "{:?}; {since:?}", namer.heard());
    Ok(())
}
