//! The host's environment against a real kernel, in namespaces of each test.

mod nft_lab;

use mesh_agent::host::{
    ChainHook, DropsBy, Host, HostFix, HostWant, judge, pod_veth_sysctls, slot_sysctls, uplink,
};
use nft_lab::Lab;

fn want() -> HostWant {
    HostWant {
        slots: ["hawser0".into(), "hawser1".into()],
        pod_veth_prefix: "hw".into(),
        tunnel_ports: [51880, 51881],
        ipv4: true,
        ipv6: true,
        ipv6_guarded: true,
        loose: Vec::new(),
    }
}

/// Observes, judges and applies; the fixes that were needed.
fn settle(lab: &Lab) -> Vec<String> {
    lab.inside("node", || {
        let host = Host::default();
        let (fixes, _) = judge(&host.observe(&want()).expect("observed"), &want());
        fixes.iter().for_each(|fix| host.apply(fix).unwrap_or_else(|error| panic!("{error}")));
        fixes.iter().map(ToString::to_string).collect()
    })
}

#[test]
fn forwarding_router_advertisements_and_slots_are_settled_once() {
    let lab = Lab::new(&["node", "peer"]);
    lab.veth(("node", "eth0"), ("peer", "eth0"));
    lab.veth(("node", "hawser0"), ("peer", "eth1"));
    lab.sysctl("node", "ipv4/ip_forward", "0");
    lab.sysctl("node", "ipv6/conf/all/forwarding", "0");
    lab.sysctl("node", "ipv6/conf/eth0/accept_ra", "1");
    lab.sysctl("node", "ipv4/conf/all/rp_filter", "1");
    let fixes = settle(&lab);
    assert!(fixes.contains(&"/proc/sys/net/ipv6/conf/eth0/accept_ra = 2".to_owned()), "{fixes:?}");
    for (key, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/eth0/accept_ra", "2"),
        ("ipv6/conf/hawser0/accept_ra", "0"),
        ("ipv4/conf/hawser0/rp_filter", "2"),
    ] {
        assert_eq!(lab.sysctl_of("node", key), value, "{key}");
    }
    assert_eq!(settle(&lab), [""; 0]);
}

#[test]
fn every_setting_of_a_pods_veth_and_of_a_slot_exists_and_takes_its_value() {
    let lab = Lab::new(&["node", "pod"]);
    lab.veth(("node", "hw0123456789abc"), ("pod", "eth0"));
    for (ipv4, ipv6) in [(true, true), (true, false), (false, true)] {
        let mut all = pod_veth_sysctls("hw0123456789abc", ipv4, ipv6, true);
        all.extend(slot_sysctls("lo", true));
        lab.inside("node", || Host::default().set(&all)).expect("set");
        for sysctl in all {
            let key = sysctl.key.strip_prefix("net/").expect("network settings");
            assert_eq!(lab.sysctl_of("node", key), sysctl.value, "{key}");
        }
    }
}

#[test]
fn an_iptables_forward_policy_drop_is_opened_for_pods_and_iptables_still_lists_it() {
    let lab = Lab::new(&["node", "pod", "peer"]);
    lab.veth(("node", "hw0123456789abc"), ("pod", "eth0"));
    lab.veth(("node", "eth0"), ("peer", "eth0"));
    lab.ip("pod", "address add 10.244.1.5/24 dev eth0");
    lab.ip("node", "address add 10.244.1.1/24 dev hw0123456789abc");
    lab.ip("node", "address add 192.0.2.1/24 dev eth0");
    lab.ip("peer", "address add 192.0.2.9/24 dev eth0");
    lab.ip("pod", "route add default via 10.244.1.1");
    lab.ip("peer", "route add 10.244.1.0/24 via 192.0.2.1");
    settle(&lab);
    for tool in ["iptables-nft", "ip6tables-nft"] {
        lab.sh("node", &format!("{tool} -P FORWARD DROP"), "");
        lab.sh("node", &format!("{tool} -A FORWARD -i eth7 -m comment --comment theirs -j ACCEPT"), "");
    }
    let ping = || lab.exec("pod", "ping -c 1 -W 1 192.0.2.9", "").status.success();
    assert!(!ping(), "the control: without the fix it drops");
    let fixes = settle(&lab);
    assert_eq!(
        fixes,
        [
            "accept hw* in nf_tables chain ip filter FORWARD",
            "accept hw* in nf_tables chain ip6 filter FORWARD"
        ]
    );
    assert!(ping(), "pods pass");
    for tool in ["iptables-nft", "ip6tables-nft"] {
        let rules = lab.sh("node", &format!("{tool} -S FORWARD"), "");
        let accepts: Vec<_> = rules.lines().filter(|line| line.contains("hw+")).collect();
        assert_eq!(accepts.len(), 2, "{rules}");
        assert!(
            rules.contains("-i hw+") && rules.contains("-o hw+") && rules.contains("--comment theirs"),
            "{rules}"
        );
        assert!(rules.lines().nth(1).is_some_and(|first| first.contains("hw+")), "at the head: {rules}");
    }
    assert_eq!(settle(&lab), [""; 0], "once is enough");
    // Half of it gone: half of it comes back.
    lab.sh("node", "iptables-nft -D FORWARD 1", "");
    assert_eq!(settle(&lab), ["accept hw* in nf_tables chain ip filter FORWARD"]);
    assert_eq!(lab.sh("node", "iptables-nft -S FORWARD", "").matches("hw+").count(), 2);
    // The administrator's own words count as well.
    lab.sh("node", "iptables-nft -F FORWARD", "");
    lab.sh("node", "iptables-nft -A FORWARD -i hw+ -j ACCEPT", "");
    lab.sh("node", "iptables-nft -A FORWARD -o hw+ -j ACCEPT", "");
    assert_eq!(settle(&lab), [""; 0]);
}

#[test]
fn chains_that_drop_by_policy_or_last_rule_are_found_in_every_family_and_others_are_not() {
    let lab = Lab::new(&["node"]);
    let ruleset = "table inet a { chain bypolicy { type filter hook forward priority 0; policy drop; };
          chain bylast { type filter hook forward priority 10; ct state established accept; counter reject; };
          chain open { type filter hook forward priority 20; iifname \"x\" drop; };
          chain entry { type filter hook input priority 0; policy drop; };
          chain exit { type filter hook output priority 0; policy drop; };
          chain plain { drop; }; }
        table ip6 b { chain bylast { type filter hook forward priority 0; drop; }; }
        table inet hawser { chain mine { type filter hook forward priority 0; policy drop; }; }
        table bridge c { chain frames { type filter hook forward priority 0; policy drop; }; }";
    lab.sh("node", "nft", ruleset);
    lab.sh("node", "iptables-nft -A FORWARD -j REJECT", "");
    let found = lab.inside("node", || Host::default().observe(&want())).expect("observed");
    let mut chains: Vec<_> = found
        .foreign_chains
        .expect("readable")
        .into_iter()
        .map(|chain| (chain.name(), chain.hook, chain.drops))
        .collect();
    chains.sort();
    let forward = |name: &str, drops| (name.to_owned(), ChainHook::Forward, drops);
    assert_eq!(
        chains,
        [
            forward("inet a bylast", DropsBy::LastRule),
            forward("inet a bypolicy", DropsBy::Policy),
            ("inet a entry".to_owned(), ChainHook::Input, DropsBy::Policy),
            forward("ip filter FORWARD", DropsBy::LastRule),
            forward("ip6 b bylast", DropsBy::LastRule),
        ]
    );
    settle(&lab);
    assert_eq!(settle(&lab), [""; 0]);
    let head = lab.sh("node", "nft list chain inet a bylast", "");
    let rules: Vec<_> =
        head.lines().filter(|line| line.contains("accept") && line.contains("name \"hw*\"")).collect();
    assert_eq!(rules.len(), 2, "{head}");
}

#[test]
fn a_chain_that_went_away_is_an_error_that_names_it() {
    let lab = Lab::new(&["node"]);
    lab.sh("node", "iptables-nft -P FORWARD DROP", "");
    let facts = lab.inside("node", || Host::default().observe(&want())).expect("observed");
    let fixes = judge(&facts, &want()).0;
    let fix = fixes.iter().find(|fix| matches!(fix, HostFix::AcceptPods { .. })).expect("a fix");
    lab.sh("node", "nft flush ruleset", "");
    let error = lab.inside("node", || Host::default().apply(fix)).expect_err("gone").to_string();
    assert!(
        error.starts_with(
            "cannot let pods through nf_tables chain ip filter FORWARD: nf_tables refused rule 0"
        )
    );
}

#[test]
fn links_and_addresses_give_the_uplink_with_its_mtu() {
    let lab = Lab::new(&["node", "peer"]);
    lab.veth(("node", "eth0"), ("peer", "eth0"));
    lab.ip("node", "link set eth0 mtu 1450");
    lab.ip("node", "address add 192.0.2.1/24 dev eth0");
    lab.ip("node", "address add 2001:db8::1/64 dev eth0 nodad");
    let facts = lab.inside("node", || Host::default().observe(&want())).expect("observed");
    for own in ["192.0.2.1", "2001:db8::1"] {
        let found = uplink(&facts.links, &facts.addresses, &[own.parse().unwrap()]).expect("an uplink");
        assert_eq!((found.name.as_str(), found.mtu), ("eth0", 1450));
    }
}

#[test]
fn the_wireguard_probe_agrees_with_ip_and_leaves_no_link() {
    let lab = Lab::new(&["node"]);
    let by_ip = lab.exec("node", "ip link add probe type wireguard", "").status.success();
    let ours = lab.inside("node", || Host::default().kernel_wireguard()).expect("an answer");
    assert_eq!(ours, by_ip);
    let links = lab.sh("node", "ip -o link", "");
    assert!(!links.contains("wgprobe"), "{links}");
}
