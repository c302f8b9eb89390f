//! Programs on links: tcx and clsact do the same.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use datapath::{AttachMode, Attachment, Datapath, Hook, LinkKind, LoadOptions, Remains};
use ipnet::IpNet;

use super::lab::{Node, PinDir, counted, open, options};
use super::pins::own_layout;

const RESTARTS: u32 = 5;

/// The ways onto a link that this kernel has; what it has not is said by name.
fn modes() -> Vec<AttachMode> {
    if has_tcx() {
        return vec![AttachMode::Tcx, AttachMode::Clsact];
    }
    note("this kernel has no tcx (Linux 6.6): programs are attached by clsact alone");
    vec![AttachMode::Clsact]
}

/// By the kernel's version, as an opinion beside the loader's.
fn has_tcx() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 6)
}

/// Says what is not tested, past the harness, which hides what tests that pass have printed.
fn note(text: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if SAID.lock().unwrap().insert(text.to_owned()) {
        let mut stderr = io::stderr();
        writeln!(stderr, "note: {text}").unwrap();
    }
}

#[test]
fn tcx_is_taken_where_the_kernel_has_it_and_clsact_where_not() {
    let (_node, pins) = (Node::new(), PinDir::new());
    let wanted = if has_tcx() { AttachMode::Tcx } else { AttachMode::Clsact };
    assert_eq!(open(&options(&pins)).mode(), wanted);
}

fn with(pins: &PinDir, mode: AttachMode) -> LoadOptions {
    LoadOptions { attach: Some(mode), ..options(pins) }
}

/// The neighbour's address may not cross an uplink.
fn guard_neighbour(datapath: &Datapath) {
    let guarded = BTreeSet::from(["10.9.0.2/32".parse::<IpNet>().unwrap()]);
    assert!(datapath.set_guarded(&guarded).unwrap());
}

#[test]
fn the_guard_stays_while_one_agent_follows_another() {
    for mode in modes() {
        let (node, pins) = (Node::new(), PinDir::new());
        node.can_hear();
        let mut datapath = open(&with(&pins, mode));
        guard_neighbour(&datapath);
        node.can_hear();
        datapath.attach(LinkKind::Uplink, node.wire).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let sender = node.send_until(&stop);
        for _ in 0..RESTARTS {
            drop(datapath);
            datapath = open(&with(&pins, mode));
            assert!(
                !datapath.attached(LinkKind::Uplink, node.wire).unwrap(),
                "{mode:?}: it is a former agent's"
            );
            datapath.attach(LinkKind::Uplink, node.wire).unwrap();
            assert!(datapath.attached(LinkKind::Uplink, node.wire).unwrap(), "{mode:?}");
        }
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().unwrap();
        println!("{mode:?}: {RESTARTS} restarts under {sent} datagrams");
        // ARP is none of the guard's business, so what came is what the neighbour sent.
        counted(&datapath, "drop-guard-in", sent);
        assert_eq!(node.arrived(), 0, "{mode:?}");
        assert!(datapath.detach(node.wire).unwrap());
        node.can_hear();
        assert_eq!(datapath.counters().unwrap().named()["drop-guard-in"], sent);
    }
}

#[test]
fn every_kind_of_link_gets_its_programs_and_loses_those_of_another_kind() {
    for mode in modes() {
        let (node, pins) = (Node::new(), PinDir::new());
        let datapath = open(&with(&pins, mode));
        let link = node.dummy("dummy");
        for kind in LinkKind::ALL {
            datapath.attach(kind, link).unwrap();
            // Once more changes nothing.
            datapath.attach(kind, link).unwrap();
            let mut wanted: Vec<Attachment> = kind
                .programs()
                .iter()
                .map(|(_, hook)| Attachment { ifindex: link, kind, hook: *hook, current: true })
                .collect();
            wanted.sort();
            assert_eq!(datapath.attachments().unwrap(), wanted, "{mode:?}");
            for other in LinkKind::ALL {
                assert_eq!(datapath.attached(other, link).unwrap(), other == kind, "{mode:?} {other}");
            }
            assert_eq!(datapath.devices().unwrap().into_iter().collect::<Vec<_>>(), [(link, kind)]);
        }
        assert!(datapath.detach(link).unwrap());
        assert!(!datapath.detach(link).unwrap());
        assert_eq!(datapath.attachments().unwrap(), []);
        assert!(datapath.devices().unwrap().is_empty());
    }
}

/// Makes a pair of links of which the first has this index.
fn link_with_index(name: &str, index: u32) {
    let text = format!("link add name {name} index {index} type veth peer name {name}-out");
    let done = Command::new("ip").args(text.split(' ')).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn another_device_with_the_index_of_one_that_is_gone_has_no_program() {
    const INDEX: u32 = 4711;
    for mode in modes() {
        let (node, pins) = (Node::new(), PinDir::new());
        let datapath = open(&with(&pins, mode));
        link_with_index("first", INDEX);
        datapath.attach(LinkKind::Uplink, INDEX).unwrap();
        node.remove("first");
        assert_eq!(datapath.attachments().unwrap(), [], "{mode:?}");
        link_with_index("second", INDEX);
        assert!(!datapath.attached(LinkKind::Uplink, INDEX).unwrap(), "{mode:?}");
        datapath.attach(LinkKind::Uplink, INDEX).unwrap();
        assert!(datapath.attached(LinkKind::Uplink, INDEX).unwrap(), "{mode:?}");
        assert_eq!(datapath.forget_dead_links().unwrap(), BTreeSet::new(), "{mode:?}");
        assert!(datapath.devices().unwrap().contains_key(&INDEX));
    }
}

#[test]
fn links_that_are_gone_are_forgotten() {
    for mode in modes() {
        let (node, pins) = (Node::new(), PinDir::new());
        let datapath = open(&with(&pins, mode));
        let (gone, stays) = (node.dummy("gone"), node.dummy("stays"));
        datapath.attach(LinkKind::Pod, gone).unwrap();
        datapath.attach(LinkKind::Pod, stays).unwrap();
        assert_eq!(datapath.forget_dead_links().unwrap(), BTreeSet::new(), "{mode:?}");
        node.remove("gone");
        assert_eq!(datapath.forget_dead_links().unwrap(), BTreeSet::from([gone]), "{mode:?}");
        assert_eq!(datapath.devices().unwrap().into_keys().collect::<Vec<_>>(), [stays]);
        let pinned = fs::read_dir(pins.path().join(own_layout()).join("links")).unwrap().count();
        assert_eq!(pinned, if mode == AttachMode::Tcx { 2 } else { 0 });
    }
}

#[test]
fn the_name_of_a_pin_does_not_speak_for_another_device() {
    if !has_tcx() {
        note("this kernel has no tcx (Linux 6.6): its links have no pins whose names could be wrong");
        return;
    }
    let (node, pins) = (Node::new(), PinDir::new());
    let datapath = open(&with(&pins, AttachMode::Tcx));
    let (one, other) = (node.dummy("one"), node.dummy("other"));
    datapath.attach(LinkKind::Pod, one).unwrap();
    let links = pins.path().join(own_layout()).join("links");
    fs::rename(links.join(format!("pod-{one}-ingress")), links.join(format!("pod-{other}-ingress"))).unwrap();
    assert!(!datapath.attached(LinkKind::Pod, one).unwrap());
    assert!(!datapath.attached(LinkKind::Pod, other).unwrap());
}

#[test]
fn a_link_that_is_not_there_is_named() {
    for mode in modes() {
        let (_node, pins) = (Node::new(), PinDir::new());
        let datapath = open(&with(&pins, mode));
        let refused = datapath.attach(LinkKind::Uplink, 99_999).unwrap_err().to_string();
        assert!(refused.contains("device 99999") && refused.contains("guard_in"), "{mode:?}: {refused}");
        assert!(!datapath.attached(LinkKind::Uplink, 99_999).unwrap());
        assert!(datapath.devices().unwrap().is_empty());
    }
}

#[test]
fn a_filter_of_somebody_else_stays_where_it_is() {
    let (node, pins) = (Node::new(), PinDir::new());
    let tc = |words: &str| {
        let done = Command::new("tc").args(words.split(' ')).output().unwrap();
        assert!(done.status.success(), "{words}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    tc("qdisc add dev wire clsact");
    tc("filter add dev wire ingress prio 7 protocol ip u32 match u32 0 0 classid 1:1");
    let datapath = open(&with(&pins, AttachMode::Clsact));
    guard_neighbour(&datapath);
    datapath.attach(LinkKind::Uplink, node.wire).unwrap();
    let shown = tc("filter show dev wire ingress");
    assert!(shown.contains("hawser:guard_in") && shown.contains("pref 7 u32"), "{shown}");
    // Ours is asked first.
    node.send(3).join().unwrap();
    counted(&datapath, "drop-guard-in", 3);
    datapath.detach(node.wire).unwrap();
    let shown = tc("filter show dev wire ingress");
    assert!(!shown.contains("hawser") && shown.contains("pref 7 u32"), "{shown}");
    node.can_hear();
}

#[test]
fn a_pod_without_an_endpoint_can_say_nothing() {
    for mode in modes() {
        let (node, pins) = (Node::new(), PinDir::new());
        let datapath = open(&with(&pins, mode));
        datapath.attach(LinkKind::Pod, node.wire).unwrap();
        node.send(2).join().unwrap();
        // At least the two: what the neighbour's kernel says by itself is dropped, too.
        let seen = netlab::eventually(Duration::from_secs(10), "drops", || {
            let drops = datapath.counters().unwrap().named()["drop-no-endpoint"];
            if drops >= 2 { Ok(()) } else { Err(format!("{drops}")) }
        });
        seen.unwrap();
        assert_eq!(node.arrived(), 0);
        assert!(datapath.attachments().unwrap().iter().any(|found| found.hook == Hook::Egress));
    }
}

#[test]
fn what_a_data_path_has_left_is_taken_away_without_loading_one_and_not_while_one_is_open() {
    for mode in modes() {
        let (node, pins) = (Node::new(), PinDir::new());
        let datapath = open(&with(&pins, mode));
        let links =
            [("one", LinkKind::Uplink), ("two", LinkKind::Pod)].map(|(name, kind)| (node.dummy(name), kind));
        for (link, kind) in links {
            datapath.attach(kind, link).unwrap();
        }
        let refused = Remains::open(pins.path()).unwrap_err();
        assert!(matches!(refused, datapath::Error::InUse { .. }), "{refused}");
        drop(datapath);
        fs::create_dir(pins.path().join("vother")).unwrap();
        let remains = Remains::open(pins.path()).unwrap();
        let (layouts, others) = remains.entries().unwrap();
        assert_eq!((layouts.len(), others), (1, vec![pins.path().join("vother")]), "{mode:?}");
        let filters = remains.filters().unwrap();
        assert_eq!(filters.len(), if mode == AttachMode::Clsact { 4 } else { 0 }, "{filters:?}");
        for filter in filters {
            remains.remove_filter(filter).unwrap();
            remains.remove_filter(filter).unwrap();
        }
        for layout in layouts {
            remains.remove_layout(&layout).unwrap();
            remains.remove_layout(&layout).unwrap();
        }
        assert!(remains.remove_root().is_err(), "somebody's directory is in it");
        fs::remove_dir(pins.path().join("vother")).unwrap();
        remains.remove_root().unwrap();
        assert_eq!(remains.filters().unwrap(), []);
        drop(remains);
        assert!(!pins.path().exists());
        assert_eq!(Remains::open(pins.path()).unwrap().root(), None);
        assert_eq!(open(&with(&pins, mode)).attachments().unwrap(), [], "{mode:?}");
    }
}
