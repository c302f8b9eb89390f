use proptest::prelude::*;

use super::*;

const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";
const PSK: &str = "188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52";

fn scope(name: &str) -> Option<u32> {
    (name == "eth0").then_some(7)
}

fn parse_text(text: &str) -> Result<Request, UapiError> {
    parse(text.as_bytes(), &scope)
}

fn set(text: &str) -> SetRequest {
    match parse_text(&format!("set=1\n{text}\n")).unwrap() {
        Request::Set(set) => set,
        Request::Get => panic!("a set request came back as get"),
    }
}

fn errno(text: &str) -> i32 {
    parse_text(text).unwrap_err().errno()
}

#[test]
fn every_key_of_the_protocol_is_understood() {
    let s = set(&format!(
        "private_key={KEY}\nlisten_port=51880\nfwmark=32\nreplace_peers=true\n\
         public_key={KEY}\nupdate_only=true\npreshared_key={PSK}\nprotocol_version=1\n\
         endpoint=[2001:db8::1]:51880\npersistent_keepalive_interval=25\nreplace_allowed_ips=true\n\
         allowed_ip=10.1.2.3/16\nallowed_ip=-fd00::/64\npublic_key={PSK}\nremove=true\n"
    ));
    assert_eq!(s.private_key.unwrap().unwrap().expose()[0], 0xb8);
    assert_eq!((s.listen_port, s.fwmark, s.replace_peers), (Some(51880), Some(32), true));
    let [a, b] = &s.peers[..] else { panic!("two peers") };
    assert!(a.update_only && !a.remove && b.remove);
    assert_eq!(a.public_key.to_string(), KEY);
    assert!(matches!(&a.preshared_key, Some(Some(_))));
    assert_eq!(a.endpoint, Some("[2001:db8::1]:51880".parse().unwrap()));
    assert_eq!(a.persistent_keepalive, Some(25));
    assert_eq!(
        a.prefixes,
        [
            PrefixOp::Clear,
            PrefixOp::Add("10.1.0.0/16".parse().unwrap()),
            PrefixOp::Remove("fd00::/64".parse().unwrap())
        ]
    );
}

#[test]
fn zeros_remove_a_key() {
    let zero = "0".repeat(64);
    let s = set(&format!("private_key={zero}\npublic_key={KEY}\npreshared_key={zero}\n"));
    assert!(matches!(s.private_key, Some(None)));
    assert!(matches!(s.peers[0].preshared_key, Some(None)));
}

#[test]
fn errors_have_the_numbers_of_wireguard_go() {
    let peer = format!("set=1\npublic_key={KEY}\n");
    for (text, expect) in [
        ("", -71),
        ("list=1\n", -71),
        ("set=1\nlisten_port\n", -71),
        ("set=1\nlisten_port=65536\n", -22),
        ("set=1\nlisten_port=-1\n", -22),
        ("set=1\nfwmark=4294967296\n", -22),
        ("set=1\nreplace_peers=false\n", -22),
        ("set=1\nendpoint=192.0.2.1:1\n", -22),
        ("set=1\nprivate_key=00\n", -22),
        ("set=1\npublic_key=zz\n", -22),
        ("get=1\nlisten_port=1\n", -22),
    ] {
        assert_eq!(errno(text), expect, "{text:?}");
    }
    for line in [
        "remove=yes",
        "update_only=1",
        "listen_port=1",
        "persistent_keepalive_interval=65536",
        "protocol_version=2",
        "replace_allowed_ips=0",
        "allowed_ip=10.0.0.0/33",
        "allowed_ip=10.0.0.0",
        "allowed_ip=--10.0.0.0/8",
        "endpoint=192.0.2.1",
        "endpoint=192.0.2.1:0",
        "endpoint=0.0.0.0:51880",
        "endpoint=[::]:51880",
        "endpoint=example.com:51880",
        "endpoint=[fe80::1%nope]:1",
    ] {
        assert_eq!(errno(&format!("{peer}{line}\n")), -22, "{line}");
    }
    assert_eq!(parse(b"set=1\nlisten_port=\xff\n", &scope).unwrap_err().errno(), -71);
}

#[test]
fn an_error_names_line_key_and_value_but_never_a_secret() {
    let e = parse_text("set=1\nlisten_port=1\nfwmark=x\n").unwrap_err().to_string();
    assert_eq!(e, "line 3: fwmark=\"x\": expected a number from 0 to 4294967295");
    let half = &KEY[..60];
    let e = format!("{:?}", parse_text(&format!("set=1\nprivate_key={half}\n")).unwrap_err());
    assert!(e.contains("<redacted>") && !e.contains(half), "{e}");
    let e = format!("{:?}", set(&format!("private_key={KEY}\n")));
    assert!(!e.contains(KEY), "{e}");
}

#[test]
fn endpoints_carry_a_scope_by_number_or_name_and_mapped_addresses_become_ipv4() {
    for (text, expect) in [
        ("192.0.2.1:5", Some("192.0.2.1:5")),
        ("[2001:db8::1]:5", Some("[2001:db8::1]:5")),
        ("[fe80::1%3]:5", Some("[fe80::1%3]:5")),
        ("[fe80::1%eth0]:5", Some("[fe80::1%7]:5")),
        ("[fe80::1%eth0]:+5", None),
        ("[::ffff:192.0.2.1]:5", Some("192.0.2.1:5")),
    ] {
        let got = parse_endpoint(text, &scope).map(|a| a.to_string());
        assert_eq!(got.as_deref(), expect, "{text}");
    }
}

#[test]
fn what_get_prints_can_be_read_back() {
    let view = DeviceView {
        private_key: PrivateKey::new([1; 32]),
        listen_port: 51880,
        fwmark: 0x20,
        peers: vec![PeerView {
            public_key: PublicKey::new([2; 32]),
            preshared_key: None,
            endpoint: Some("[fe80::1%3]:5".parse().unwrap()),
            last_handshake: Duration::new(1_700_000_000, 5),
            tx_bytes: 10,
            rx_bytes: 20,
            persistent_keepalive: 25,
            allowed_ips: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
        }],
    };
    let expect = format!(
        "private_key={}\nlisten_port=51880\nfwmark=32\npublic_key={}\npreshared_key={}\nprotocol_version=1\n\
         endpoint=[fe80::1%3]:5\nlast_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\n\
         tx_bytes=10\nrx_bytes=20\npersistent_keepalive_interval=25\nallowed_ip=10.0.0.0/8\n\
         allowed_ip=fd00::/8\nerrno=0\n\n",
        "01".repeat(32),
        "02".repeat(32),
        "0".repeat(64)
    );
    assert_eq!(*format_get(&view), expect);
}

/// Lines that are nearly right reach further into the parser than random bytes.
fn line() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        Just("private_key"),
        Just("listen_port"),
        Just("fwmark"),
        Just("replace_peers"),
        Just("public_key"),
        Just("remove"),
        Just("update_only"),
        Just("preshared_key"),
        Just("endpoint"),
        Just("allowed_ip"),
        Just("persistent_keepalive_interval"),
        Just("replace_allowed_ips"),
        Just("protocol_version"),
    ];
    let value = prop_oneof![
        Just("true".to_owned()),
        Just(KEY.to_owned()),
        any::<u32>().prop_map(|n| n.to_string()),
        "[-0-9a-f.:\\[\\]/%]{0,30}",
        ".{0,20}",
    ];
    (key, value).prop_map(|(k, v)| format!("{k}={v}\n"))
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes, &scope);
    }

    #[test]
    fn no_lines_panic(lines in proptest::collection::vec(line(), 0..12)) {
        let _ = parse_text(&format!("set=1\n{}\n", lines.concat()));
    }
}
