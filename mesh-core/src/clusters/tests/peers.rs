use expect_test::expect;

use super::*;

fn check(name: &str, spec: &str) -> String {
    let spec: ClusterPeerSpec = serde_json::from_str(spec).unwrap();
    let (peer, refusals) = ClusterPeer::parse(name, 7, &spec);
    let refusals: String = refusals.iter().map(|refusal| format!("{refusal}\n")).collect();
    let peer = peer.map_or("nothing".to_owned(), |peer| {
        let addresses: Vec<String> = peer.addresses.iter().map(ToString::to_string).collect();
        format!("{} {:?} {addresses:?} {:?}", peer.name, peer.pod_cidrs, peer.trust_bundle)
    });
    format!("{refusals}{peer}\n")
}

#[test]
fn a_peer_is_read() {
    let spec = r#"{"podCIDRs": ["10.2.0.0/16", "fd02::/48"], "addresses": ["Mesh.East.example:51893", "[2001:db8::1]:443", "192.0.2.7:1"],
        "trustBundle": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "later": 1}"#;
    expect![[r#"
        east [10.2.0.0/16, fd02::/48] ["mesh.east.example:51893", "[2001:db8::1]:443", "192.0.2.7:1"] Some(TrustBundle(59 bytes))
    "#]]
    .assert_eq(&check("east", spec));
}

#[test]
fn each_value_that_cannot_be_read_is_refused_by_itself() {
    let spec = r#"{"podCIDRs": ["10.2.0.1/16", "ten", "10.3.0.0/16", "0.0.0.0/0", "127.0.0.0/8", "fe80::/64", "ff00::/8", "::/16"],
        "addresses": ["2001:db8::1:51893", "east", "east:0", "-a:1", "192.0.2.256:1", "[east]:1", "ok:1"]}"#;
    expect![[r#"
        ClusterPeer east: spec.podCIDRs[0] "10.2.0.1/16" refused: bits beyond the prefix are set; write 10.2.0.0/16; correct it
        ClusterPeer east: spec.podCIDRs[1] "ten" refused: not a CIDR; correct it
        ClusterPeer east: spec.podCIDRs[3] "0.0.0.0/0" refused: wider than /8; correct it
        ClusterPeer east: spec.podCIDRs[4] "127.0.0.0/8" refused: not addresses that pods can have; correct it
        ClusterPeer east: spec.podCIDRs[5] "fe80::/64" refused: not addresses that pods can have; correct it
        ClusterPeer east: spec.podCIDRs[6] "ff00::/8" refused: not addresses that pods can have; correct it
        ClusterPeer east: spec.podCIDRs[7] "::/16" refused: not addresses that pods can have; correct it
        ClusterPeer east: spec.addresses[0] "2001:db8::1:51893" refused: wanted host:port, with an IPv6 address in brackets; correct it
        ClusterPeer east: spec.addresses[1] "east" refused: wanted host:port, with an IPv6 address in brackets; correct it
        ClusterPeer east: spec.addresses[2] "east:0" refused: the port is not 1 to 65535; correct it
        ClusterPeer east: spec.addresses[3] "-a:1" refused: the host is neither an address nor a DNS name; correct it
        ClusterPeer east: spec.addresses[4] "192.0.2.256:1" refused: the host is neither an address nor a DNS name; correct it
        ClusterPeer east: spec.addresses[5] "[east]:1" refused: the host is neither an address nor a DNS name; correct it
        ClusterPeer east: spec.trustBundle "" refused: no PEM certificate in it; correct it
        east [10.3.0.0/16] ["ok:1"] None
    "#]]
    .assert_eq(&check("east", spec));
}

#[test]
fn a_name_that_is_none_leaves_nothing() {
    expect![[r#"
        ClusterPeer a.b: metadata.name "a.b" refused: "a.b" is not a cluster name: wanted 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit; correct it
        nothing
    "#]]
    .assert_eq(&check("a.b", "{}"));
}

#[test]
fn what_is_beyond_a_bound_is_refused() {
    let cidrs: Vec<String> = (0..33).map(|i| format!("10.{i}.0.0/16")).collect();
    let spec =
        ClusterPeerSpec { pod_cidrs: cidrs, trust_bundle: "x".repeat(65 * 1024), ..Default::default() };
    let (peer, refusals) = ClusterPeer::parse("east", 0, &spec);
    assert_eq!(peer.unwrap().pod_cidrs.len(), 32);
    let texts: Vec<String> = refusals.iter().map(ToString::to_string).collect();
    assert!(texts[0].contains("spec.podCIDRs[32]") && texts[0].contains("at most 32 are read"), "{texts:?}");
    assert!(texts[1].contains("66560 bytes long"), "{texts:?}");
}
