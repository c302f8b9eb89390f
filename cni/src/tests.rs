use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::environment::Environment;
use crate::{fuzz_frame, fuzz_stdin, json as read, plugin};

/// Keys that the plugin reads, in the cases that it may meet.
const KEYS: &[&str] = &[
    "cniVersion",
    "name",
    "type",
    "runtimeConfig",
    "prevResult",
    "args",
    "cni",
    "dns",
    "ipam",
    "ipMasq",
    "mtu",
    "portMappings",
    "hostPort",
    "HostPort",
    "ContainerPort",
    "protocol",
    "HostIP",
    "bandwidth",
    "ingressRate",
    "IngressBurst",
    "ips",
    "mac",
    "io.kubernetes.cri.pod-annotations",
    "interfaces",
    "sandbox",
    "address",
    "interface",
    "routes",
    "cni.dev/valid-attachments",
    "cni.dev/attachments",
    "containerID",
    "ifname",
    "nameservers",
    "servers",
    "search",
    "options",
    "domain",
    "agentTimeoutSeconds",
];

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(|b| json!(b)),
        any::<i64>().prop_map(|n| json!(n)),
        any::<f64>().prop_map(|n| json!(n)),
        (0_u64..4).prop_map(|n| json!(n)),
        prop::sample::select(vec![
            "",
            "1.0.0",
            "1.1.0",
            "0.4.0",
            "eth0",
            "c1",
            "hawser",
            "loopback",
            "10.0.0.1",
            "10.0.0.1/32",
            "fd00::1/128",
            "02:00:00:00:00:01",
            "tcp",
            "true",
            "/proc/1/ns/net",
        ])
        .prop_map(|text| json!(text)),
        ".{0,8}".prop_map(|text| json!(text)),
    ]
}

fn members(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::vec((prop::sample::select(KEYS), value), 0..6)
        .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

fn value() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(5, 64, 6, |inner| {
        prop_oneof![
            members(inner.clone()).prop_map(Value::Object),
            prop::collection::vec(inner, 0..4).prop_map(Value::Array),
        ]
    })
}

/// A configuration that is usually of a good version and name, so that what lies behind is reached.
fn config() -> impl Strategy<Value = Map<String, Value>> {
    let version = prop::sample::select(vec!["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    (members(value()), version, any::<bool>()).prop_map(|(mut map, version, good)| {
        if good {
            map.insert("cniVersion".to_owned(), json!(version));
            map.insert("name".to_owned(), json!("hawser"));
        }
        map
    })
}

fn variable() -> impl Strategy<Value = Option<OsString>> {
    prop_oneof![
        Just(None),
        prop::sample::select(vec!["c1", "eth0", "/proc/1/ns/net", "IgnoreUnknown=1;IP=10.0.0.1", "1"])
            .prop_map(|text| Some(text.into())),
        prop::collection::vec(any::<u8>(), 0..24).prop_map(|bytes| Some(OsString::from_vec(bytes))),
    ]
}

fn environment() -> impl Strategy<Value = Environment> {
    let command = prop::sample::select(vec!["ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION", "", "add"]);
    (command, variable(), variable(), variable(), variable()).prop_map(
        |(command, id, netns, ifname, args)| Environment {
            command: Some(command.into()),
            container_id: id,
            netns,
            ifname,
            args,
            netns_override: None,
            called_loopback: false,
        },
    )
}

proptest! {
    #[test]
    fn no_bytes_panic_the_planner(data in prop::collection::vec(any::<u8>(), 0..512)) {
        fuzz_stdin(&data);
        fuzz_frame(&data);
    }

    #[test]
    fn no_configuration_panics_the_planner(choice in any::<u8>(), args in "[ -~]{0,24}", config in config()) {
        let mut data = vec![choice];
        data.extend(args.bytes());
        data.push(0);
        data.extend(Value::Object(config).to_string().bytes());
        fuzz_stdin(&data);
    }

    #[test]
    fn every_call_succeeds_or_prints_an_error_of_the_specification(
        environment in environment(), mut config in config(), junk in prop::option::weighted(0.1, ".{0,16}"),
    ) {
        let dir = tempfile::TempDir::new().unwrap();
        config.insert("agentSocket".to_owned(), json!(dir.path().join("nobody.sock")));
        config.insert("pendingDeletes".to_owned(), json!(dir.path().join("notes")));
        let stdin = junk.unwrap_or_else(|| Value::Object(config).to_string());
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let succeeded = plugin::call(&environment, stdin.as_bytes(), &mut stdout, &mut stderr);
        if !succeeded {
            let error: Value = serde_json::from_slice(&stdout).expect("an error is JSON");
            prop_assert!(error["code"].as_u64().is_some_and(|code| code > 0), "{}", error);
            prop_assert!(error["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{}", error);
            prop_assert!(error["cniVersion"].is_string(), "{}", error);
        } else if !stdout.is_empty() {
            serde_json::from_slice::<Value>(&stdout).expect("a result is JSON");
        }
    }

    #[test]
    fn a_mac_is_read_as_it_is_written(octets in any::<[u8; 6]>(), dashes in any::<bool>()) {
        let hex: Vec<String> = octets.iter().map(|octet| format!("{octet:02X}")).collect();
        let unicast = octets[0] & 1 == 0 && octets != [0; 6];
        let parsed = read::mac(&hex.join(if dashes { "-" } else { ":" }));
        prop_assert_eq!(parsed, unicast.then(|| hex.join(":").to_lowercase()));
    }
}
