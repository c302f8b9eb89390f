use crate::support::{LONG, endpoint, net, node, reaches, v4, v6};
use netlab::netlink::{Route, Rule, sysctl};
use netlab::{LabDir, LabError, Namespace, Output, Process, Signal, eventually, unique_name, veth_pair};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

fn sh(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

#[test]
fn two_nodes_by_veth_reach_each_other_by_both_families() {
    let (a, b) = (node("a"), node("b"));
    veth_pair(&a, &endpoint(1), &b, &endpoint(2)).unwrap();
    assert!(reaches(&a, &b, v4(2), b"four", LONG));
    assert!(reaches(&b, &a, v6(1), b"six", LONG));
}

#[test]
fn a_namespace_is_isolated_and_has_loopback_only() {
    let ns = node("iso");
    let own = fs::metadata("/proc/self/ns/net").unwrap().ino();
    assert_ne!(ns.inode(), own);
    let links = ns.netlink(async |nl| nl.links().await).unwrap();
    assert_eq!(links.iter().map(|l| (l.name.as_str(), l.up)).collect::<Vec<_>>(), [("lo", true)]);
}

#[test]
fn a_panic_inside_continues_in_the_caller_and_the_namespace_goes_on() {
    let ns = node("panic");
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ns.run(|| panic!("inside"))));
    assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"inside"));
    assert_eq!(ns.run(|| 7), 7);
}

#[test]
fn mounts_are_private_and_sys_shows_the_namespace_and_its_control_groups() {
    let state = tempfile::tempdir().unwrap();
    fs::write(state.path().join("kept"), "1").unwrap();
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ns = Namespace::builder(unique_name("m"))
        .tmpfs("/run")
        .bind(state.path(), "/run/state")
        .build()
        .expect("tests of the laboratory need root");
    let inside = ns.run(|| {
        fs::write("/run/only-inside", "x").unwrap();
        fs::write("/run/state/written", "2").unwrap();
        let names = |dir: &str| -> BTreeSet<String> {
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
        };
        (names("/sys/class/net"), names("/run"), names("/sys/fs/cgroup"))
    });
    assert_eq!(inside.0, BTreeSet::from(["lo".to_owned()]));
    assert_eq!(inside.1, BTreeSet::from(["only-inside".to_owned(), "state".to_owned()]));
    let groups: BTreeSet<String> = fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(inside.2, groups);
    assert!(!fs::exists("/run/only-inside").unwrap());
    assert_eq!(fs::read_to_string(ns.root().join("run/only-inside")).unwrap(), "x");
    drop(ns);
    assert_eq!(fs::read_to_string(state.path().join("written")).unwrap(), "2");
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
}

#[test]
fn state_bound_from_outside_survives_a_reboot_of_the_node() {
    let disk = tempfile::tempdir().unwrap();
    for boot in ["first", "second"] {
        let ns = Namespace::builder(unique_name("r"))
            .tmpfs("/run")
            .bind(disk.path(), "/run/disk")
            .build()
            .unwrap();
        let text = ns.run(move || {
            assert!(!fs::exists("/run/volatile").unwrap());
            fs::write("/run/volatile", boot).unwrap();
            let old = fs::read_to_string("/run/disk/log").unwrap_or_default();
            fs::write("/run/disk/log", format!("{old}{boot};")).unwrap();
            fs::read_to_string("/run/disk/log").unwrap()
        });
        assert!(text.ends_with(&format!("{boot};")));
    }
    assert_eq!(fs::read_to_string(disk.path().join("log")).unwrap(), "first;second;");
}

#[test]
fn a_limited_tmpfs_is_full_at_its_size() {
    let ns = Namespace::builder(unique_name("full")).tmpfs_limited("/run", 64 << 10, 10).build().unwrap();
    let error = ns.run(|| fs::write("/run/big", vec![0; 128 << 10]).unwrap_err());
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
}

#[test]
fn a_command_runs_inside_with_its_input_and_a_hanging_one_is_killed_with_its_children() {
    let ns = node("exec");
    let out = ns.exec_with_input(sh("cat; readlink /proc/self/ns/net >&2"), b"hello".to_vec(), LONG).unwrap();
    assert!(out.status.success());
    assert_eq!(out.stdout, b"hello");
    assert_eq!(out.stderr_text().trim(), format!("net:[{}]", ns.inode()));
    let error = ns.exec(sh("echo early; sleep 600 & wait"), Duration::from_millis(300)).unwrap_err();
    let LabError::CommandTimeout { stdout, .. } = &error else { panic!("{error}") };
    assert_eq!(stdout, "early\n");
    // The child was signalled with its group; the kernel takes its time to end it.
    eventually(LONG, "the end of the child", || match ns.processes().unwrap() {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    })
    .unwrap();
}

#[test]
fn a_process_keeps_its_lines_and_takes_signals() {
    let ns = node("proc");
    let process = ns
        .spawn(sh("trap 'echo got; exit 3' TERM; echo up; while :; do sleep 0.01; done"), Output::Lines)
        .unwrap();
    assert_eq!(process.wait_for_line(LONG, "start", |l| l == "up").unwrap(), "up");
    process.signal(Signal::TERM).unwrap();
    assert_eq!(process.wait(LONG).unwrap().code(), Some(3));
    assert_eq!(process.wait_for_line(LONG, "trap", |l| l == "got").unwrap(), "got");
}

#[test]
fn a_daemon_that_left_its_group_and_its_parent_ends_with_the_namespace() {
    let ns = node("daemon");
    let out = ns.exec(sh("setsid sleep 600 >/dev/null 2>&1 & echo $!"), LONG).unwrap();
    let pid: i32 = out.stdout_text().trim().parse().unwrap();
    let command = || fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let running = || if command().contains("sleep") { Ok(()) } else { Err(command()) };
    eventually(LONG, "the daemon", running).unwrap();
    drop(ns);
    assert_eq!(command(), "");
}

#[test]
fn what_starts_while_a_laboratory_ends_is_refused_or_ended_too() {
    let root = tempfile::tempdir().unwrap();
    let lab = LabDir::create(root.path(), "ends").unwrap();
    let ns = Namespace::net_only(unique_name("ends")).lab(&lab).build().unwrap();
    let (started, seen) = std::sync::mpsc::channel();
    let starter = std::thread::spawn(move || {
        for _ in 0..2000 {
            match ns.spawn(sh("exec sleep 600"), Output::Null) {
                Ok(process) => started.send(process).unwrap(),
                Err(error) => return Some(error.to_string()),
            }
        }
        None
    });
    let mut processes: Vec<Process> = seen.iter().take(10).collect();
    lab.close().unwrap();
    let refused = starter.join().unwrap().expect("what starts after the end is refused");
    assert!(refused.contains("the laboratory has ended"), "{refused}");
    processes.extend(seen);
    for process in processes {
        process.wait(LONG).unwrap();
    }
}

#[test]
fn output_goes_to_a_file_when_asked() {
    let ns = node("log");
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let process = ns.spawn(sh("echo out; echo err >&2"), Output::File(log.clone())).unwrap();
    assert!(process.wait(LONG).unwrap().success());
    let text = fs::read_to_string(log).unwrap();
    assert!(text.contains("out") && text.contains("err"));
}

#[test]
fn a_pod_pinned_in_a_node_outlives_its_owner_and_can_be_joined() {
    let host = Namespace::builder(unique_name("host")).tmpfs("/run").build().unwrap();
    let pod = node("pod");
    let inode = pod.inode();
    pod.pin_at(&host, "/run/netns/pod").unwrap();
    assert!(!fs::exists("/run/netns/pod").unwrap(), "the pin is visible outside the node");
    drop(pod);
    let again = Namespace::join(&host, "/run/netns/pod").unwrap();
    assert_eq!(again.inode(), inode);
    assert_eq!(again.netlink(async |nl| nl.links().await).unwrap().len(), 1);
    drop(again);
    Namespace::unpin(&host, "/run/netns/pod").unwrap();
    assert!(!host.run(|| fs::exists("/run/netns/pod").unwrap()));
}

#[test]
fn a_pin_on_the_host_is_removed_with_the_namespace() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pin");
    let ns = node("pin");
    ns.pin_on_host(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), ns.inode());
    drop(ns);
    assert!(!path.exists());
}

#[test]
fn routes_rules_neighbours_and_addresses_read_back_as_written() {
    let (a, b) = (node("a"), node("b"));
    veth_pair(&a, &endpoint(1), &b, &endpoint(2)).unwrap();
    a.netlink(async |nl| {
        for (to, via) in [("10.9.0.0/16", v4(2)), ("fd99::/32", v6(2))] {
            let route = Route { mtu: Some(1380), ..Route::to(net(to)).via(via).device("eth0").table(77) };
            nl.route_add(&route).await?;
            let found = nl.routes(77).await?;
            assert!(
                found
                    .iter()
                    .any(|r| r.destination == route.destination && r.via == route.via && r.mtu == route.mtu),
                "{found:?}"
            );
            let v6 = via.is_ipv6();
            let rule = Rule { mark: Some((0x10, 0xf0)), ..Rule::new(v6, 100, 77) };
            nl.rule_add(&rule).await?;
            assert!(nl.rules().await?.contains(&rule));
            nl.rule_del(&rule).await?;
            assert!(!nl.rules().await?.contains(&rule));
            nl.route_del(&route).await?;
            assert_eq!(nl.routes(77).await?, []);
            let mac = netlab::MacAddr::unique();
            nl.neigh_add("eth0", via, mac).await?;
            assert!(nl.neighs("eth0").await?.iter().any(|n| n.address == via && n.mac == Some(mac)));
        }
        nl.addr_add("eth0", net("10.0.5.1/24")).await?;
        assert!(nl.addrs("eth0").await?.contains(&net("10.0.5.1/24")));
        nl.addr_del("eth0", net("10.0.5.1/24")).await?;
        assert!(!nl.addrs("eth0").await?.contains(&net("10.0.5.1/24")));
        let error = nl.link_up("eth9").await.unwrap_err();
        assert!(matches!(error, LabError::NoDevice { .. }), "{error}");
        let error = nl.link_up("far-too-long-a-name").await.unwrap_err();
        assert!(matches!(error, LabError::BadDeviceName { .. }), "{error}");
        Ok(())
    })
    .unwrap();
    a.sysctl("net.ipv4.ip_forward", "1").unwrap();
    assert_eq!(a.run(|| sysctl::get("net.ipv4.ip_forward")).unwrap(), "1");
    assert_eq!(b.run(|| sysctl::get("net.ipv4.ip_forward")).unwrap(), "0");
}
