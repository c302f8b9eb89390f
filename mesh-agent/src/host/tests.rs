use std::net::IpAddr;

use super::*;
use crate::nft::{NFPROTO_INET, NFPROTO_IPV4};

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

/// A host on which all is well; `settings` as `path=value` over that.
fn facts(settings: &[&str]) -> HostFacts {
    let well = ["net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1", "net/ipv4/conf/all/rp_filter=1"];
    let pairs = well.iter().chain(settings).filter_map(|line| line.split_once('='));
    HostFacts {
        proc_sys_writable: true,
        sysctls: pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        advertised: BTreeSet::new(),
        foreign_chains: Ok(Vec::new()),
        legacy_filter_v4: false,
        legacy_filter_v6: false,
        networkd: None,
        conntrack: true,
        links: Vec::new(),
        addresses: Vec::new(),
    }
}

/// What is set and which findings there are, in words.
fn check(facts: &HostFacts, want: &HostWant, fixes: &[&str], findings: &[&str]) {
    let (found_fixes, found_findings) = judge(facts, want);
    let found_fixes: Vec<_> = found_fixes.iter().map(ToString::to_string).collect();
    assert_eq!(found_fixes, fixes);
    let codes: Vec<_> = found_findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, findings);
}

fn chain(hook: ChainHook, from: bool, to: bool) -> ForeignChain {
    ForeignChain {
        family: NFPROTO_IPV4,
        table: "filter".into(),
        chain: if hook == ChainHook::Forward { "FORWARD".into() } else { "INPUT".into() },
        hook,
        drops: DropsBy::Policy,
        accepts_from_pods: from,
        accepts_to_pods: to,
    }
}

#[test]
fn a_host_on_which_all_is_well_needs_nothing() {
    check(&facts(&[]), &want(), &[], &[]);
}

#[test]
fn forwarding_is_switched_on_for_the_families_of_the_pods_alone() {
    let off = facts(&["net/ipv4/ip_forward=0", "net/ipv6/conf/all/forwarding=0"]);
    let (v4, v6) = ("/proc/sys/net/ipv4/ip_forward = 1", "/proc/sys/net/ipv6/conf/all/forwarding = 1");
    check(&off, &want(), &[v4, v6], &[]);
    check(&off, &HostWant { ipv6: false, ..want() }, &[v4], &[]);
    check(&off, &HostWant { ipv4: false, ..want() }, &[v6], &[]);
}

#[test]
fn interfaces_that_listen_to_routers_are_told_to_go_on_before_the_host_forwards() {
    let listening = [
        "net/ipv6/conf/all/accept_ra=1",
        "net/ipv6/conf/default/accept_ra=1",
        "net/ipv6/conf/eth0/accept_ra=1",
        "net/ipv6/conf/eth1.100/accept_ra=1",
        "net/ipv6/conf/eth2/accept_ra=0",
        "net/ipv6/conf/eth3/accept_ra=2",
        "net/ipv6/conf/hawser0/accept_ra=1",
        "net/ipv6/conf/hw0123456789abc/accept_ra=1",
        "net/ipv6/conf/lo/accept_ra=1",
    ];
    let forwarding = "net/ipv6/conf/all/forwarding=0";
    check(
        &facts(&[&listening[..], &[forwarding]].concat()),
        &want(),
        &[
            "/proc/sys/net/ipv6/conf/eth0/accept_ra = 2",
            "/proc/sys/net/ipv6/conf/eth1.100/accept_ra = 2",
            "/proc/sys/net/ipv6/conf/all/forwarding = 1",
        ],
        &[],
    );
    // A router of its own does not listen, but where it evidently did.
    let mut router = facts(&listening);
    check(&router, &want(), &[], &[]);
    router.advertised = ["eth1.100".to_owned(), "eth3".to_owned()].into();
    check(&router, &want(), &["/proc/sys/net/ipv6/conf/eth1.100/accept_ra = 2"], &[]);
    check(&router, &HostWant { ipv6: false, ..want() }, &[], &[]);
}

#[test]
fn slots_that_exist_check_the_reverse_path_loosely_whatever_all_says() {
    let settings = [
        "net/ipv4/conf/hawser0/rp_filter=0",
        "net/ipv4/conf/hawser0/forwarding=1",
        "net/ipv6/conf/hawser0/accept_ra=0",
        "net/ipv6/conf/hawser0/forwarding=1",
    ];
    check(&facts(&settings), &want(), &[], &[]);
    let mut with_link = facts(&settings);
    with_link.links = vec![Link { index: 7, name: "hawser0".into(), mtu: 1440 }];
    check(&with_link, &want(), &["/proc/sys/net/ipv4/conf/hawser0/rp_filter = 2"], &[]);
}

#[test]
fn a_kernel_without_ipv6_is_an_error_where_pods_have_it_and_a_warning_where_others_have() {
    let mut without = facts(&[]);
    without.sysctls.remove("net/ipv6/conf/all/forwarding");
    assert!(!without.has_ipv6());
    let elsewhere = HostWant { ipv6: false, ..want() };
    for (want, severity) in [(want(), Severity::Error), (elsewhere.clone(), Severity::Warning)] {
        check(&without, &want, &[], &["ipv6-unavailable"]);
        assert_eq!(judge(&without, &want).1[0].severity, severity);
    }
    check(&without, &HostWant { ipv6_guarded: false, ..elsewhere.clone() }, &[], &[]);
    check(&facts(&[]), &elsewhere, &[], &[]);
}

#[test]
fn a_read_only_proc_sys_is_reported_with_path_values_and_remedy_but_not_where_the_value_is_right() {
    let mut read_only = facts(&["net/ipv4/ip_forward=0"]);
    read_only.proc_sys_writable = false;
    check(&read_only, &want(), &[], &["sysctl-read-only"]);
    expect_test::expect![[r#"/proc/sys/net/ipv4/ip_forward: value is "0" and /proc/sys is read-only, wanted "1"; mount the host's /proc/sys/net writable and name its place with --proc-sys, or put `net.ipv4.ip_forward = 1` into /etc/sysctl.d/90-hawser.conf on the host and run `sysctl --system`"#]]
    .assert_eq(&judge(&read_only, &want()).1[0].to_string());
    let mut vlan = facts(&["net/ipv6/conf/all/forwarding=0", "net/ipv6/conf/eth0.5/accept_ra=1"]);
    vlan.proc_sys_writable = false;
    let remedy = judge(&vlan, &want()).1.remove(0).remedy;
    assert!(
        remedy.contains("`net.ipv6.conf.eth0/5.accept_ra = 2`"),
        "sysctl's way of a dot in a name: {remedy}"
    );
}

#[test]
fn forward_chains_that_drop_are_fixed_once_and_input_chains_reported() {
    let with = |chains| HostFacts { foreign_chains: Ok(chains), ..facts(&[]) };
    let fix = ["accept hw* in nf_tables chain ip filter FORWARD"];
    check(&with(vec![chain(ChainHook::Forward, false, false)]), &want(), &fix, &[]);
    check(&with(vec![chain(ChainHook::Forward, true, false)]), &want(), &fix, &[]);
    check(&with(vec![chain(ChainHook::Forward, true, true)]), &want(), &[], &[]);
    let mut input = chain(ChainHook::Input, false, false);
    input.family = NFPROTO_INET;
    input.drops = DropsBy::LastRule;
    let input = with(vec![input]);
    check(&input, &want(), &[], &["input-firewall-drops"]);
    let finding = judge(&input, &want()).1.remove(0);
    assert_eq!(finding.severity, Severity::Warning);
    assert_eq!(finding.object, "nf_tables chain inet filter INPUT");
    assert!(finding.remedy.contains("`nft insert rule inet filter INPUT udp dport { 51880, 51881 } accept`"));
    check(
        &HostFacts { foreign_chains: Err("EPERM".into()), ..facts(&[]) },
        &want(),
        &[],
        &["nftables-unread"],
    );
}

#[test]
fn what_cannot_be_read_or_set_is_named_with_the_command_or_file_that_helps() {
    let mut found = facts(&[]);
    found.legacy_filter_v4 = true;
    found.legacy_filter_v6 = true;
    found.conntrack = false;
    found.networkd = Some(Networkd { manages_foreign_routes: false, manages_foreign_rules: true });
    let codes = [
        "legacy-iptables-unread",
        "legacy-iptables-unread",
        "networkd-removes-foreign-routes",
        "conntrack-missing",
    ];
    check(&found, &want(), &[], &codes);
    let findings = judge(&found, &want()).1;
    assert!(findings[1].remedy.contains("ip6tables-legacy -S FORWARD"));
    assert_eq!(findings[2].found, "no, yes");
    assert!(
        findings[2].remedy.contains("[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no")
    );
    found.networkd = Some(Networkd { manages_foreign_routes: false, manages_foreign_rules: false });
    check(&found, &want(), &[], &["legacy-iptables-unread", "legacy-iptables-unread", "conntrack-missing"]);
}

#[test]
fn facts_are_read_from_the_directories_given() {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in [
        ("proc/sys/net/ipv4/ip_forward", "0\n"),
        ("proc/sys/net/ipv4/conf/eth0/rp_filter", "1\n"),
        ("proc/sys/net/ipv6/conf/all/forwarding", "0\n"),
        ("proc/sys/net/ipv6/conf/eth0/accept_ra", "1\n"),
        ("proc/sys/net/netfilter/nf_conntrack_max", "65536\n"),
        ("proc/thread-self/net/ip_tables_names", "nat\nfilter\n"),
        ("proc/thread-self/net/ip6_tables_names", "nat\n"),
        (
            "proc/thread-self/net/ipv6_route",
            "20010db8000000000000000000000000 40 00000000000000000000000000000000 00 \
             00000000000000000000000000000000 00000100 00000001 00000000 000c0001     eth0\n\
             fe800000000000000000000000000000 40 00000000000000000000000000000000 00 \
             00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth1\n",
        ),
        ("run/systemd/netif/state", ""),
    ] {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let host = Host::new(root.path(), root.path());
    let found = host.observe_files();
    assert!(found.proc_sys_writable && found.has_ipv6() && found.conntrack);
    assert!(found.legacy_filter_v4 && !found.legacy_filter_v6);
    assert_eq!(found.networkd, Some(Networkd { manages_foreign_routes: true, manages_foreign_rules: true }));
    assert_eq!(found.advertised, BTreeSet::from(["eth0".to_owned()]));
    assert_eq!(found.sysctls["net/ipv6/conf/eth0/accept_ra"], "1");
    for fix in judge(&found, &want()).0 {
        host.apply(&fix).unwrap();
    }
    let read = |key: &str| std::fs::read_to_string(root.path().join("proc/sys").join(key)).unwrap();
    assert!(read("net/ipv6/conf/eth0/accept_ra").starts_with('2'));
    assert!(read("net/ipv4/ip_forward").starts_with('1'));
    assert_eq!(judge(&host.observe_files(), &want()).0, []);
}

#[test]
fn a_setting_that_cannot_be_made_names_path_values_and_remedy_and_makes_no_file() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::new(root.path(), root.path());
    let error = host.set(&pod_veth_sysctls("hw0123456789abc", true, true, true)).unwrap_err().to_string();
    let path = root.path().join("proc/sys/net/ipv4/conf/hw0123456789abc/rp_filter");
    assert!(error.starts_with(&format!("cannot write 1 to {} (now absent): ", path.display())), "{error}");
    assert!(error.ends_with("set it on the host in /etc/sysctl.d"), "{error}");
    assert!(!path.exists());
}

#[test]
fn the_uplink_carries_an_own_address_and_has_the_smallest_mtu_of_those() {
    let link = |index, name: &str, mtu| Link { index, name: name.into(), mtu };
    let links = [link(1, "lo", 65536), link(2, "eth0", 1500), link(3, "eth1", 1400), link(4, "eth2", 9000)];
    let address = |link, address: &str| LinkAddress { link, address: address.parse().unwrap() };
    let addresses = [
        address(1, "127.0.0.1"),
        address(2, "192.0.2.1"),
        address(3, "2001:db8::1"),
        address(4, "198.51.100.1"),
        address(9, "203.0.113.1"),
    ];
    let check = |own: &[&str], expect: Option<&str>| {
        let own: Vec<IpAddr> = own.iter().map(|ip| ip.parse().unwrap()).collect();
        assert_eq!(
            uplink(&links, &addresses, &own).map(|link| link.name),
            expect.map(str::to_owned),
            "{own:?}"
        );
    };
    check(&["192.0.2.1"], Some("eth0"));
    check(&["192.0.2.1", "2001:db8::1"], Some("eth1"));
    check(&["198.51.100.1", "192.0.2.1"], Some("eth0"));
    check(&["192.0.2.99", "198.51.100.1"], Some("eth2"));
    check(&["192.0.2.99"], None);
    check(&["203.0.113.1"], None);
    check(&[], None);
}

#[test]
fn a_veth_of_one_family_does_not_forward_the_other() {
    let of = |ipv4, ipv6, kernel| -> BTreeMap<String, &'static str> {
        pod_veth_sysctls("hw1", ipv4, ipv6, kernel)
            .into_iter()
            .map(|sysctl| (sysctl.key, sysctl.value))
            .collect()
    };
    let (v4, v6) = ("net/ipv4/conf/hw1/", "net/ipv6/conf/hw1/");
    let only_v4 = of(true, false, true);
    assert_eq!(only_v4[&format!("{v4}rp_filter")], "1");
    assert_eq!(only_v4[&format!("{v4}forwarding")], "1");
    assert_eq!(only_v4[&format!("{v6}disable_ipv6")], "1");
    let both = of(true, true, true);
    assert_eq!(both[&format!("{v6}accept_ra")], "0");
    assert_eq!(both[&format!("{v6}forwarding")], "1");
    assert_eq!(both[&format!("{v6}disable_ipv6")], "0");
    assert_eq!(of(false, true, true)[&format!("{v4}forwarding")], "0");
    assert!(
        of(true, false, false).keys().all(|key| key.starts_with(v4)),
        "a kernel without IPv6 has no such files"
    );
}

#[test]
fn the_uplink_of_a_node_whose_own_traffic_goes_into_the_tunnel_asks_for_any_way_back_and_no_other_link_does()
{
    let with = |all: &str, own: &str, loose: &[&str]| {
        let settings = [
            format!("net/ipv4/conf/all/rp_filter={all}"),
            format!("net/ipv4/conf/eth0/rp_filter={own}"),
            "net/ipv4/conf/eth1/rp_filter=1".to_owned(),
        ];
        let mut facts = facts(&settings.iter().map(String::as_str).collect::<Vec<_>>());
        facts.links = [(2, "eth0"), (3, "eth1")]
            .map(|(index, name)| Link { index, name: name.into(), mtu: 1500 })
            .into();
        facts.addresses = [(2, "192.0.2.1"), (2, "2001:db8::1"), (3, "198.51.100.1")]
            .map(|(link, address)| LinkAddress { link, address: address.parse().unwrap() })
            .into();
        let loose = loose.iter().map(|address| address.parse().unwrap()).collect();
        let want = HostWant { loose, ..want() };
        judge(&facts, &want).0.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let loosened = ["/proc/sys/net/ipv4/conf/eth0/rp_filter = 2"];
    let own = ["192.0.2.1", "2001:db8::1"];
    assert_eq!(with("0", "1", &own), loosened);
    assert_eq!(with("1", "0", &own), loosened, "the greater counts");
    assert_eq!(with("0", "0", &own), [""; 0], "nobody checks");
    assert_eq!(with("2", "1", &own), [""; 0], "loose already");
    assert_eq!(with("0", "2", &own), [""; 0]);
    assert_eq!(with("0", "1", &[]), [""; 0], "host traffic is off");
    assert_eq!(with("0", "1", &["2001:db8::1"]), [""; 0], "IPv6 has no such check");
}
