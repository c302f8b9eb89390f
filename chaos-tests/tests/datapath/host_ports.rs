//! hostPorts of one node among each other, over time, and with policy.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::pod::PodSpec;
use chaos_tests::runtime::CniError;
use chaos_tests::{Lab, Pod};
use netlab::eventually;
use serde_json::{Value, json};

use crate::support::ask::{PATIENCE, datagrams, exchange};
use crate::support::objects::{apply, network_policy};
use crate::support::{Ask, Namer};
use crate::{SOON, lab};

const PORT: u16 = 8080;
const HOST_PORT: u16 = 8088;

fn published(lab: &Lab, name: &str, mappings: &[Value]) -> Result<Pod> {
    lab.add_pod_of(&PodSpec::new(1, name).runtime_config(json!({"portMappings": mappings})))
}

/// As containerd says it.
fn mapping(protocol: &str, host_port: u16, host_ip: &str) -> Value {
    json!({"HostPort": host_port, "ContainerPort": PORT, "Protocol": protocol, "HostIP": host_ip})
}

fn serve(pod: &Pod) -> Result<Namer> {
    Namer::new(&pod.namespace, &pod.name, &pod.ips, PORT)
}

#[test]
fn a_taken_host_port_is_refused_by_name_and_goes_to_the_next_pod_with_its_datagrams() -> Result<()> {
    let lab = lab("hpmove", 1)?;
    let both = [mapping("tcp", HOST_PORT, ""), mapping("udp", HOST_PORT, "")];
    let at: Vec<SocketAddr> =
        lab.node(1).addresses()?.into_iter().map(|ip| SocketAddr::new(ip, HOST_PORT)).collect();
    // Talks before there is anybody: these entries of conntrack know of no translation.
    let sockets: Vec<_> = at
        .iter()
        .map(|to| {
            let to = *to;
            let socket = lab.world.run(move || datagrams(to))?;
            let _nobody = exchange(&socket, b"early", Duration::from_millis(50));
            Ok(socket)
        })
        .collect::<Result<_>>()?;
    let first = published(&lab, "first", &both)?;
    let server = serve(&first)?;
    let answered_by = |name: &str| {
        for (socket, to) in sockets.iter().zip(&at) {
            eventually(SOON, &format!("{name} answers the same socket at {to}"), || {
                match exchange(socket, b"who", PATIENCE) {
                    Ok(by) if by == name => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })?;
            let tcp = Ask::Tcp.once(&lab.world, *to, Duration::from_secs(2))?;
            ensure!(tcp == name, "{tcp} answers at {to}");
        }
        anyhow::Ok(())
    };
    answered_by("first")?;
    let refused = published(&lab, "second", &both[1..]).err().context("two pods have one hostPort")?;
    let error = refused.downcast_ref::<CniError>().context("no CNI error")?.clone();
    ensure!(error.code == 11, "{error:?}");
    let sentence = format!("hostPort {HOST_PORT}/UDP of pod default/second is taken: pod default/first has");
    ensure!(error.msg.starts_with(&sentence), "{error:?}");
    drop(server);
    first.remove(&lab)?;
    let gone = lab.node(1).sh("nft list tables")?;
    ensure!(!gone.contains("hawser_hostports"), "{gone}");
    let third = published(&lab, "third", &both)?;
    let _server = serve(&third)?;
    answered_by("third")?;
    println!("{} sockets of the world were answered by the first pod, then by the third", sockets.len());
    Ok(())
}

#[test]
fn a_host_port_keeps_to_its_address_and_the_real_source_is_judged() -> Result<()> {
    let lab = lab("hpwhere", 2)?;
    let own = lab.node(1).addresses()?;
    let v4 = *own.iter().find(|ip| ip.is_ipv4()).context("an address")?;
    let everywhere = published(&lab, "everywhere", &[mapping("tcp", HOST_PORT, "")])?;
    let somewhere = published(&lab, "somewhere", &[mapping("tcp", 8089, &v4.to_string())])?;
    let loopback = published(&lab, "loopback", &[mapping("tcp", 8090, "127.0.0.1")])?;
    let _servers = [serve(&everywhere)?, serve(&somewhere)?, serve(&loopback)?];
    let host = &lab.node(1).namespace;
    let local: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for (port, name, at) in [
        (HOST_PORT, "everywhere", own.iter().copied().chain([local[0]]).collect::<BTreeSet<IpAddr>>()),
        (8089, "somewhere", BTreeSet::from([v4])),
        (8090, "loopback", BTreeSet::from([local[0]])),
    ] {
        for ip in own.iter().chain(&local) {
            let answer = Ask::Tcp.once(host, SocketAddr::new(*ip, port), Duration::from_secs(2));
            let wanted = at.contains(ip).then(|| name.to_owned());
            ensure!(
                answer.as_ref().ok() == wanted.as_ref(),
                "{ip} port {port}: {answer:?}, wanted {wanted:?}"
            );
        }
    }
    // Policy sees who speaks, not who passed it on.
    let world: Vec<IpAddr> =
        Ask::Tcp.once(&lab.world, SocketAddr::new(v4, HOST_PORT), Duration::from_secs(2)).map(|_| {
            let heard = _servers[0].heard();
            heard.iter().rev().take(1).map(|heard| heard.from.ip()).collect()
        })?;
    let source = world.first().copied().context("nobody was heard")?;
    ensure!(!own.contains(&source), "the world comes as {source}, an address of the node");
    let only = json!({
        "podSelector": {"matchLabels": {"app": "everywhere"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"ipBlock": {"cidr": format!("{source}/32")}}]}],
    });
    apply(&lab, &network_policy("only-the-world", only))?;
    let to = SocketAddr::new(v4, HOST_PORT);
    eventually(SOON, "the other node is not let in", || {
        match Ask::Tcp.once(&lab.node(2).namespace, to, PATIENCE) {
            Err(_) => Ok(()),
            Ok(name) => Err(format!("{name} has answered")),
        }
    })?;
    let answer = Ask::Tcp.once(&lab.world, to, Duration::from_secs(2))?;
    ensure!(answer == "everywhere", "{answer}");
    Ok(())
}
