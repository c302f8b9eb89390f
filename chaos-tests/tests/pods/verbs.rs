//! Each verb's promises: ADD again, CHECK, STATUS, GC, VERSION, and the form of results in every version.

use std::net::IpAddr;

use chaos_tests::pod::addresses;
use chaos_tests::runtime::Runtime;
use netlab::eventually;
use serde_json::{Value, json};

use crate::common::{LONG, Prepared, answers, await_traces, lab, refused, restart, traces, veths};

#[test]
fn a_second_add_is_refused_by_name_and_the_first_one_stays_whole() {
    let lab = lab("twice", 1);
    let before = traces(&lab, 1);
    let pod = Prepared::new(&lab, 1, "pod");
    let first = pod.add(&lab).unwrap();
    let with_one = traces(&lab, 1);
    for _ in 0..2 {
        let (error, _) = refused(|| pod.add(&lab));
        assert_eq!(error.code, 4, "{error}");
        assert!(error.msg.contains("CNI_IFNAME") && error.msg.contains("eth0"), "{error}");
        await_traces(&lab, 1, &with_one);
        pod.check(&lab, &first).unwrap();
        answers(&lab.node(1).namespace, &addresses(&first)).unwrap();
    }
    pod.del(&lab, Some(&first)).unwrap();
    await_traces(&lab, 1, &before);
    let second = pod.add(&lab).unwrap();
    pod.check(&lab, &second).unwrap();
    answers(&lab.node(1).namespace, &addresses(&second)).unwrap();
}

/// What Multus does with a secondary network of our type.
#[test]
fn a_second_interface_of_a_sandbox_is_refused_by_name_and_the_first_one_stays_whole() {
    let lab = lab("second", 1);
    let peer = lab.add_pod(1, "peer").unwrap();
    let mut pod = Prepared::new(&lab, 1, "pod");
    let first = pod.add(&lab).unwrap();
    let before = traces(&lab, 1);
    for _ in 0..2 {
        pod.sandbox.ifname = "net1".to_owned();
        let (error, _) = refused(|| pod.add(&lab));
        assert_eq!(error.code, 7, "{error}");
        assert!(error.msg.contains("eth0") && error.msg.contains("net1"), "{error}");
        assert!(error.details.contains("another plugin"), "{error}");
        // A runtime unmakes what was refused.
        pod.del(&lab, None).unwrap();
        await_traces(&lab, 1, &before);
        pod.sandbox.ifname = "eth0".to_owned();
        pod.check(&lab, &first).unwrap();
        // From the pod, too: its policy is in force and has not closed.
        answers(&lab.node(1).namespace, &addresses(&first)).unwrap();
        answers(&pod.namespace, &peer.ips).unwrap();
    }
}

/// As after a reboot, when the runtime makes new sandboxes and the agent still knows the former ones.
#[test]
fn a_pods_next_sandbox_has_its_host_ports_though_nobody_has_taken_down_the_former_one() {
    let lab = lab("successor", 1);
    let mut former = Prepared::new(&lab, 1, "pod");
    let mut next = Prepared::of_uid(&lab, 1, "pod", &former.uid);
    let mut other = Prepared::new(&lab, 1, "other");
    for pod in [&mut former, &mut next, &mut other] {
        pod.sandbox.runtime_config = json!({"portMappings": [
            {"hostPort": 8088, "containerPort": 8080, "protocol": "tcp"}]});
    }
    let first = former.add(&lab).unwrap();
    former.check(&lab, &first).unwrap();
    let second = next.add(&lab).unwrap();
    // CHECK says, too, where the port leads.
    next.check(&lab, &second).unwrap();
    let (error, _) = refused(|| other.add(&lab));
    assert_eq!(error.code, 11, "{error}");
    former.del(&lab, Some(&first)).unwrap();
    next.check(&lab, &second).unwrap();
    answers(&lab.node(1).namespace, &addresses(&second)).unwrap();
}

/// An interface that somebody else made under our name: refused, and no address is taken for it.
#[test]
fn an_add_onto_a_foreign_interface_takes_nothing() {
    let lab = lab("foreign", 1);
    let pod = Prepared::new(&lab, 1, "pod");
    let made = pod.namespace.netlink(async |nl| nl.bridge_add("eth0").await);
    made.unwrap();
    let before = traces(&lab, 1);
    let (error, _) = refused(|| pod.add(&lab));
    assert_eq!(error.code, 4, "{error}");
    let now = traces(&lab, 1);
    assert_eq!(now.difference(&before).collect::<Vec<_>>(), Vec::<&String>::new());
}

/// Runs a command in a pod's namespace.
fn inside(pod: &Prepared, words: &str) {
    let mut words = words.split(' ');
    let mut command = std::process::Command::new(words.next().unwrap());
    command.args(words);
    let output = pod.namespace.exec(command, LONG).unwrap();
    assert!(output.status.success(), "{}", output.stderr_text());
}

#[test]
fn check_names_what_is_missing() {
    let lab = lab("check", 1);
    let node = lab.node(1);
    type Break = fn(&Prepared, &[IpAddr], &str, &chaos_tests::Node);
    let cases: [(&str, Break, &str); 6] = [
        ("host-link", |_, _, veth, node| drop(node.sh(&format!("ip link del {veth}")).unwrap()), "link hw"),
        (
            "host-link-down",
            |_, _, veth, node| drop(node.sh(&format!("ip link set {veth} down")).unwrap()),
            "is down on the node",
        ),
        (
            "address",
            |pod, ips, _, _| inside(pod, &format!("ip addr del {}/32 dev eth0", ips[0])),
            "address 10.244.1.",
        ),
        (
            "address6",
            |pod, ips, _, _| inside(pod, &format!("ip addr del {}/128 dev eth0", ips[1])),
            "address fd00:10:244:1::",
        ),
        ("default-route", |pod, _, _, _| inside(pod, "ip route del default"), "default route by 10.244.1.1"),
        ("pod-link-down", |pod, _, _, _| inside(pod, "ip link set eth0 down"), "eth0 is down in the pod"),
    ];
    for (case, damage, named) in cases {
        let pod = Prepared::new(&lab, 1, case);
        let before = veths(&lab, 1);
        let result = pod.add(&lab).unwrap();
        pod.check(&lab, &result).unwrap();
        let now = veths(&lab, 1);
        let veth = now.difference(&before).next().unwrap();
        damage(&pod, &addresses(&result), veth, node);
        let (error, _) = refused(|| pod.check(&lab, &result));
        assert_eq!(error.code, 100, "{case}: {error}");
        assert!(error.msg.contains(named), "{case}: {error}");
        pod.del(&lab, Some(&result)).unwrap();
    }
    let stranger = Prepared::new(&lab, 1, "stranger");
    let result = json!({"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": stranger.sandbox.netns}],
        "ips": [{"address": "10.244.1.77/32", "interface": 0}]});
    let (error, _) = refused(|| stranger.check(&lab, &result));
    assert_eq!(error.code, 100, "{error}");
}

/// What plugins after ours change stands in the result that CHECK gets.
#[test]
fn check_goes_by_the_result_that_later_plugins_have_left() {
    let lab = lab("later", 1);
    let pod = Prepared::new(&lab, 1, "pod");
    let result = pod.add(&lab).unwrap();
    let fails = |result: &Value, named: &str| {
        let (error, _) = refused(|| pod.check(&lab, result));
        assert_eq!(error.code, 100, "{error}");
        assert!(error.msg.contains(named), "{error}");
    };
    let with = |key: &str, value: Value| {
        let mut changed = result.clone();
        changed[key] = value;
        changed
    };
    let foreign = json!({"address": "192.0.2.7/32", "interface": result["ips"][0]["interface"]});

    inside(&pod, "ip addr add 192.0.2.7/32 dev eth0");
    let all = json!([result["ips"][0], result["ips"][1], foreign]);
    pod.check(&lab, &with("ips", all)).unwrap();
    pod.check(&lab, &result).unwrap();
    // Ours have to be among them.
    fails(&with("ips", json!([foreign])), "prevResult names [192.0.2.7]");
    fails(&with("ips", json!([result["ips"][0], foreign])), "the attachment has fd00:10:244:1::");

    let routes = result["routes"].as_array().unwrap();
    let v6: Vec<Value> = routes.iter().filter(|route| route["dst"] == "::/0").cloned().collect();
    let elsewhere = json!([{"dst": "0.0.0.0/0", "gw": "192.0.2.1"}, v6[0]]);
    inside(&pod, "ip route del default");
    fails(&result, "default route by 10.244.1.1");
    pod.check(&lab, &with("routes", json!(v6))).unwrap();
    pod.check(&lab, &with("routes", elsewhere)).unwrap();
    inside(&pod, "ip -6 route del default");
    fails(&with("routes", json!(v6)), "default route by fd00:10:244:1::1");
    pod.check(&lab, &with("routes", json!([]))).unwrap();
}

/// The route of a pod is put back by the agent, which sees it go; CHECK says so as long as it is gone.
#[test]
fn a_deleted_route_of_a_pod_comes_back() {
    let lab = lab("route", 1);
    let pod = Prepared::new(&lab, 1, "pod");
    let result = pod.add(&lab).unwrap();
    let before = traces(&lab, 1);
    let ips = addresses(&result);
    // Which table a pod's route is in is the agent's business.
    let all = lab.node(1).sh("ip -4 route show table all").unwrap();
    let route = all.lines().find(|line| line.starts_with(&format!("{} dev hw", ips[0]))).unwrap().to_owned();
    lab.node(1).sh(&format!("ip route del {route}")).unwrap();
    await_traces(&lab, 1, &before);
    pod.check(&lab, &result).unwrap();
    answers(&lab.node(1).namespace, &ips).unwrap();
}

#[test]
fn status_tells_that_no_pod_can_be_connected_from_that_pods_are_cut_off() {
    let mut lab = lab("status", 2);
    let ask = |lab: &chaos_tests::Lab| {
        let host = &lab.node(1).namespace;
        // Our configuration offers 1.0.0; a runtime may have one of its own.
        Runtime::of(host).unwrap().version("1.1.0").status(host)
    };
    let says = |lab: &chaos_tests::Lab, code: u64, word: &str| {
        let look = || match ask(lab) {
            Err(error) => {
                let text = format!("{error:#}");
                if text.contains(&format!("CNI error {code}:")) && text.contains(word) {
                    Ok(())
                } else {
                    Err(text)
                }
            }
            Ok(()) => Err("fine".to_owned()),
        };
        eventually(LONG, &format!("STATUS says {code} and {word}"), look).unwrap();
    };
    ask(&lab).unwrap();
    lab.node_mut(1).kill_tunnel().unwrap();
    says(&lab, 51, "mesh-tunnel");
    lab.node_mut(1).start_tunnel().unwrap();
    eventually(LONG, "STATUS is fine again", || ask(&lab).map_err(|e| e.to_string())).unwrap();
    lab.node_mut(1).kill_agent().unwrap();
    says(&lab, 50, "agent is not running");
    lab.stop_api();
    lab.node_mut(1).start_agent().unwrap();
    says(&lab, 50, "list of Nodes");
    lab.restart_api().unwrap();
    eventually(LONG, "STATUS is fine again", || ask(&lab).map_err(|e| e.to_string())).unwrap();
}

#[test]
fn gc_removes_what_the_runtime_no_longer_knows_and_nothing_else() {
    let mut lab = lab("gc", 1);
    let pods: Vec<_> = (0..6).map(|number| Prepared::new(&lab, 1, &format!("pod-{number}"))).collect();
    let results: Vec<Value> = pods.iter().map(|pod| pod.add(&lab).unwrap()).collect();
    let gc = |lab: &chaos_tests::Lab, valid: &[&Prepared]| {
        let host = &lab.node(1).namespace;
        let valid: Vec<_> = valid.iter().map(|pod| &pod.sandbox).collect();
        Runtime::of(host).unwrap().version("1.1.0").gc(host, &valid).unwrap();
    };
    let all: Vec<&Prepared> = pods.iter().collect();
    gc(&lab, &all);
    assert_eq!(veths(&lab, 1).len(), 6, "all are known");
    // DELs that were lost: the runtime was wiped, the agent was not there meanwhile.
    lab.node_mut(1).kill_agent().unwrap();
    restart(&mut lab, 1);
    gc(&lab, &all[..2]);
    assert_eq!(veths(&lab, 1).len(), 2);
    for number in 0..2 {
        pods[number].check(&lab, &results[number]).unwrap();
        answers(&lab.node(1).namespace, &addresses(&results[number])).unwrap();
    }
    pods[5].del(&lab, Some(&results[5])).unwrap();
    gc(&lab, &[]);
    assert_eq!(veths(&lab, 1).len(), 0);
    let host = &lab.node(1).namespace;
    let versions = Runtime::of(host).unwrap().versions(host).unwrap();
    assert_eq!(versions[0]["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
}

#[test]
fn every_version_gets_its_own_form_of_the_same_connection() {
    let lab = lab("versions", 1);
    let host = &lab.node(1).namespace;
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Prepared::new(&lab, 1, &format!("pod-{}", version.replace('.', "-")));
        let runtime = Runtime::of(host).unwrap().version(version);
        let result = runtime.add(host, &pod.sandbox).unwrap();
        assert_eq!(result["cniVersion"], version);
        let interfaces = result["interfaces"].as_array().unwrap();
        let index = interfaces.iter().position(|i| i["sandbox"] == json!(pod.sandbox.netns)).unwrap();
        let link = pod.namespace.netlink(async |nl| nl.link("eth0").await).unwrap();
        assert_eq!(interfaces[index]["name"], "eth0");
        assert_eq!(interfaces[index]["mac"], json!(link.mac.unwrap().to_string()), "{version}");
        let mtu = if version == "1.1.0" { json!(link.mtu) } else { Value::Null };
        assert_eq!(interfaces[index]["mtu"], mtu, "{version}");
        let ips = result["ips"].as_array().unwrap();
        assert_eq!(ips.len(), 2);
        for (ip, (family, gateway, length)) in
            ips.iter().zip([("4", "10.244.1.1", "/32"), ("6", "fd00:10:244:1::1", "/128")])
        {
            assert_eq!(ip["gateway"], gateway);
            assert_eq!(ip["interface"], json!(index));
            assert!(ip["address"].as_str().unwrap().ends_with(length), "{ip}");
            let family = if version < "1.0.0" { json!(family) } else { Value::Null };
            assert_eq!(ip["version"], family, "{version}");
        }
        let routes = result["routes"].as_array().unwrap();
        for default in ["0.0.0.0/0", "::/0"] {
            assert!(routes.iter().any(|route| route["dst"] == default), "{version}: {routes:?}");
        }
        answers(host, &addresses(&result)).unwrap();
        if version != "0.3.1" {
            runtime.check(host, &pod.sandbox, &result).unwrap();
        }
        runtime.del(host, &pod.sandbox, Some(&result)).unwrap();
    }
}

#[test]
fn wishes_for_addresses_and_a_mac_are_granted_or_refused_by_name() {
    let lab = lab("wishes", 1);
    let mut pod = Prepared::new(&lab, 1, "pod");
    pod.sandbox.runtime_config =
        json!({"ips": ["10.244.1.99", "fd00:10:244:1::99/64"], "mac": "02:00:00:00:be:ef"});
    let result = pod.add(&lab).unwrap();
    let wanted: Vec<IpAddr> = vec!["10.244.1.99".parse().unwrap(), "fd00:10:244:1::99".parse().unwrap()];
    assert_eq!(addresses(&result), wanted);
    let link = pod.namespace.netlink(async |nl| nl.link("eth0").await).unwrap();
    assert_eq!(link.mac.unwrap().to_string(), "02:00:00:00:be:ef");
    answers(&lab.node(1).namespace, &wanted).unwrap();
    for (case, wish, named) in [
        ("taken", "10.244.1.99", "in use"),
        ("reserved", "10.244.1.1", "not one that a pod"),
        ("foreign", "10.244.2.7", "not one that a pod"),
    ] {
        let mut other = Prepared::new(&lab, 1, case);
        let before = traces(&lab, 1);
        other.sandbox.runtime_config = json!({"ips": [wish]});
        let (error, _) = refused(|| other.add(&lab));
        assert_eq!(error.code, 7, "{case}: {error}");
        assert!(error.msg.contains(wish) && error.msg.contains(named), "{case}: {error}");
        let now = traces(&lab, 1);
        assert_eq!(now.difference(&before).collect::<Vec<_>>(), Vec::<&String>::new(), "{case}");
    }
    // The pod comes back in a new sandbox without wishes: it keeps nothing of the first.
    pod.del(&lab, Some(&result)).unwrap();
    let again = Prepared::of_uid(&lab, 1, "pod", &pod.uid);
    let result = again.add(&lab).unwrap();
    assert_ne!(addresses(&result), wanted);
    let link = again.namespace.netlink(async |nl| nl.link("eth0").await).unwrap();
    assert_ne!(link.mac.unwrap().to_string(), "02:00:00:00:be:ef");
}
