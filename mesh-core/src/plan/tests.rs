use super::*;
use crate::announcement::{Epoch, SlotAnnouncement};
use crate::view::{LocalFacts, NodeFacts, Settings};
use expect_test::{Expect, expect};
use proptest::prelude::*;

fn announcement(seed: u8) -> Announcement {
    let slot = |n: u8| SlotAnnouncement {
        epoch: Epoch(u64::from(n) + 1),
        public_key: PublicKey::from_bytes([seed.wrapping_mul(2).wrapping_add(n); 32]),
        port: 51880 + u16::from(n),
        draining: false,
    };
    Announcement {
        slots: [slot(0), slot(1)],
        endpoints: vec![],
        kem: None,
        kem_required: false,
        host_traffic: false,
    }
}

/// One node: `name cidr,cidr ip,ip [key=N] [endpoint=ip] [at=ip] [drain=N] [nokey]`; `-` for none.
fn node(line: &str, index: u8) -> (NodeName, NodeFacts) {
    let mut words = line.split(' ');
    let name = NodeName::read(words.next().unwrap()).unwrap();
    let list = |word: Option<&str>| -> Vec<String> {
        word.filter(|w| *w != "-").map(|w| w.split(',').map(str::to_owned).collect()).unwrap_or_default()
    };
    let pod_cidrs = list(words.next()).iter().map(|c| c.parse().unwrap()).collect();
    let internal_ips = list(words.next()).iter().map(|a| a.parse().unwrap()).collect();
    let mut announced = Some(announcement(index));
    let mut facts = NodeFacts { created: i64::from(index), pod_cidrs, internal_ips, ..NodeFacts::default() };
    for word in words {
        match word.split_once('=') {
            Some(("key", seed)) => announced = Some(announcement(seed.parse().unwrap())),
            Some(("endpoint", ip)) => facts.endpoint = EndpointFact::Addresses(vec![ip.parse().unwrap()]),
            Some(("at", ip)) => announced.as_mut().unwrap().endpoints = vec![ip.parse().unwrap()],
            Some(("drain", slot)) => {
                announced.as_mut().unwrap().slots[slot.parse::<usize>().unwrap()].draining = true;
            }
            Some(("created", at)) => facts.created = at.parse().unwrap(),
            _ if word == "nokey" => announced = None,
            _ => panic!("{word}?"),
        }
    }
    facts.announcement = announced.map_or(AnnouncementFact::Missing, AnnouncementFact::Valid);
    (name, facts)
}

/// A view of node `a`, the first line.
pub(crate) fn world(lines: &[&str]) -> ClusterView {
    let nodes: BTreeMap<_, _> =
        lines.iter().enumerate().map(|(i, line)| node(line, u8::try_from(i + 1).unwrap())).collect();
    let name: NodeName = lines[0].split(' ').next().unwrap().parse().unwrap();
    let announcement = nodes[&name].announced().unwrap().clone();
    let pod_cidrs = vec!["10.1.0.0/16".parse().unwrap(), "fd01::/48".parse().unwrap()];
    ClusterView {
        settings: Settings { pod_cidrs, ..Settings::default() },
        local: LocalFacts {
            name,
            cluster: "west".parse().unwrap(),
            announcement,
            uplink_mtu: Some(1500),
            host: Default::default(),
        },
        nodes,
        attachments: BTreeMap::new(),
        synced: true,
        pairs: BTreeMap::new(),
    }
}

fn text(desired: &Desired, problems: &[Problem]) -> String {
    let mut out = vec![format!("mtu {}", desired.mtu)];
    out.extend(desired.mesh.iter().map(|m| format!("mesh {m}")));
    for (slot, device) in &desired.devices {
        for peer in device.peers.values() {
            let allowed = peer.allowed.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            let endpoint = peer.endpoint.map_or("-".into(), |e| e.to_string());
            let keepalive = peer.keepalive.map_or(String::new(), |k| format!(" keepalive {k}"));
            out.push(format!("{slot} {} at {endpoint}: {allowed}{keepalive}", peer.node));
        }
    }
    let target = |t: &Target| match t {
        Target::Unreachable => "unreachable".to_owned(),
        Target::Device { device, source: None } => device.clone(),
        Target::Device { device, source: Some(s) } => format!("{device} src {s}"),
    };
    out.extend(
        desired.routes.iter().map(|r| format!("route {} {} {}", r.table, r.prefix, target(&r.target))),
    );
    let side = |net: Option<IpNet>| net.map_or("any".into(), |n| n.to_string());
    let rule = |r: &Rule| {
        let port = r.tcp.map_or(String::new(), |port| format!(" tcp {port:?}"));
        let icmp =
            r.icmp.map_or(String::new(), |[first, last]| format!(" {:?} icmp {first}-{last}", r.family));
        let mark = r.unmarked.map_or(String::new(), |mask| format!(" unmarked {mask:#x}"));
        let local = if r.local {
            " local".to_owned()
        } else {
            r.slot.map_or(String::new(), |slot| format!(" {slot}"))
        };
        let action = match r.action {
            Action::Table(table) => format!("table {table}"),
            Action::Goto(priority) => format!("goto {priority}"),
            Action::Nothing => format!("nothing ({:?})", r.family),
        };
        format!("rule {} {} -> {}{port}{icmp}{mark}{local} {action}", r.priority, side(r.from), side(r.to))
    };
    out.extend(desired.rules.iter().map(rule));
    out.extend(problems.iter().map(|p| format!("! {}: {p}", p.code())));
    out.join("\n") + "\n"
}

fn check(lines: &[&str], want: Expect) {
    let (desired, problems) = plan(&world(lines));
    want.assert_eq(&text(&desired, &problems));
}

/// Only the lines that begin with one of `heads`.
fn check_some(lines: &[&str], heads: &[&str], want: Expect) {
    let (desired, problems) = plan(&world(lines));
    let all = text(&desired, &problems);
    let some: String =
        all.lines().filter(|l| heads.iter().any(|h| l.starts_with(h))).map(|l| format!("{l}\n")).collect();
    want.assert_eq(&some);
}

#[test]
fn a_kernel_without_ipv6_has_what_a_cluster_without_it_would_have() {
    let planned = |lines: &[&str], pod_cidrs: &[&str]| {
        let mut view = world(lines);
        view.settings.pod_cidrs = pod_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        view.settings.host_traffic.on = true;
        view.settings.host_traffic.exempt_tcp = [6443].into();
        plan(&view).0
    };
    let mut both = planned(
        &[
            "a 10.1.1.0/24,fd01:0:0:1::/64 192.0.2.1,2001:db8::1",
            "b 10.1.2.0/24,fd01:0:0:2::/64 192.0.2.2,2001:db8::2",
        ],
        &["10.1.0.0/16", "fd01::/48"],
    );
    let mut alone = planned(&["a 10.1.1.0/24 192.0.2.1", "b 10.1.2.0/24 192.0.2.2"], &["10.1.0.0/16"]);
    // Rules past the table of host traffic are there for both families whatever nodes have.
    assert!(alone.rules.iter().any(|rule| rule.family == Family::V6));
    alone.rules.retain(|rule| rule.family == Family::V4);
    both.without_ipv6();
    assert_eq!((&both.routes, &both.rules, &both.mesh), (&alone.routes, &alone.rules, &alone.mesh));
    assert_eq!((&both.guarded, &both.own_node_ips), (&alone.guarded, &alone.own_node_ips));
    assert_eq!(both.peer_node_ips, alone.peer_node_ips);
    assert_eq!(both.host_sources, alone.host_sources);
    assert_eq!(both.own_pod_cidrs.len(), 2, "who is to have IPv6 is told that there is none");
}

/// Where `b` is sent to, and on which slots a handshake with it is provoked, when both drain as `lines` say.
fn way_to_b(lines: &[&str], current: Slot, confirmed: [bool; 2]) -> (String, Vec<Slot>) {
    use std::time::Duration;
    let mut view = world(lines);
    let link = |confirmed: bool| pair::Link {
        keys_for: Some(Duration::from_secs(100)),
        handshake_age: confirmed.then_some(Duration::from_secs(1)),
        unanswered_for: None,
        ready: true,
    };
    let facts = crate::view::PairFacts {
        current: Some(current),
        links: confirmed.map(link),
        ..crate::view::PairFacts::default()
    };
    view.pairs.insert("b".parse().unwrap(), facts);
    let (desired, _) = plan(&view);
    let devices: BTreeSet<&str> = desired
        .routes
        .iter()
        .filter_map(|route| match &route.target {
            Target::Device { device, .. } => Some(device.as_str()),
            Target::Unreachable => None,
        })
        .collect();
    let called = desired
        .devices
        .iter()
        .filter(|(_, device)| device.peers.values().any(|peer| peer.keepalive == Some(PROVOKE_KEEPALIVE)));
    (devices.into_iter().collect::<Vec<_>>().join(" "), called.map(|(slot, _)| *slot).collect())
}

#[test]
fn all_routes_to_a_peer_move_together_once_a_handshake_is_confirmed_where_they_shall_lead() {
    let lines = ["a 10.1.1.0/24 192.0.2.1", "b 10.1.2.0/24,fd01:0:0:2::/64 192.0.2.2 drain=0"];
    let way = |current, confirmed| way_to_b(&lines, current, confirmed);
    assert_eq!(way(Slot::Zero, [true, false]), ("hawser0".into(), vec![Slot::One]), "called first");
    assert_eq!(way(Slot::Zero, [true, true]), ("hawser1".into(), vec![]));
    assert_eq!(way(Slot::One, [false, true]), ("hawser1".into(), vec![]), "and stays");
    let back = ["a 10.1.1.0/24 192.0.2.1", "b 10.1.2.0/24,fd01:0:0:2::/64 192.0.2.2"];
    assert_eq!(way_to_b(&back, Slot::One, [false, true]), ("hawser1".into(), vec![Slot::Zero]));
    assert_eq!(way_to_b(&back, Slot::One, [true, true]), ("hawser0".into(), vec![]));
    // Its new key has just come: nothing can be asked yet, but it has to be looked at again.
    let mut view = world(&lines);
    let links = [pair::Link { ready: true, ..Default::default() }; 2];
    let facts = crate::view::PairFacts { current: Some(Slot::Zero), links, ..Default::default() };
    view.pairs.insert("b".parse().unwrap(), facts);
    assert_eq!(plan(&view).0.unsettled, BTreeSet::from(["b".parse().unwrap()]));
}

#[test]
fn pods_wait_for_a_pre_shared_key_where_one_is_required_and_agents_do_not() {
    let lines = ["a 10.1.1.0/24 192.0.2.1", "b 10.1.2.0/24,fd01:0:0:2::/64 192.0.2.2"];
    let seen = |psk: [SlotPsk; 2]| -> (Vec<String>, Vec<String>) {
        let mut view = world(&lines);
        let link = pair::Link {
            keys_for: Some(std::time::Duration::from_secs(100)),
            handshake_age: Some(std::time::Duration::from_secs(1)),
            unanswered_for: None,
            ready: true,
        };
        let facts = crate::view::PairFacts { links: [link; 2], psk, ..Default::default() };
        view.pairs.insert("b".parse().unwrap(), facts);
        let (desired, _) = plan(&view);
        let allowed = desired.devices.values().flat_map(|device| device.peers.values());
        let allowed =
            allowed.map(|peer| peer.allowed.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        let routed = desired.routes.iter().filter(|route| matches!(route.target, Target::Device { .. }));
        (allowed.collect(), routed.map(|route| route.prefix.to_string()).collect())
    };
    let (all, agents) = ("10.1.2.0/24 192.0.2.2/32 fd01:0:0:2::/64", "10.1.2.1/32 fd01:0:0:2::1/128");
    let pods = ["10.1.2.0/24", "fd01:0:0:2::/64", "192.0.2.2/32"];
    let closed = SlotPsk { confined: true, withheld: true, ..SlotPsk::default() };
    let accepts = SlotPsk { confined: false, ..closed };
    let open = SlotPsk::default();
    // Where pods wait, nobody sends: agents' handshakes are provoked where routes lead, too.
    let strings = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        seen([closed, closed]),
        (strings(&[agents, agents]), strings(&["10.1.2.1/32", "fd01:0:0:2::1/128"]))
    );
    assert_eq!(
        seen([accepts, closed]),
        (strings(&[all, agents]), strings(&["10.1.2.1/32", "fd01:0:0:2::1/128"]))
    );
    assert_eq!(seen([open, closed]), (strings(&[all, agents]), strings(&pods)));
}

#[test]
fn two_dual_stack_nodes() {
    check(
        &[
            "a 10.1.1.0/24,fd01:0:0:1::/64 192.0.2.1,2001:db8::1",
            "b 10.1.2.0/24,fd01:0:0:2::/64 192.0.2.2,2001:db8::2",
        ],
        expect![[r#"
            mtu 1420
            mesh 10.1.1.1
            mesh fd01:0:0:1::1
            hawser0 b at 192.0.2.2:51880: 10.1.2.0/24 192.0.2.2/32 2001:db8::2/128 fd01:0:0:2::/64
            hawser1 b at 192.0.2.2:51881: 10.1.2.0/24 192.0.2.2/32 2001:db8::2/128 fd01:0:0:2::/64
            route 254 10.1.0.0/16 unreachable
            route 254 fd01::/48 unreachable
            route 51880 10.1.0.0/16 unreachable
            route 51880 10.1.2.0/24 hawser0 src 10.1.1.1
            route 51880 fd01::/48 unreachable
            route 51880 fd01:0:0:2::/64 hawser0 src fd01:0:0:1::1
            route 51881 192.0.2.2/32 hawser0
            route 51881 192.0.2.2/32 unreachable
            route 51881 2001:db8::2/128 hawser0
            route 51881 2001:db8::2/128 unreachable
            rule 50 any -> 10.1.0.0/16 table 51880
            rule 50 any -> fd01::/48 table 51880
            rule 51 any -> any V4 icmp 3-5 table 51881
            rule 51 any -> any V4 icmp 11-12 table 51881
            rule 51 10.1.1.0/24 -> any table 51881
            rule 51 any -> any V6 icmp 1-4 table 51881
            rule 51 fd01:0:0:1::/64 -> any table 51881
        "#]],
    );
}

#[test]
fn a_node_speaks_to_pods_of_its_cluster_from_an_address_of_its_own_that_its_kernel_has() {
    let mut view = world(&[
        "a 10.1.1.0/24,fd01:0:0:1::/64 192.0.2.9,192.0.2.1,2001:db8::1",
        "b 10.1.2.0/24,fd01:0:0:2::/64 192.0.2.2,2001:db8::2",
    ]);
    view.settings.pod_cidrs = vec!["10.1.0.0/16".parse().unwrap(), "fd01::/48".parse().unwrap()];
    view.attachments.insert("hw1".into(), ["10.1.1.7", "fd01:0:0:1::7"].map(|ip| ip.parse().unwrap()).into());
    // Behind NAT, say.
    view.local.host.present = ["192.0.2.1".parse().unwrap()].into();
    let sources = |view: &ClusterView| {
        let (desired, problems) = plan(view);
        let all = text(&desired, &problems);
        let routes = all.lines().filter(|line| line.contains("route 51880") && !line.contains("unreachable"));
        routes.map(|line| format!("{line}\n")).collect::<String>()
    };
    expect![[r#"
        route 51880 10.1.1.7/32 hw1 src 192.0.2.1
        route 51880 10.1.2.0/24 hawser0 src 192.0.2.1
        route 51880 fd01:0:0:1::7/128 hw1
        route 51880 fd01:0:0:2::/64 hawser0 src fd01:0:0:1::1
    "#]]
    .assert_eq(&sources(&view));
    // Until a pre-shared key is seen to work the other accepts the mesh address alone.
    let psk = [SlotPsk { confined: true, ..SlotPsk::default() }; 2];
    view.pairs.insert("b".parse().unwrap(), crate::view::PairFacts { psk, ..Default::default() });
    expect![[r#"
        route 51880 10.1.1.7/32 hw1 src 192.0.2.1
        route 51880 10.1.2.0/24 hawser0 src 10.1.1.1
        route 51880 fd01:0:0:1::7/128 hw1
        route 51880 fd01:0:0:2::/64 hawser0 src fd01:0:0:1::1
    "#]]
    .assert_eq(&sources(&view));
}

#[test]
fn an_ipv6_only_underlay_carries_both_families() {
    check_some(
        &["a 10.1.1.0/24,fd01:0:0:1::/64 2001:db8::1", "b 10.1.2.0/24,fd01:0:0:2::/64 2001:db8::2"],
        &["hawser0", "!"],
        expect![[r#"
            hawser0 b at [2001:db8::2]:51880: 10.1.2.0/24 2001:db8::2/128 fd01:0:0:2::/64
        "#]],
    );
}

#[test]
fn a_node_without_a_key_costs_only_itself_and_its_address_is_closed_to_pods() {
    check_some(
        &["a 10.1.1.0/24 192.0.2.1", "b 10.1.2.0/24 192.0.2.2 nokey", "c 10.1.3.0/24 192.0.2.3"],
        &["hawser0", "route 51881", "!"],
        expect![[r#"
            hawser0 c at 192.0.2.3:51880: 10.1.3.0/24 192.0.2.3/32
            route 51881 192.0.2.2/32 unreachable
            route 51881 192.0.2.3/32 hawser0
            route 51881 192.0.2.3/32 unreachable
            ! KeyMissing: node b: no annotation hawser.dev/wireguard; its pods are unreachable until mesh-agent runs there
        "#]],
    );
}

#[test]
fn what_an_older_node_has_a_newer_one_cannot_claim() {
    check_some(
        &[
            "a 10.1.1.0/24 192.0.2.1",
            "b 10.1.2.0/24 192.0.2.2",
            "c 10.1.2.128/25 192.0.2.2",
            "d 10.1.4.0/24 192.0.2.4 key=2",
            "e 10.1.5.0/24 192.0.2.5 key=1",
            "f 10.9.0.0/24 10.1.7.7",
        ],
        &["hawser0", "!"],
        expect![[r#"
            hawser0 b at 192.0.2.2:51880: 10.1.2.0/24 192.0.2.2/32
            hawser0 c at -: 
            hawser0 f at -: 
            ! KeyDuplicated: node d: announces key BAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ= for hawser0, which is also a key of node b; refused here, kept there (older); delete the key file of hawser0 on d and restart its agent
            ! KeyDuplicated: node e: announces key AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI= for hawser0, which is also a key of node a; refused here, kept there (older); delete the key file of hawser0 on e and restart its agent
            ! EndpointOfAnother: node c: announces the endpoint 192.0.2.2, an InternalIP of node b; not called there; correct annotation hawser.dev/endpoint or the addresses of c
            ! NoUsableEndpoint: node c: no usable endpoint among [192.0.2.2] (this node's underlay has IPv4 only); give it an InternalIP of that family or set hawser.dev/endpoint. It can still call us
            ! NoUsableEndpoint: node f: no usable endpoint among [10.1.7.7] (this node's underlay has IPv4 only); give it an InternalIP of that family or set hawser.dev/endpoint. It can still call us
            ! AddressClaimedTwice: node c: InternalIP 192.0.2.2 is refused: it belongs to node b (older); correct status.addresses of the wrong one
            ! AddressClaimedTwice: node f: InternalIP 10.1.7.7 is refused: it belongs to the pods in 10.1.0.0/16; correct status.addresses of the wrong one
            ! CidrClaimedTwice: node c: pod CIDR 10.1.2.128/25 is refused: it overlaps 10.1.2.0/24 of node b (older); recreate the Node object of the wrong one
            ! CidrOutsidePrefixes: node f: pod CIDR 10.9.0.0/24 is refused: outside podCIDRs of the configuration (10.1.0.0/16, fd01::/48); add its prefix there or correct the controller manager's --cluster-cidr
        "#]],
    );
}

#[test]
fn our_own_key_on_an_older_node_is_still_ours() {
    let (desired, problems) =
        plan(&world(&["a 10.1.1.0/24 192.0.2.1 created=9", "b 10.1.2.0/24 192.0.2.2 key=1"]));
    assert!(desired.devices[&Slot::Zero].peers.is_empty());
    assert!(matches!(&problems[..], [Problem::KeyDuplicated { .. }]));
}

#[test]
fn an_endpoint_that_is_not_our_address_means_nat_and_keepalive() {
    check_some(
        &["a 10.1.1.0/24 10.0.0.5 endpoint=203.0.113.7", "b 10.1.2.0/24 192.0.2.2 endpoint=198.51.100.2"],
        &["hawser1", "!"],
        expect![[r#"
            hawser1 b at 198.51.100.2:51881: 10.1.2.0/24 192.0.2.2/32 keepalive 25
        "#]],
    );
}

#[test]
fn a_draining_slot_moves_only_its_own_pairs() {
    check_some(
        &["a 10.1.1.0/24 192.0.2.1", "b 10.1.2.0/24 192.0.2.2 drain=0", "c 10.1.3.0/24 192.0.2.3"],
        &["route 51880 10.1.2", "route 51880 10.1.3", "route 51881"],
        expect![[r#"
            route 51880 10.1.2.0/24 hawser1 src 10.1.1.1
            route 51880 10.1.3.0/24 hawser0 src 10.1.1.1
            route 51881 192.0.2.2/32 hawser1
            route 51881 192.0.2.2/32 unreachable
            route 51881 192.0.2.3/32 hawser0
            route 51881 192.0.2.3/32 unreachable
        "#]],
    );
}

#[test]
fn our_annotation_is_written_when_missing_and_reported_when_overwritten() {
    let (mine, other) = (announcement(1), announcement(2));
    let valid = |a: &Announcement| AnnouncementFact::Valid(a.clone());
    let check =
        |shown: AnnouncementFact, confirmed: Option<&Announcement>| publication(&mine, &shown, confirmed);
    assert_eq!(check(AnnouncementFact::Missing, None), Publication::Write);
    assert_eq!(check(valid(&other), None), Publication::Write, "of our former life");
    assert_eq!(check(valid(&mine), None), Publication::Current);
    assert_eq!(check(valid(&other), Some(&mine)), Publication::Overwritten);
    assert_eq!(check(AnnouncementFact::Missing, Some(&mine)), Publication::Overwritten);
    assert_eq!(check(valid(&other), Some(&other)), Publication::Write, "we changed our mind");
}

/// Clusters with collisions: few CIDRs, addresses, keys and ages.
pub(crate) fn world_strategy() -> impl Strategy<Value = ClusterView> {
    let node = (0_u8..6, 0_u8..6, 0_u8..7, 0_i64..3, 0_u8..3, 0_u8..4);
    (proptest::collection::vec(node, 1..7), any::<bool>()).prop_map(|(nodes, attached)| {
        let lines: Vec<String> = nodes
            .iter()
            .enumerate()
            .map(|(i, (cidr, ip, key, created, drain, odd))| {
                let name = char::from(b'a' + u8::try_from(i).unwrap());
                let drain = if *drain < 2 { format!(" drain={drain}") } else { String::new() };
                let cidr = match odd {
                    0 => format!("10.1.{cidr}.0/25,fd01:0:0:{cidr}::/64"),
                    1 => "-".to_owned(),
                    2 => format!("10.9.{cidr}.0/24"),
                    _ => format!("10.1.{cidr}.0/24"),
                };
                format!("{name} {cidr} 192.0.2.{ip} created={created} key={key}{drain}")
            })
            .collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let mut view = world(&lines);
        if attached {
            view.attachments.insert("hw0123456789abc".into(), ["10.1.0.9".parse().unwrap()].into());
        }
        view
    })
}

proptest! {
    #[test]
    fn no_prefix_belongs_to_two_peers_and_none_is_outside_what_is_configured(view in world_strategy()) {
        let (desired, _) = plan(&view);
        for device in desired.devices.values() {
            let all: Vec<&IpNet> = device.peers.values().flat_map(|p| &p.allowed).collect();
            for (i, a) in all.iter().enumerate() {
                prop_assert!(all[i + 1..].iter().all(|b| !prefix::overlap(a, b)));
                let pods = prefix::inside(&view.settings.pod_cidrs, a);
                let host = a.prefix_len() == a.max_prefix_len();
                prop_assert!(pods != host, "{a}: a pod CIDR inside, or a host outside");
            }
            for own in &desired.own_pod_cidrs {
                prop_assert!(all.iter().all(|a| !prefix::overlap(a, own)));
            }
        }
    }

    /// Both ends of a pair agree on the slot and on what belongs to whom.
    #[test]
    fn all_nodes_agree(view in world_strategy()) {
        let mut owners: BTreeMap<IpNet, NodeName> = BTreeMap::new();
        for (name, facts) in &view.nodes {
            let mut theirs = view.clone();
            let Some(announced) = facts.announced() else { continue };
            theirs.local.name = name.clone();
            theirs.local.announcement = announced.clone();
            let (desired, _) = plan(&theirs);
            for peer in desired.devices[&Slot::Zero].peers.values() {
                for net in &peer.allowed {
                    let owner = owners.entry(*net).or_insert_with(|| peer.node.clone());
                    prop_assert_eq!(&*owner, &peer.node);
                }
            }
        }
    }
}

/// A view of node `a`, which two clusters have joined.
fn joined(lines: &[&str]) -> ClusterView {
    let mut view = world(lines);
    for (cluster, cidr) in [("east", "10.2.0.0/16"), ("north", "10.3.0.0/16")] {
        view.settings.joined.insert(cluster.parse().unwrap(), vec![cidr.parse().unwrap()]);
    }
    view
}

#[test]
fn nodes_of_other_clusters_are_peers_by_their_pod_cidrs_alone() {
    let mut view = joined(&[
        "a 10.1.0.0/24 192.0.2.1",
        "b 10.1.1.0/24 192.0.2.2",
        "b@east 10.2.0.0/24 192.0.2.2 at=198.51.100.7",
        "c@east 10.3.0.0/24 - at=198.51.100.8",
        "d@west 10.1.7.0/24 - at=198.51.100.9",
    ]);
    view.local.host.present = ["192.0.2.1".parse().unwrap()].into();
    let (desired, problems) = plan(&view);
    expect![[r#"
        mtu 1420
        mesh 10.1.0.1
        hawser0 b at 192.0.2.2:51880: 10.1.1.0/24 192.0.2.2/32
        hawser0 b@east at 198.51.100.7:51880: 10.2.0.0/24
        hawser0 c@east at 198.51.100.8:51880: 
        hawser0 d@west at 198.51.100.9:51880: 
        hawser1 b at 192.0.2.2:51881: 10.1.1.0/24 192.0.2.2/32
        hawser1 b@east at 198.51.100.7:51881: 10.2.0.0/24
        hawser1 c@east at 198.51.100.8:51881: 
        hawser1 d@west at 198.51.100.9:51881: 
        route 254 10.1.0.0/16 unreachable
        route 254 10.2.0.0/16 unreachable
        route 254 10.3.0.0/16 unreachable
        route 254 fd01::/48 unreachable
        route 51880 10.1.0.0/16 unreachable
        route 51880 10.1.1.0/24 hawser0 src 192.0.2.1
        route 51880 10.2.0.0/16 unreachable
        route 51880 10.2.0.0/24 hawser0 src 10.1.0.1
        route 51880 10.3.0.0/16 unreachable
        route 51880 fd01::/48 unreachable
        route 51881 192.0.2.2/32 hawser0
        route 51881 192.0.2.2/32 unreachable
        rule 50 any -> 10.1.0.0/16 table 51880
        rule 50 any -> 10.2.0.0/16 table 51880
        rule 50 any -> 10.3.0.0/16 table 51880
        rule 50 any -> fd01::/48 table 51880
        rule 51 any -> any V4 icmp 3-5 table 51881
        rule 51 any -> any V4 icmp 11-12 table 51881
        rule 51 10.1.0.0/24 -> any table 51881
        rule 51 any -> any V6 icmp 1-4 table 51881
        ! CidrOutsidePrefixes: node c@east: pod CIDR 10.3.0.0/24 is refused: outside podCIDRs of the configuration (10.2.0.0/16); add its prefix there or correct the controller manager's --cluster-cidr
        ! CidrOutsidePrefixes: node d@west: pod CIDR 10.1.7.0/24 is refused: outside podCIDRs of the configuration (); add its prefix there or correct the controller manager's --cluster-cidr
    "#]]
    .assert_eq(&text(&desired, &problems));
}

#[test]
fn what_is_ours_no_node_of_another_cluster_can_claim_however_old_it_says_it_is() {
    let (desired, problems) = plan(&joined(&[
        "a 10.1.0.0/24 192.0.2.1 created=9",
        "b 10.1.1.0/24 192.0.2.2 key=7 created=9",
        "x@east 10.1.1.0/24 - key=7 at=198.51.100.7 created=1",
        "y@east 10.1.1.0/24 - at=192.0.2.2 created=1",
    ]));
    let peers: BTreeSet<&str> =
        desired.devices[&Slot::Zero].peers.values().map(|peer| peer.node.as_str()).collect();
    assert_eq!(peers, ["b", "y@east"].into());
    let y = desired.devices[&Slot::Zero].peers.values().find(|peer| peer.node.is_foreign()).unwrap();
    assert_eq!((y.allowed.len(), y.endpoint), (0, None));
    let codes: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert!(codes.iter().any(|text| text.contains("x@east") && text.contains("key")), "{codes:#?}");
    assert!(desired.routes.iter().all(|route| route.prefix != "10.1.1.0/24".parse().unwrap()
        || matches!(&route.target, Target::Device { .. })));
}

#[test]
fn both_sides_of_two_clusters_talk_on_one_slot_whatever_they_drain_and_call_each_other() {
    use crate::pair::{Drains, target};
    let slots = [None, Some(Slot::Zero), Some(Slot::One)];
    let announce = |drained: Option<Slot>| {
        let mut announcement = announcement(1);
        drained.into_iter().for_each(|slot| announcement.slots[slot.index()].draining = true);
        announcement
    };
    // Names that would be ordered differently on the two sides, if each went by what it calls the other.
    for (mine, theirs) in [("n", "n"), ("a", "b"), ("b", "a"), ("n", "n-1")] {
        for (a, b) in slots.into_iter().flat_map(|a| slots.map(|b| (a, b))) {
            let see = |own: &str,
                       name: &str,
                       other: &str,
                       other_name: &str,
                       drains: Option<Slot>,
                       seen: Option<Slot>| {
                let own: crate::psk::ClusterName = own.parse().unwrap();
                let us = name.parse::<NodeName>().unwrap().id(&own);
                let them = NodeName::foreign(&other_name.parse().unwrap(), &other.parse().unwrap()).id(&own);
                target((&us, Drains { wanted: drains, accepted: drains }), (&them, &announce(seen)), None)
            };
            let west = see("west", mine, "east", theirs, a, b);
            let east = see("east", theirs, "west", mine, b, a);
            assert_eq!(west, east, "{mine} drains {a:?}, {theirs} drains {b:?}");
        }
    }
}

proptest! {
    #[test]
    fn of_two_nodes_with_cidrs_that_overlap_one_keeps_all_of_its_own(
        cidrs in prop::collection::vec(prop::collection::vec((0_u8..8, 20_u8..30), 1..4), 1..6)
    ) {
        let lines: Vec<String> = cidrs.iter().enumerate().map(|(i, cidrs)| {
            let net = |(at, length): &(u8, u8)| IpNet::new(IpAddr::from([10, 1, 0, *at << 5]), *length).unwrap().trunc().to_string();
            format!("n{i} {} 192.0.2.{}", cidrs.iter().map(net).collect::<Vec<_>>().join(","), i + 1)
        }).collect();
        let view = world(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        let claims = Claims::judge(&view);
        // The obvious way: each against all that were accepted before.
        let mut held: Vec<(IpNet, String)> = Vec::new();
        for i in 0..cidrs.len() {
            let name: NodeName = format!("n{i}").parse().unwrap();
            let mut wanted = Vec::new();
            for cidr in &view.nodes[&name].pod_cidrs {
                if !held.iter().any(|(other, holder)| holder != name.as_str() && prefix::overlap(other, cidr)) {
                    held.push((*cidr, name.to_string()));
                    wanted.push(*cidr);
                }
            }
            prop_assert_eq!(&claims.of(&name).cidrs, &wanted);
        }
    }
}
