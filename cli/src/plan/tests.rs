use expect_test::expect;
use proptest::prelude::*;

use super::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn question(nodes: u64, pods_per_node: u64, cidrs: &[&str]) -> Question {
    Question {
        nodes,
        pods_per_node,
        pod_cidrs: cidrs.iter().map(|text| net(text)).collect(),
        mask_v4: 24,
        mask_v6: 64,
        services: vec![net("10.96.0.0/12")],
        node_networks: vec![net("192.168.1.0/24")],
        others: Vec::new(),
    }
}

fn codes(plan: &Plan) -> Vec<&str> {
    plan.faults.iter().chain(&plan.remarks).map(|remark| remark.code).collect()
}

fn text(question: &Question) -> String {
    render(question, &plan(question))
}

#[test]
fn what_fits_is_told_with_how_far_it_grows_and_what_does_not_with_what_would() {
    let both = question(100, 110, &["10.244.0.0/16", "fd00:10:244::/48"]);
    let small = question(500, 400, &["10.244.0.0/16"]);
    let mut overlapping = question(10, 240, &["10.100.0.0/16"]);
    overlapping.others.push(Other { name: "west".into(), cidr: net("10.100.128.0/17") });
    expect![[r#"
        100 nodes with 110 pods each (11000 pods): this fits

        Room
          POD CIDR          A NODE'S  NODES  PODS A NODE      WITHOUT REPORT   PODS
          10.244.0.0/16     /24       256    253              227              64768
          fd00:10:244::/48  /64       65536  more than 10^12  more than 10^12  more than 10^12

        Growth
          156 more nodes can join, 256 in all

        500 nodes with 400 pods each (200000 pods): this does not fit

        Room
          POD CIDR       A NODE'S  NODES  PODS A NODE  WITHOUT REPORT  PODS
          10.244.0.0/16  /24       256    253          227             64768

        Does not fit
          nodes-do-not-fit  10.244.0.0/16 has a /24 for 256 nodes, 500 are planned; with --node-mask 23 a pod CIDR of /14 has room for both
          pods-do-not-fit   a node's /24 of 10.244.0.0/16 has room for 253 pods, 400 are planned; with --node-mask 23 a pod CIDR of /14 has room for both

        To know
          max-pods  a kubelet runs 110 pods: set maxPods of its configuration to 400 or more

        10 nodes with 240 pods each (2400 pods): this does not fit

        Room
          POD CIDR       A NODE'S  NODES  PODS A NODE  WITHOUT REPORT  PODS
          10.100.0.0/16  /24       256    253          227             64768

        Does not fit
          overlap  the pod CIDR 10.100.0.0/16 overlaps the service CIDR 10.96.0.0/12: packets to what both have go astray or are refused; give one of the two another prefix
          overlap  the pod CIDR 10.100.0.0/16 overlaps west's 10.100.128.0/17: packets to what both have go astray or are refused; give one of the two another prefix
          overlap  the service CIDR 10.96.0.0/12 overlaps west's 10.100.128.0/17: packets to what both have go astray or are refused; give one of the two another prefix

        To know
          pods-tight  240 pods fill a node's /24 of 10.100.0.0/16 to more than 90 %, which agents report (PoolNearlyFull); an address rests 30 s after its pod, so replacing many pods at once may wait; --node-mask 23 has room for both
          max-pods    a kubelet runs 110 pods: set maxPods of its configuration to 240 or more
    "#]].assert_eq(&[text(&both), text(&small), text(&overlapping)].join("\n"));
}

#[test]
fn each_mistake_has_its_word() {
    let check = |change: &dyn Fn(&mut Question), wanted: &[&str]| {
        let mut question = question(100, 110, &["10.244.0.0/16"]);
        change(&mut question);
        assert_eq!(codes(&plan(&question)), wanted, "{question:?}");
    };
    check(&|_| {}, &[]);
    check(&|q| q.pod_cidrs.push(net("10.245.0.0/16")), &["family-twice"]);
    check(&|q| q.pod_cidrs = vec![net("10.244.1.0/16")], &["host-bits"]);
    check(&|q| q.mask_v4 = 31, &["mask-too-long"]);
    check(&|q| q.mask_v4 = 15, &["mask-too-short"]);
    check(&|q| q.pod_cidrs = vec![net("fd00::/47")], &["cut-too-fine"]);
    check(&|q| q.pod_cidrs = vec![net("fd00::/48")], &[]);
    check(&|q| q.nodes = 256, &["nodes-exact"]);
    check(&|q| q.nodes = 257, &["nodes-do-not-fit"]);
    check(&|q| q.pods_per_node = 254, &["pods-do-not-fit", "max-pods"]);
    check(&|q| q.pods_per_node = 253, &["pods-tight", "max-pods"]);
    check(&|q| q.pods_per_node = 227, &["max-pods"]);
    check(&|q| q.pods_per_node = 228, &["pods-tight", "max-pods"]);
    check(&|q| q.pod_cidrs = vec![net("198.18.0.0/15")], &["not-private"]);
    check(&|q| q.pod_cidrs = vec![net("224.0.0.0/16")], &["unusable"]);
    check(&|q| q.node_networks = vec![net("10.244.3.0/24")], &["overlap"]);
    check(&|q| q.services = vec![net("10.0.0.0/8")], &["overlap"]);
    check(&|q| q.node_networks.push(net("192.168.0.0/16")), &[]);
    for wrong in ["west", "=10.0.0.0/8", "west=10.0.0.0", ""] {
        assert!(wrong.parse::<Other>().is_err(), "{wrong}");
    }
}

#[test]
fn the_limit_without_a_report_is_the_agents() {
    use mesh_core::ipam::{Ipam, Millis};
    // The last has 30 addresses, of which 27 are exactly the share that is reported.
    for cidr in ["10.1.0.0/24", "10.1.0.0/26", "10.1.0.0/28", "10.1.0.0/30", "fd00::/123"] {
        let cidr = net(cidr);
        let mut ipam = Ipam::new("n".parse().unwrap(), &[cidr]);
        let mut quiet = 0;
        while ipam.allocate(&[], Millis(0)).is_ok() {
            if ipam.problems(Millis(0)).is_empty() {
                quiet += 1;
            }
        }
        assert_eq!(calm(capacity(cidr).unwrap()), quiet, "{cidr}");
    }
}

/// A small prefix, so that everything in it can be counted.
fn small() -> impl Strategy<Value = (IpNet, u8)> {
    (any::<u32>(), any::<bool>(), 0..=6_u8, 2..=6_u8).prop_map(|(bits, v6, cut, host)| {
        let (address, width) = if v6 {
            (IpNet::new(std::net::Ipv6Addr::from(u128::from(bits) << 8 | 0xfd << 120).into(), 128), 128)
        } else {
            (IpNet::new(std::net::Ipv4Addr::from(bits & 0x00ff_ffff | 0x0a00_0000).into(), 32), 32)
        };
        let cidr = IpNet::new(address.unwrap().addr(), width - cut - host).unwrap().trunc();
        (cidr, width - host)
    })
}

proptest! {
    #[test]
    fn room_is_what_one_gets_by_counting((cidr, mask) in small(), nodes in 1..100_u64, pods in 1..80_u64) {
        let question = Question { mask_v4: mask, mask_v6: mask, services: vec![], node_networks: vec![],
            ..question(nodes, pods, &[&cidr.to_string()]) };
        let plan = plan(&question);
        let cut: Vec<IpNet> = cidr.subnets(mask).unwrap().collect();
        prop_assert_eq!(plan.pools[0].nodes, u64::try_from(cut.len()).unwrap());
        // All addresses but network, mesh and, in IPv4, broadcast.
        let host = cut[0].max_prefix_len() - mask;
        let wanted = (1_u64 << host) - if cidr.addr().is_ipv4() { 3 } else { 2 };
        prop_assert_eq!(plan.pools[0].pods_per_node, wanted);
        let fits = plan.pools[0].nodes >= nodes && wanted >= pods;
        let refused = codes(&plan).iter().any(|code| code.ends_with("-do-not-fit"));
        prop_assert_eq!(fits, !refused);
    }

    #[test]
    fn what_is_advised_fits(nodes in 1..70_000_u64, pods in 1..3_000_u64, prefix in 8..=20_u8) {
        let cidr = format!("10.0.0.0/{prefix}");
        let mut question = Question { services: vec![], node_networks: vec![], ..question(nodes, pods, &[&cidr]) };
        let text = remedy(&net(&cidr), nodes, pods, "--node-mask");
        let numbers: Vec<u8> = text.split(|letter: char| !letter.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
        let [mask, rest @ ..] = numbers.as_slice() else { return Err(TestCaseError::fail(text)) };
        question.mask_v4 = *mask;
        if let [prefix] = rest {
            // A shorter prefix than there is room for in 10.0.0.0/8 is advice all the same.
            question.pod_cidrs = vec![IpNet::new("0.0.0.0".parse().unwrap(), *prefix).unwrap()];
        }
        let plan = plan(&question);
        let bad = ["nodes-do-not-fit", "pods-do-not-fit", "pods-tight", "mask-too-long", "mask-too-short"];
        prop_assert!(!codes(&plan).iter().any(|code| bad.contains(code)), "{text}: {plan:?}");
    }

    #[test]
    fn prefixes_overlap_when_they_share_an_address((a, _) in small(), (b, _) in small()) {
        let question = Question { services: vec![b], node_networks: vec![], ..question(1, 1, &[&a.to_string()]) };
        let shared = match (a, b) {
            (IpNet::V4(a), IpNet::V4(b)) => a.network() <= b.broadcast() && b.network() <= a.broadcast(),
            (IpNet::V6(a), IpNet::V6(b)) => a.network() <= b.broadcast() && b.network() <= a.broadcast(),
            _ => false,
        };
        prop_assert_eq!(codes(&plan(&question)).contains(&"overlap"), shared);
    }
}
