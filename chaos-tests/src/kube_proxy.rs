//! kube-proxy, as far as a scenario needs it: rules like its own for one service with one backend.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};

use crate::Node;
use crate::objects::{BACKEND_PORT, SERVICE_PORT};

/// A table like kube-proxy's of nftables mode: its own marks, DNAT in prerouting and output, masquerade behind it.
///
/// # Errors
/// The node has no address of a family, or nft refuses.
pub fn kube_proxy(node: &Node, cluster_ips: [IpAddr; 2], node_port: u16, backend: &[IpAddr]) -> Result<()> {
    let mut rules = String::new();
    for ip in backend {
        let (family, own) = if ip.is_ipv4() { ("ip", cluster_ips[0]) } else { ("ip6", cluster_ips[1]) };
        let to = SocketAddr::new(*ip, BACKEND_PORT);
        for protocol in ["tcp", "udp"] {
            writeln!(
                rules,
                "{family} daddr {own} {protocol} dport {SERVICE_PORT} counter dnat {family} to {to}"
            )?;
            let host = node.addresses()?.into_iter().find(|host| host.is_ipv4() == ip.is_ipv4());
            let host = host.context("an address of the node")?;
            writeln!(
                rules,
                "{family} daddr {host} {protocol} dport {node_port} meta mark set mark or 0x4000 counter \
                 dnat {family} to {to}"
            )?;
        }
    }
    let table = format!(
        "table inet kube-proxy {{
            chain services {{\n{rules}}}
            chain prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
            chain output {{ type nat hook output priority -100; jump services; }}
            chain postrouting {{
                type nat hook postrouting priority srcnat;
                mark and 0x4000 == 0 return
                meta mark set mark xor 0x4000
                masquerade fully-random
            }}
        }}\n"
    );
    node.write_file("/run/kube-proxy.nft", &table)?;
    node.sh("nft -f /run/kube-proxy.nft")?;
    Ok(())
}
