//! Environment and stdin in, exit status and stdout out.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use expect_test::{Expect, expect};

use crate::support::{BINARY, call};

/// `NAME=value` words of the environment, stdin, and what comes out. No agent is behind `/nobody`.
fn check(environment: &str, stdin: &str, wanted: &Expect) {
    let pairs: Vec<_> = environment.split_whitespace().map(|word| word.split_once('=').unwrap()).collect();
    let output = call(BINARY, &pairs, stdin.as_bytes());
    wanted.assert_eq(&format!("exit {}\n{}", output.exit, output.stdout));
}

const POD: &str = "CNI_CONTAINERID=c1 CNI_IFNAME=eth0 CNI_NETNS=/nowhere";

/// A configuration of `version` with further members.
fn conf(version: &str, more: &str) -> String {
    format!(r#"{{"cniVersion":"{version}","name":"n","type":"hawser-cni","agentSocket":"/nobody"{more}}}"#)
}

#[test]
fn version() {
    check(
        "CNI_COMMAND=VERSION",
        "",
        &expect![[r#"
        exit 0
        {"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}
    "#]],
    );
    check(
        "CNI_COMMAND=VERSION",
        r#"{"cniVersion":"0.4.0"}"#,
        &expect![[r#"
        exit 0
        {"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}
    "#]],
    );
    check(
        "CNI_COMMAND=VERSION CNI_IFNAME=dummy CNI_NETNS=dummy CNI_PATH=dummy",
        "junk",
        &expect![[r#"
        exit 0
        {"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}
    "#]],
    );
}

#[test]
fn environment_is_code_4() {
    let conf = conf("1.0.0", "");
    check(
        "",
        &conf,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.1.0","code":4,"details":"the container runtime sets it; run the plugin through a runtime, or see hawser-cni --help","msg":"CNI_COMMAND is not set: it is required by this verb"}
    "#]],
    );
    check(
        "CNI_COMMAND=add",
        &conf,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.1.0","code":4,"details":"the container runtime sets it; run the plugin through a runtime, or see hawser-cni --help","msg":"CNI_COMMAND is \"add\": it must be ADD, DEL, CHECK, STATUS, GC or VERSION"}
    "#]],
    );
    check(
        "CNI_COMMAND=ADD CNI_IFNAME=eth0 CNI_NETNS=/n",
        &conf,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":4,"details":"the container runtime sets it; run the plugin through a runtime, or see hawser-cni --help","msg":"CNI_CONTAINERID is not set: it is required by this verb"}
    "#]],
    );
    check(
        "CNI_COMMAND=ADD CNI_CONTAINERID=-x CNI_IFNAME=eth0 CNI_NETNS=/n",
        &conf,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":4,"details":"correct what the container runtime passes","msg":"CNI_CONTAINERID is \"-x\": it must start with a letter or digit and go on with letters, digits, '_', '.' and '-'"}
    "#]],
    );
    check(
        "CNI_COMMAND=DEL CNI_CONTAINERID=a/b CNI_IFNAME=eth0",
        &conf,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":4,"details":"correct what the container runtime passes","msg":"CNI_CONTAINERID is \"a/b\": it must start with a letter or digit and go on with letters, digits, '_', '.' and '-'"}
    "#]],
    );
    check(
        "CNI_COMMAND=ADD CNI_CONTAINERID=c CNI_NETNS=/n",
        &conf,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":4,"details":"the container runtime sets it; run the plugin through a runtime, or see hawser-cni --help","msg":"CNI_IFNAME is not set: it is required by this verb"}
    "#]],
    );
    check(
        "CNI_COMMAND=ADD CNI_CONTAINERID=c CNI_IFNAME=.. CNI_NETNS=/n",
        &conf,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":4,"details":"correct what the container runtime passes","msg":"CNI_IFNAME is \"..\": it must be an interface name of 1 to 15 bytes without '/', ':' and white space, not '.' or '..'"}
    "#]],
    );
    check(
        "CNI_COMMAND=ADD CNI_CONTAINERID=c CNI_IFNAME=sixteen-letters_ CNI_NETNS=/n",
        &conf,
        &expect![[r#"
            exit 1
            {"cniVersion":"1.0.0","code":4,"details":"correct what the container runtime passes","msg":"CNI_IFNAME is \"sixteen-letters_\": it must be an interface name of 1 to 15 bytes without '/', ':' and white space, not '.' or '..'"}
        "#]],
    );
    check(
        "CNI_COMMAND=ADD CNI_CONTAINERID=c CNI_IFNAME=a:b CNI_NETNS=/n",
        &conf,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":4,"details":"correct what the container runtime passes","msg":"CNI_IFNAME is \"a:b\": it must be an interface name of 1 to 15 bytes without '/', ':' and white space, not '.' or '..'"}
    "#]],
    );
    check(
        "CNI_COMMAND=ADD CNI_CONTAINERID=c CNI_IFNAME=eth0",
        &conf,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":4,"details":"the container runtime sets it; run the plugin through a runtime, or see hawser-cni --help","msg":"CNI_NETNS is not set: it is required by this verb"}
    "#]],
    );
    check(
        "CNI_COMMAND=ADD CNI_CONTAINERID=c CNI_IFNAME=eth0 CNI_NETNS=run/x",
        &conf,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":4,"details":"correct what the container runtime passes","msg":"CNI_NETNS is \"run/x\": it must be an absolute path"}
    "#]],
    );
}

#[test]
fn cni_args_are_code_4() {
    let args = |args: &str, wanted: &Expect| {
        check(&format!("CNI_COMMAND=ADD {POD} CNI_ARGS={args}"), &conf("1.0.0", ""), wanted);
    };
    args(
        "nonsense",
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":4,"details":"correct CNI_ARGS, for example IgnoreUnknown=1;IP=10.1.0.7","msg":"CNI_ARGS is \"nonsense\": it must be KEY=VALUE pairs separated by ';'"}
    "#]],
    );
    args(
        "COLOUR=blue",
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":4,"details":"remove the key from CNI_ARGS or add IgnoreUnknown=1","msg":"CNI_ARGS \"COLOUR\" is \"blue\": the key is unknown and IgnoreUnknown is not set"}
    "#]],
    );
    args(
        "IgnoreUnknown=maybe",
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":4,"details":"correct CNI_ARGS, for example IgnoreUnknown=1;IP=10.1.0.7","msg":"CNI_ARGS IgnoreUnknown is \"maybe\": it must be 1, true, 0 or false"}
    "#]],
    );
    args(
        "IP=10.0.0",
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":4,"details":"correct this key of CNI_ARGS","msg":"CNI_ARGS IP is \"10.0.0\": it must be IP addresses (an optional /length each) separated by ',', at most one per family"}
    "#]],
    );
    args(
        "IP=10.0.0.1,10.0.0.2",
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":4,"details":"correct this key of CNI_ARGS","msg":"CNI_ARGS IP is \"10.0.0.1,10.0.0.2\": it must be IP addresses (an optional /length each) separated by ',', at most one per family"}
    "#]],
    );
    args(
        "MAC=01:00:00:00:00:00",
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":4,"details":"correct this key of CNI_ARGS","msg":"CNI_ARGS MAC is \"01:00:00:00:00:00\": it must be a unicast MAC address such as 02:00:00:00:00:01"}
    "#]],
    );
    args(
        "K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=x",
        &expect![[r#"
            exit 1
            {"cniVersion":"1.0.0","code":4,"details":"correct this key of CNI_ARGS","msg":"CNI_ARGS K8S_POD_NAMESPACE is \"a/b\": it must start with a letter or digit and go on with those, '_', '.' and '-', at most 253 bytes"}
        "#]],
    );
    args(
        "K8S_POD_NAMESPACE=a;K8S_POD_NAME=x;K8S_POD_UID=../x",
        &expect![[r#"
            exit 1
            {"cniVersion":"1.0.0","code":4,"details":"correct this key of CNI_ARGS","msg":"CNI_ARGS K8S_POD_UID is \"../x\": it must start with a letter or digit and go on with those, '_', '.' and '-', at most 253 bytes"}
        "#]],
    );
    // These are accepted, and the namespace is what is wrong.
    args(
        "COLOUR=blue;IgnoreUnknown=TRUE",
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":8,"details":"the namespace is gone or the plugin runs in another mount namespace than the runtime","msg":"network namespace /nowhere cannot be opened: No such file or directory (os error 2)"}
    "#]],
    );
    args(
        "K8S_SOMETHING_NEW=1;K8S_POD_NAME=a/b;",
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":8,"details":"the namespace is gone or the plugin runs in another mount namespace than the runtime","msg":"network namespace /nowhere cannot be opened: No such file or directory (os error 2)"}
    "#]],
    );
}

#[test]
fn bytes_that_are_not_utf8_are_code_4() {
    let bytes = OsString::from_vec(b"/run/\xff".to_vec());
    let environment = [
        ("CNI_COMMAND", OsString::from("ADD")),
        ("CNI_CONTAINERID", "c".into()),
        ("CNI_IFNAME", "eth0".into()),
        ("CNI_NETNS", bytes),
    ];
    let output = call(BINARY, &environment, conf("1.0.0", "").as_bytes());
    assert_eq!(output.code(), 4, "{output:?}");
    assert!(output.stdout.contains("CNI_NETNS"), "{output:?}");
}

#[test]
fn stdin_that_is_no_configuration_is_code_6() {
    let environment = format!("CNI_COMMAND=ADD {POD}");
    check(
        &environment,
        "",
        &expect![[r#"
        exit 1
        {"cniVersion":"1.1.0","code":6,"details":"correct the network configuration or the runtime that passes it","msg":"the network configuration on stdin is not a JSON object: EOF while parsing a value at line 1 column 0"}
    "#]],
    );
    check(
        &environment,
        "{",
        &expect![[r#"
        exit 1
        {"cniVersion":"1.1.0","code":6,"details":"correct the network configuration or the runtime that passes it","msg":"the network configuration on stdin is not a JSON object: EOF while parsing an object at line 1 column 1"}
    "#]],
    );
    check(
        &environment,
        "[]",
        &expect![[r#"
        exit 1
        {"cniVersion":"1.1.0","code":6,"details":"correct the network configuration or the runtime that passes it","msg":"the network configuration on stdin is not a JSON object: invalid type: sequence, expected a map at line 1 column 0"}
    "#]],
    );
    let deep = "[".repeat(1_000_000);
    check(
        &environment,
        &deep,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.1.0","code":6,"details":"correct the network configuration or the runtime that passes it","msg":"the network configuration on stdin is not a JSON object: invalid type: sequence, expected a map at line 1 column 0"}
    "#]],
    );
    let long = " ".repeat((4 << 20) + 1);
    check(
        &environment,
        &long,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.1.0","code":6,"details":"shorten the network configuration; a runtime's request stays far below this","msg":"the network configuration on stdin is longer than 4194304 bytes"}
    "#]],
    );
}

#[test]
fn versions_that_do_not_fit_are_code_1() {
    let verb = |verb: &str, version: &str, wanted: &Expect| {
        check(&format!("CNI_COMMAND={verb} {POD}"), &conf(version, ""), wanted);
    };
    verb(
        "ADD",
        "0.2.0",
        &expect![[r#"
        exit 1
        {"cniVersion":"1.1.0","code":1,"details":"set cniVersion to one of 0.3.1, 0.4.0, 1.0.0, 1.1.0","msg":"cniVersion \"0.2.0\" is not supported"}
    "#]],
    );
    verb(
        "ADD",
        "1.2.0",
        &expect![[r#"
        exit 1
        {"cniVersion":"1.1.0","code":1,"details":"set cniVersion to one of 0.3.1, 0.4.0, 1.0.0, 1.1.0","msg":"cniVersion \"1.2.0\" is not supported"}
    "#]],
    );
    verb(
        "CHECK",
        "0.3.1",
        &expect![[r#"
        exit 1
        {"cniVersion":"0.3.1","code":1,"details":"raise cniVersion to 0.4.0 or list it in cniVersions","msg":"CHECK needs cniVersion 0.4.0 or newer, and the configuration says 0.3.1"}
    "#]],
    );
    verb(
        "STATUS",
        "1.0.0",
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":1,"details":"raise cniVersion to 1.1.0 or list it in cniVersions","msg":"STATUS needs cniVersion 1.1.0 or newer, and the configuration says 1.0.0"}
    "#]],
    );
    verb(
        "GC",
        "0.4.0",
        &expect![[r#"
        exit 1
        {"cniVersion":"0.4.0","code":1,"details":"raise cniVersion to 1.1.0 or list it in cniVersions","msg":"GC needs cniVersion 1.1.0 or newer, and the configuration says 0.4.0"}
    "#]],
    );
    check(
        &format!("CNI_COMMAND=ADD {POD}"),
        r#"{"name":"n"}"#,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.1.0","code":1,"details":"set cniVersion to one of 0.3.1, 0.4.0, 1.0.0, 1.1.0","msg":"cniVersion \"0.1.0\" is not supported"}
    "#]],
    );
}

#[test]
fn keys_that_cannot_be_honoured_are_code_2() {
    let add = |more: &str, wanted: &Expect| {
        check(&format!("CNI_COMMAND=ADD {POD}"), &conf("1.0.0", more), wanted);
    };
    add(
        r#","ipam":{"type":"host-local"}"#,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":2,"details":"remove it: Hawser's agent assigns addresses from the node's podCIDRs","msg":"ipam is {\"type\":\"host-local\"}, which is not supported"}
    "#]],
    );
    add(
        r#","ipMasq":"false""#,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":2,"details":"remove it: masquerading is set in the agent's configuration","msg":"ipMasq is \"false\", which is not supported"}
    "#]],
    );
    add(
        r#","mtu":9000"#,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":2,"details":"remove it: the agent derives the MTU from the tunnel","msg":"mtu is 9000, which is not supported"}
    "#]],
    );
    add(
        r#","runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.0/8"}]]}"#,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":2,"details":"remove this capability from the network configuration","msg":"runtimeConfig.ipRanges is [[{\"subnet\":\"10.0.0.0/8\"}]], which is not supported"}
    "#]],
    );
    add(
        r#","runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"protocol":"icmp"}]}"#,
        &expect![[r#"
            exit 1
            {"cniVersion":"1.0.0","code":2,"details":"use protocol tcp, udp or sctp","msg":"runtimeConfig.portMappings[0].protocol is \"icmp\", which is not supported"}
        "#]],
    );
    add(
        r#","runtimeConfig":{"portMappings":[{"HostPort":1,"ContainerPort":1,"Protocol":"tcp","HostIP":"::1"}]}"#,
        &expect![[r#"
            exit 1
            {"cniVersion":"1.0.0","code":2,"details":"use 127.0.0.1 or another address of the node","msg":"runtimeConfig.portMappings[0].hostIP is \"::1\", which is not supported"}
        "#]],
    );
}

#[test]
fn a_wrong_configuration_is_code_7() {
    let add = |more: &str, wanted: &Expect| {
        check(&format!("CNI_COMMAND=ADD {POD}"), &conf("1.0.0", more), wanted);
    };
    add(
        r#","agentSocket":"run/x""#,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":7,"details":"correct this key of the network configuration","msg":"agentSocket is \"run/x\": it must be an absolute path of at most 107 bytes"}
    "#]],
    );
    add(
        r#","agentTimeoutSeconds":0"#,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":7,"details":"correct this key of the network configuration","msg":"agentTimeoutSeconds is 0: it must be a whole number of seconds from 1 to 110"}
    "#]],
    );
    add(
        r#","ipMasq":"yes""#,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":7,"details":"correct this key of the network configuration","msg":"ipMasq is \"yes\": it must be true or false"}
    "#]],
    );
    add(
        r#","name":"a b""#,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":7,"details":"correct this key of the network configuration","msg":"name is \"a b\": it must be a name that starts with a letter or digit and has only those, '_', '.' and '-'"}
    "#]],
    );
    add(
        r#","name":null"#,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":7,"details":"give the network a name","msg":"name is missing from the network configuration"}
    "#]],
    );
    add(
        r#","runtimeConfig":7"#,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":7,"details":"correct this key of the network configuration","msg":"runtimeConfig is 7: it must be an object"}
    "#]],
    );
    add(
        r#","runtimeConfig":{"portMappings":[{"HostPort":65536}]}"#,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":7,"details":"correct this key of the network configuration","msg":"runtimeConfig.portMappings[0].hostPort is 65536: it must be a port number from 0 to 65535"}
    "#]],
    );
    add(
        r#","runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"hostIP":"224.0.0.1"}]}"#,
        &expect![[r#"
            exit 1
            {"cniVersion":"1.0.0","code":7,"details":"correct this key of the network configuration","msg":"runtimeConfig.portMappings[0].hostIP is \"224.0.0.1\": it must be an address that one node can have, or empty for all"}
        "#]],
    );
    add(
        r#","runtimeConfig":{"portMappings":[{"HostPort":80}]}"#,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":7,"details":"name hostPort, containerPort and protocol of each port mapping","msg":"runtimeConfig.portMappings[0].containerPort is missing from the network configuration"}
    "#]],
    );
    add(
        r#","runtimeConfig":{"bandwidth":{"ingressRate":-1}}"#,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":7,"details":"correct this key of the network configuration","msg":"runtimeConfig.bandwidth.ingressRate is -1: it must be a whole number of 0 or more"}
    "#]],
    );
    add(
        r#","runtimeConfig":{"bandwidth":{"IngressRate":999,"IngressBurst":8000}}"#,
        &expect![[r#"
            exit 1
            {"cniVersion":"1.0.0","code":7,"details":"correct this key of the network configuration","msg":"runtimeConfig.bandwidth.ingressRate is 999: it must be 0 for no limit, or 1000 (1k) to 1000000000000000 (1P) bit/s"}
        "#]],
    );
    add(
        r#","runtimeConfig":{"bandwidth":{"egressRate":1000000000000001}}"#,
        &expect![[r#"
            exit 1
            {"cniVersion":"1.0.0","code":7,"details":"correct this key of the network configuration","msg":"runtimeConfig.bandwidth.egressRate is 1000000000000001: it must be 0 for no limit, or 1000 (1k) to 1000000000000000 (1P) bit/s"}
        "#]],
    );
    add(
        r#","runtimeConfig":{"bandwidth":{"egressRate":1000,"egressBurst":34359738361}}"#,
        &expect![[r#"
            exit 1
            {"cniVersion":"1.0.0","code":7,"details":"correct this key of the network configuration","msg":"runtimeConfig.bandwidth.egressBurst is 34359738361: it must be at most 34359738360 bit (4 GiB)"}
        "#]],
    );
    add(
        r#","runtimeConfig":{"bandwidth":{"ingressBurst":8000}}"#,
        &expect![[r#"
            exit 1
            {"cniVersion":"1.0.0","code":7,"details":"correct this key of the network configuration","msg":"runtimeConfig.bandwidth.ingressBurst is 8000: it must be 0 or absent without a rate"}
        "#]],
    );
    add(
        r#","runtimeConfig":{"ips":["10.0.0.1","10.0.0.2/8"]}"#,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":7,"details":"correct this key of the network configuration","msg":"runtimeConfig.ips is [\"10.0.0.1\",\"10.0.0.2/8\"]: it must be at most one address per family"}
    "#]],
    );
    add(
        r#","runtimeConfig":{"mac":"zz"}"#,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":7,"details":"correct this key of the network configuration","msg":"runtimeConfig.mac is \"zz\": it must be a unicast MAC address such as 02:00:00:00:00:01"}
    "#]],
    );
    add(
        r#","prevResult":{"ips":[{"address":"10.0.0.1/8","interface":0}]}"#,
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":7,"details":"correct this key of the network configuration","msg":"prevResult.ips[0].interface is 0: it must be an index into interfaces"}
    "#]],
    );
    add(
        r#","prevResult":{"routes":[{"dst":"default"}]}"#,
        &expect![[r#"
            exit 1
            {"cniVersion":"1.0.0","code":7,"details":"correct this key of the network configuration","msg":"prevResult.routes[0].dst is \"default\": it must be a destination with prefix length, such as 0.0.0.0/0"}
        "#]],
    );
    add(
        r#","prevResult":{"routes":[{"dst":"0.0.0.0/0","gw":"10.1"}]}"#,
        &expect![[r#"
            exit 1
            {"cniVersion":"1.0.0","code":7,"details":"correct this key of the network configuration","msg":"prevResult.routes[0].gw is \"10.1\": it must be an IP address"}
        "#]],
    );
    check(
        &format!("CNI_COMMAND=CHECK {POD}"),
        &conf("1.0.0", ""),
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":7,"details":"CHECK needs the result of this attachment's ADD; the runtime passes it","msg":"prevResult is missing from the network configuration"}
    "#]],
    );
    check(
        &format!("CNI_COMMAND=CHECK {POD}"),
        &conf("1.0.0", r#","prevResult":{"interfaces":[{"name":"net1"}]}"#),
        &expect![[r#"
            exit 1
            {"cniVersion":"1.0.0","code":7,"details":"pass the final result of this attachment's ADD as prevResult","msg":"prevResult has no interface eth0 with a sandbox, so it is not the result of our ADD"}
        "#]],
    );
    check(
        "CNI_COMMAND=GC",
        &conf("1.1.0", ""),
        &expect![[r#"
        exit 1
        {"cniVersion":"1.1.0","code":7,"details":"pass the list of attachments to keep; an empty list removes all of this network","msg":"cni.dev/valid-attachments is missing from the network configuration"}
    "#]],
    );
    check(
        "CNI_COMMAND=GC",
        &conf("1.1.0", r#","cni.dev/valid-attachments":[{"containerID":"c"}]"#),
        &expect![[r#"
            exit 1
            {"cniVersion":"1.1.0","code":7,"details":"name containerID and ifname of each attachment","msg":"cni.dev/valid-attachments[0].ifname is missing from the network configuration"}
        "#]],
    );
}

#[test]
fn a_path_that_is_no_namespace_is_code_8() {
    let add = |netns: &str, wanted: &Expect| {
        let environment = format!("CNI_COMMAND=ADD CNI_CONTAINERID=c CNI_IFNAME=eth0 CNI_NETNS={netns}");
        check(&environment, &conf("1.0.0", ""), wanted);
    };
    add(
        "/nowhere",
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":8,"details":"the namespace is gone or the plugin runs in another mount namespace than the runtime","msg":"network namespace /nowhere cannot be opened: No such file or directory (os error 2)"}
    "#]],
    );
    add(
        "/etc/passwd",
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":8,"details":"CNI_NETNS must name a network namespace, such as /proc/<pid>/ns/net","msg":"/etc/passwd is not a network namespace"}
    "#]],
    );
    add(
        "/proc/self/ns/mnt",
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":8,"details":"CNI_NETNS must name a network namespace, such as /proc/<pid>/ns/net","msg":"/proc/self/ns/mnt is not a network namespace"}
    "#]],
    );
    add(
        "/proc/self/ns/net",
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":8,"details":"pass the container's namespace; CNI_NETNS_OVERRIDE=1 permits this one","msg":"/proc/self/ns/net is the network namespace that the plugin itself runs in"}
    "#]],
    );
}

#[test]
fn an_absent_agent_is_code_11_for_add_and_50_for_status() {
    let environment =
        "CNI_COMMAND=ADD CNI_CONTAINERID=c CNI_IFNAME=eth0 CNI_NETNS=/proc/self/ns/net CNI_NETNS_OVERRIDE=1";
    check(
        environment,
        &conf("1.0.0", ""),
        &expect![[r#"
        exit 1
        {"cniVersion":"1.0.0","code":11,"details":"the agent is not running on this node; check its pod in namespace hawser-system and its log","msg":"agent at /nobody: cannot connect: No such file or directory (os error 2)"}
    "#]],
    );
    check(
        "CNI_COMMAND=STATUS",
        &conf("1.1.0", ""),
        &expect![[r#"
        exit 1
        {"cniVersion":"1.1.0","code":50,"details":"the agent is not running on this node; check its pod in namespace hawser-system and its log","msg":"agent at /nobody: cannot connect: No such file or directory (os error 2)"}
    "#]],
    );
    // Null is Go's empty list.
    for list in ["[]", "null"] {
        check(
            "CNI_COMMAND=GC",
            &conf("1.1.0", &format!(r#","cni.dev/valid-attachments":{list}"#)),
            &expect![[r#"
            exit 1
            {"cniVersion":"1.1.0","code":11,"details":"the agent is not running on this node; check its pod in namespace hawser-system and its log","msg":"agent at /nobody: cannot connect: No such file or directory (os error 2)"}
        "#]],
        );
    }
}
