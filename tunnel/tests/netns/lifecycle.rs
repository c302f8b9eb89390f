//! Processes, interfaces and sockets come and go.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::{Lab, Program, eventually};

const SOON: Duration = Duration::from_secs(10);

fn exists(lab: &Lab, what: &str) -> bool {
    lab.nodes[0].ns.proc(&format!("root/run/wireguard/{what}")).exists()
}

fn has_link(lab: &Lab, name: &str) -> bool {
    lab.nodes[0].ns.run("ip -o link").contains(&format!(": {name}:"))
}

#[test]
fn sigterm_removes_sockets_and_interfaces_and_exits_cleanly() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut lab = Lab::bare(&[Program::Ours]);
        lab.nodes[0].start_with("hawser0 hawser1");
        eventually("both are served", SOON, || exists(&lab, "hawser0.sock") && exists(&lab, "hawser1.sock"));
        let node = &mut lab.nodes[0];
        node.set("listen_port=0\n");
        node.process.as_ref().unwrap().signal(signal);
        let status = node.process.as_mut().unwrap().0.wait().unwrap();
        assert!(status.success(), "{status}");
        for f in ["hawser0.sock", "hawser0.stats", "hawser1.sock", "hawser1.stats"] {
            assert!(!exists(&lab, f), "{f} is left");
        }
        assert!(!has_link(&lab, "hawser0"));
    }
}

#[test]
fn the_interface_has_no_address_of_its_own_and_the_right_attributes() {
    let mut lab = Lab::bare(&[Program::Ours]);
    lab.nodes[0].start_with("hawser0 --mtu 1380");
    eventually("it is served", SOON, || exists(&lab, "hawser0.sock"));
    let ns = &lab.nodes[0].ns;
    ns.run("ip link set hawser0 up");
    let text = ns.run("ip -d addr show hawser0");
    assert!(
        text.contains("mtu 1380") && text.contains("qlen 1000") && text.contains("persist off"),
        "{text}"
    );
    assert!(!text.contains("inet"), "{text}");
}

#[test]
fn a_killed_process_leaves_a_stale_socket_that_the_next_one_replaces() {
    let mut lab = Lab::bare(&[Program::Ours]);
    lab.nodes[0].start();
    lab.nodes[0].kill();
    assert!(exists(&lab, "hawser0.sock"));
    lab.nodes[0].start();
    assert_eq!(lab.nodes[0].get(), "errno=0\n\n");
}

#[test]
fn a_live_socket_is_not_taken_and_the_error_names_it() {
    let mut lab = Lab::bare(&[Program::Ours]);
    let listener = lab.nodes[0]
        .ns
        .within(|| std::os::unix::net::UnixListener::bind("/run/wireguard/hawser0.sock").unwrap());
    lab.nodes[0].start_with("hawser0");
    eventually("it says so", SOON, || {
        lab.nodes[0].logged("/var/run/wireguard/hawser0.sock: another live process serves it")
    });
    drop(listener);
    eventually("it is taken over", SOON, || has_link(&lab, "hawser0") && exists(&lab, "hawser0.stats"));
}

#[test]
fn a_successor_waits_for_the_interface_and_takes_over_when_it_is_free() {
    let mut lab = Lab::bare(&[Program::Ours]);
    lab.nodes[0].start();
    lab.nodes[0].set("fwmark=1\n");
    let successor = lab.nodes[0].spawn("hawser0");
    eventually("it waits", SOON, || lab.nodes[0].logged("interface hawser0 is taken"));
    assert!(lab.nodes[0].get().contains("fwmark=1"), "the first one still serves");
    let mut first = lab.nodes[0].process.replace(successor).unwrap();
    first.signal(Signal::SIGTERM);
    first.0.wait().unwrap();
    eventually("the second one serves", SOON, || exists(&lab, "hawser0.sock") && has_link(&lab, "hawser0"));
    assert_eq!(lab.nodes[0].get(), "errno=0\n\n");
}

#[test]
fn an_interface_that_cannot_start_does_not_keep_the_other_from_working() {
    let mut lab = Lab::bare(&[Program::Ours]);
    lab.nodes[0].ns.run("ip link add hawser0 type bridge");
    lab.nodes[0].start_with("hawser0 hawser1");
    eventually("hawser1 is served", SOON, || exists(&lab, "hawser1.sock"));
    eventually("it says why", SOON, || lab.nodes[0].logged("interface hawser0 is taken"));
    lab.nodes[0].ns.run("ip link del hawser0");
    eventually("hawser0 follows", SOON, || exists(&lab, "hawser0.sock"));
}

#[test]
fn a_deleted_interface_or_socket_gives_a_fresh_device_without_keys_and_leaves_the_other_alone() {
    let mut lab = Lab::bare(&[Program::Ours]);
    lab.nodes[0].start_with("hawser0 hawser1");
    eventually("both are served", SOON, || exists(&lab, "hawser0.sock") && exists(&lab, "hawser1.sock"));
    let key = "11".repeat(32);
    for event in ["ip link del hawser0", "rm /run/wireguard/hawser0.sock"] {
        lab.nodes[0].set(&format!("private_key={key}\n"));
        let inode = lab.nodes[0].ns.run("stat -c %i /run/wireguard/hawser1.sock");
        lab.nodes[0].ns.run(event);
        eventually("the device is fresh", SOON, || {
            exists(&lab, "hawser0.sock")
                && lab.nodes[0].asked("get=1\n").is_ok_and(|state| !state.contains("private_key"))
        });
        assert!(has_link(&lab, "hawser0"));
        assert_eq!(lab.nodes[0].ns.run("stat -c %i /run/wireguard/hawser1.sock"), inode);
    }
    assert!(!lab.nodes[0].logged(&key), "no secret in the log");
}

#[test]
fn of_two_that_wait_for_each_others_device_one_has_both_in_the_end_and_is_seen_to() {
    let mut lab = Lab::bare(&[Program::Ours]);
    lab.nodes[0].ns.run("ip link add hawser1 type bridge");
    lab.nodes[0].start_with("hawser0 hawser1");
    eventually("the first has the one", SOON, || {
        exists(&lab, "hawser0.sock") && exists(&lab, "hawser1.next")
    });
    let second = lab.nodes[0].spawn("hawser0 hawser1");
    eventually("the second waits", SOON, || exists(&lab, "hawser0.next"));
    let first = lab.nodes[0].process.as_ref().unwrap();
    // So that it is the second that gets the other one.
    first.signal(Signal::SIGSTOP);
    lab.nodes[0].ns.run("ip link del hawser1");
    eventually("the second has the other", SOON, || exists(&lab, "hawser1.sock"));
    first.signal(Signal::SIGCONT);

    // As an agent hands them over, when a slot is silent.
    let serves = |device: &str| {
        let path = lab.nodes[0].ns.proc(&format!("root/run/wireguard/{device}.sock"));
        let client = std::os::unix::net::UnixStream::connect(path).ok()?;
        let peer = nix::sys::socket::sockopt::PeerCredentials;
        Some(nix::sys::socket::getsockopt(&client, peer).unwrap().pid().unsigned_abs())
    };
    let (first, second) = (Some(first.0.id()), Some(second.0.id()));
    for (device, serving) in
        [("hawser1", [first, first]), ("hawser0", [second, first]), ("hawser1", [second; 2])]
    {
        eventually("it is awaited", SOON, || exists(&lab, &format!("{device}.next")));
        lab.nodes[0].ns.run(&format!("rm /run/wireguard/{device}.sock"));
        eventually("it changes hands", SOON, || ["hawser0", "hawser1"].map(serves) == serving);
    }
    let marks = ["hawser0.former", "hawser1.former", "hawser0.next", "hawser1.next"];
    eventually("the first has handed both over", SOON, || {
        marks.map(|mark| exists(&lab, mark)) == [true, true, false, false]
    });
}
