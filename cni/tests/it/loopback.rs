//! `hawser-cni` as the loopback plugin.

use std::os::unix::fs::symlink;

use expect_test::expect;
use serde_json::json;

use crate::support::{BINARY, Netns, call, verb};

fn config(kind: &str, version: &str) -> serde_json::Value {
    json!({"cniVersion": version, "name": "cni-loopback", "type": kind})
}

#[test]
fn lo_comes_up_is_checked_and_found_down() {
    let netns = Netns::new();
    let check = || verb("CHECK", &netns.path, &config("loopback", "1.0.0"));
    assert_eq!(check().code(), 100, "down before ADD");
    let output = verb("ADD", &netns.path, &config("loopback", "0.3.1"));
    assert_eq!(output.exit, 0, "{output:?}");
    expect![[r#"
        {"cniVersion":"0.3.1","dns":{},"interfaces":[{"mac":"00:00:00:00:00:00","name":"lo","sandbox":"NETNS"}],"ips":[{"address":"127.0.0.1/8","interface":0,"version":"4"},{"address":"::1/128","interface":0,"version":"6"}]}
    "#]].assert_eq(&output.stdout.replace(&netns.path, "NETNS"));
    assert!(netns.run(&["ip", "link", "show", "lo"]).contains("LOOPBACK,UP"));
    assert_eq!(check().exit, 0);
    assert_eq!(verb("ADD", &netns.path, &config("loopback", "1.1.0")).exit, 0, "repeated");
    netns.run(&["ip", "link", "set", "lo", "down"]);
    assert_eq!(check().code(), 100, "down again");
}

#[test]
fn the_name_of_the_program_makes_it_the_loopback_plugin() {
    let (netns, dir) = (Netns::new(), tempfile::TempDir::new().unwrap());
    let path = dir.path().join("loopback");
    symlink(BINARY, &path).unwrap();
    let environment = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "lo"),
        ("CNI_NETNS", netns.path.as_str()),
    ];
    let output = call(path.to_str().unwrap(), &environment, config("other", "1.0.0").to_string().as_bytes());
    assert_eq!((output.exit, &output.json()["interfaces"][0]["name"]), (0, &json!("lo")), "{output:?}");
}

#[test]
fn del_succeeds_with_and_without_a_namespace() {
    for netns in ["", "/gone", "/proc/self/ns/net"] {
        assert_eq!(verb("DEL", netns, &config("loopback", "0.3.1")).exit, 0);
    }
}

#[test]
fn an_earlier_result_is_returned_as_it_is() {
    let netns = Netns::new();
    let mut stdin = config("loopback", "1.0.0");
    stdin["prevResult"] = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "x"}], "other": 1});
    let output = verb("ADD", &netns.path, &stdin);
    assert_eq!(output.json(), stdin["prevResult"]);
}

#[test]
fn the_runtimes_own_namespace_is_refused() {
    assert_eq!(verb("ADD", "/proc/self/ns/net", &config("loopback", "1.0.0")).code(), 8);
    assert_eq!(verb("ADD", "/proc/self/ns/mnt", &config("loopback", "1.0.0")).code(), 8);
    assert_eq!(verb("ADD", "/etc/passwd", &config("loopback", "1.0.0")).code(), 8);
    assert_eq!(verb("ADD", "/gone", &config("loopback", "1.0.0")).code(), 8);
    let dir = tempfile::TempDir::new().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert_eq!(verb("ADD", fifo.to_str().unwrap(), &config("loopback", "1.0.0")).code(), 8, "nothing waits");
}
