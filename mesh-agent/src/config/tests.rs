use super::*;
use expect_test::{Expect, expect};

fn check(text: &str, want: Expect) {
    let got = match Config::parse(Path::new("c.yaml"), text) {
        Ok(config) => format!("{:?} {:?}", config.settings, config.engine),
        Err(error) => error.to_string(),
    };
    want.assert_eq(&got);
}

#[test]
fn a_full_file_is_read() {
    check(
        "clusterName: lab\npodCIDRs: [10.244.0.0/16, 'fd00:10:244::/56']\nmtu: 1400\nwireguard: userspace\n",
        expect![
            "Settings { pod_cidrs: [10.244.0.0/16, fd00:10:244::/56], joined: {}, disputed: [], non_masquerade: [], service_cidrs: [], mtu: Some(1400), keepalive: None, host_traffic: HostTraffic { on: false, require: false, exempt_tcp: {2379, 2380, 6443} } } Userspace"
        ],
    );
}

#[test]
fn what_is_wrong_is_named_with_its_remedy() {
    check(
        "{}",
        expect![
            "configuration c.yaml: field podCIDRs: \"[]\" must name the pod CIDRs of the cluster (the controller manager's --cluster-cidr): they are what is protected"
        ],
    );
    check(
        "podCIDRs: [10.244.0.1/16]",
        expect![
            "configuration c.yaml: field podCIDRs: \"10.244.0.1/16\" has host bits set; write 10.244.0.0/16"
        ],
    );
    check(
        "podCIDRs: [0.0.0.0/0]",
        expect![
            "configuration c.yaml: field podCIDRs: \"0.0.0.0/0\" covers every address; name the cluster's own prefix"
        ],
    );
    check(
        "podCIDRs: [10.0.0.0/8, 10.1.0.0/16]",
        expect![
            "configuration c.yaml: field podCIDRs: \"10.1.0.0/16\" overlaps 10.0.0.0/8; name each prefix once"
        ],
    );
    check(
        "podCIDRs: [10.0.0.0/8]\nnonMasqueradeCIDRs: [10.1.0.0/16]",
        expect![
            "configuration c.yaml: field nonMasqueradeCIDRs: \"10.1.0.0/16\" overlaps the pod CIDR 10.0.0.0/8, which is never plaintext; remove it"
        ],
    );
    check(
        "podCIDRs: [10.0.0.0/8]\nmtu: 99",
        expect!["configuration c.yaml: field mtu: \"99\" is outside 1280 to 65455"],
    );
    check(
        "podCIDRs: [10.0.0.0/8]\nwireguard: openvpn",
        expect!["configuration c.yaml: field wireguard: \"openvpn\" is none of auto, kernel, userspace"],
    );
}

#[test]
fn a_rotation_is_read_and_what_cannot_be_is_named() {
    let parse = |lines: &str| {
        Config::parse(Path::new("c.yaml"), &format!("podCIDRs: [10.0.0.0/8]\nrotation:\n{lines}"))
    };
    let usual = Config::parse(Path::new("c.yaml"), "podCIDRs: [10.0.0.0/8]\n").unwrap().rotation;
    assert_eq!(usual, keyring::rotation::Settings::DEFAULT);
    let given = parse(
        "  periodSeconds: 604800\n  quietSeconds: 20\n  deadlineSeconds: 300\n  proof: silence\n  goneSeconds: 0\n",
    );
    assert_eq!(
        format!("{:?}", given.unwrap().rotation),
        "Settings { period: 604800s, quiet: 20s, deadline: 300s, proof: Silence, gone: 0ns }"
    );
    for (line, wanted) in [
        (
            "periodSeconds: 60",
            "field rotation.periodSeconds: \"60\" is under 600; write 604800 for a week, 0 for never",
        ),
        ("quietSeconds: 0", "field rotation.quietSeconds: \"0\" must be at least 1"),
        (
            "deadlineSeconds: 15",
            "field rotation.deadlineSeconds: \"15\" must be at least 20 and more than quietSeconds (15)",
        ),
        ("proof: faith", "field rotation.proof: \"faith\" is none of answers, silence"),
        ("period: 1", "period"),
    ] {
        let error = parse(&format!("  {line}\n")).unwrap_err().to_string();
        assert!(error.contains(wanted), "{line}: {error}");
    }
}

#[test]
fn a_misspelt_field_is_refused() {
    let error = Config::parse(Path::new("c.yaml"), "podCidr: [10.0.0.0/8]\n").unwrap_err().to_string();
    assert!(error.contains("podCidr"), "{error}");
}

#[test]
fn host_traffic_is_off_unless_it_is_switched_on_and_the_ports_of_api_servers_are_always_exempt() {
    let parse = |more: &str| {
        Config::parse(Path::new("c.yaml"), &format!("podCIDRs: [10.0.0.0/8]\n{more}"))
            .map(|config| config.settings.host_traffic)
            .map_err(|error| error.to_string())
    };
    let usual = parse("").unwrap();
    assert_eq!((usual.on, usual.require, usual.exempt_tcp), (false, false, [2379, 2380, 6443].into()));
    let on = parse("hostTraffic:\n  mode: on\n  exemptTCPPorts: [6444]\napiServers: ['192.0.2.1:8443']\n")
        .unwrap();
    assert_eq!((on.on, on.require, on.exempt_tcp), (true, false, [6444, 8443].into()));
    let required = parse("hostTraffic: {mode: require}\n").unwrap();
    assert!(required.on && required.require);
    for (lines, wanted) in [
        ("  mode: true", "field hostTraffic.mode: \"true\" is none of off, on, require"),
        ("  exemptTCPPorts: [0]", "field hostTraffic.exemptTCPPorts: \"0\" is no port; write 1 to 65535"),
    ] {
        let error = parse(&format!("hostTraffic:\n{lines}\n")).unwrap_err();
        assert_eq!(error, format!("configuration c.yaml: {wanted}"));
    }
}
