//! Pods and what listens on nodes themselves.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use chaos_tests::Lab;
use netlab::eventually;

use crate::support::{Ask, Counts, Namer};
use crate::{SOON, lab};

const PORT: u16 = 7100;

/// Both families by one socket that is bound to no address: what it answers has the source that the routes give.
fn server(lab: &Lab, node: u8) -> Result<Namer> {
    Namer::new(&lab.node(node).namespace, &format!("node {node}"), &[Ipv6Addr::UNSPECIFIED.into()], PORT)
}

#[test]
fn a_nodes_server_that_is_bound_to_no_address_answers_pods_from_the_one_that_they_asked() -> Result<()> {
    let lab = lab("wildcard", 2)?;
    let _server = server(&lab, 1)?;
    let mut answers = 0;
    for pod in [lab.add_pod(1, "near")?, lab.add_pod(2, "far")?] {
        for ip in lab.node(1).addresses()? {
            for ask in [Ask::Udp, Ask::Tcp] {
                let to = SocketAddr::new(ip, PORT);
                eventually(
                    SOON,
                    &format!("node 1 answers {} over {ask:?} from {ip}", pod.name),
                    || match ask.once(&pod.namespace, to, Duration::from_secs(1)) {
                        Ok(name) if name == "node 1" => Ok(()),
                        other => Err(format!("{other:?}; {:?}", Counts::of(lab.node(1)))),
                    },
                )?;
                answers += 1;
            }
        }
    }
    println!("{answers} answers to connected sockets");
    Ok(())
}

#[test]
fn a_pod_sees_a_node_under_the_address_by_which_it_knows_it() -> Result<()> {
    let lab = lab("known", 2)?;
    for pod in [lab.add_pod(1, "near")?, lab.add_pod(2, "far")?] {
        let namer = Namer::new(&pod.namespace, &pod.name, &pod.ips, PORT)?;
        for ip in &pod.ips {
            let to = SocketAddr::new(*ip, PORT);
            eventually(SOON, &format!("{} answers node 1", pod.name), || {
                Ask::Udp
                    .once(&lab.node(1).namespace, to, Duration::from_secs(1))
                    .map_err(|error| error.to_string())
            })?;
        }
        let own = lab.node(1).addresses()?;
        let seen: Vec<IpAddr> = namer.heard().iter().map(|heard| heard.from.ip()).collect();
        ensure!(!seen.is_empty() && seen.iter().all(|ip| own.contains(ip)), "{seen:?} of {own:?}");
        println!("{} was asked by {seen:?}", pod.name);
    }
    Ok(())
}

/// Kubernetes' own tests look for connections in the conntrack of the client's node ("KubeProxy should set TCP CLOSE_WAIT timeout").
#[test]
fn what_a_pod_says_to_another_node_is_in_its_own_nodes_conntrack() -> Result<()> {
    let lab = lab("tracked", 2)?;
    let pod = lab.add_pod(1, "client")?;
    let _server = server(&lab, 2)?;
    for ip in lab.node(2).addresses()? {
        let own = pod.ips.iter().find(|own| own.is_ipv4() == ip.is_ipv4()).expect("both families");
        for (ask, protocol) in [(Ask::Tcp, "tcp"), (Ask::Udp, "udp")] {
            let name = ask.once(&pod.namespace, SocketAddr::new(ip, PORT), Duration::from_secs(5))?;
            ensure!(name == "node 2", "{name} has answered");
            let all = lab.node(1).sh("cat /proc/self/net/nf_conntrack")?;
            // The kernel writes every group of an IPv6 address.
            let of = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => ip.segments().map(|group| format!("{group:04x}")).join(":"),
            };
            let ends = format!("src={} dst={} ", of(*own), of(ip));
            let found: Vec<&str> = all
                .lines()
                .filter(|line| {
                    line.contains(protocol) && line.contains(&ends) && line.contains(&format!("dport={PORT}"))
                })
                .collect();
            ensure!(found.len() == 1 && !found[0].contains("UNREPLIED"), "{ends} over {protocol} in:\n{all}");
            println!("{}", found[0]);
        }
    }
    Ok(())
}
