use super::*;

fn attachment(container: &str, ip: &str) -> Attachment {
    Attachment {
        v: 1,
        id: AttachmentId { container_id: container.into(), ifname: "eth0".into() },
        network: "hawser".into(),
        pod: None,
        netns: "/run/netns/x".into(),
        ips: vec![ip.parse().unwrap()],
        mac: None,
        port_mappings: vec![],
        bandwidth: None,
    }
}

#[test]
fn what_was_written_is_loaded_and_what_was_freed_rests() {
    let dir = tempfile::tempdir().unwrap();
    let directory = Directory::open(dir.path()).unwrap();
    directory.write("hw1", &attachment("a", "10.0.0.2")).unwrap();
    directory.write("hw2", &attachment("b", "10.0.0.3")).unwrap();
    directory.free("hw2", Millis(1000)).unwrap();
    directory.free("hw2", Millis(2000)).unwrap();
    let loaded = directory.load().unwrap();
    assert_eq!(loaded.attachments.keys().collect::<Vec<_>>(), ["hw1"]);
    assert_eq!(loaded.resting, [("10.0.0.3".parse().unwrap(), Millis(1000))]);
    directory.forget_rested(Millis(1000 + QUARANTINE)).unwrap();
    assert!(directory.load().unwrap().resting.is_empty());
}

#[test]
fn a_half_written_file_is_reported_and_costs_only_itself() {
    let dir = tempfile::tempdir().unwrap();
    let directory = Directory::open(dir.path()).unwrap();
    directory.write("hw1", &attachment("a", "10.0.0.2")).unwrap();
    fs::write(dir.path().join("hw2.json"), "{\"v\":1,").unwrap();
    fs::write(dir.path().join(".hw3.tmp"), "{").unwrap();
    let loaded = directory.load().unwrap();
    assert_eq!(loaded.attachments.len(), 1);
    assert_eq!(loaded.unreadable.len(), 1);
    assert!(!dir.path().join(".hw3.tmp").exists());
}

#[test]
fn another_interface_of_the_same_container_is_found() {
    let attachments = [("hw1", attachment("a", "10.0.0.2")), ("hw2", attachment("b", "10.0.0.3"))];
    let attachments = attachments.into_iter().map(|(veth, a)| (veth.to_owned(), a)).collect();
    let loaded = Loaded { attachments, ..Loaded::default() };
    let mut table = Table::new(Ipam::new("n".parse().unwrap(), &[]), loaded, Millis(0));
    // One whose file was lost belongs to no container that is known.
    table.recover("hw3", vec!["10.0.0.4".parse().unwrap()]);
    for (container, ifname, found) in
        [("b", "net1", Some("hw2")), ("b", "eth0", None), ("c", "net1", None), ("c", "eth0", None)]
    {
        let id = AttachmentId { container_id: container.into(), ifname: ifname.into() };
        let wanted = found.map(|veth| &table.attachments[veth].id);
        assert_eq!(table.sibling(&id), wanted, "{container} {ifname}");
    }
}

#[test]
fn the_newest_attachment_comes_first_and_those_of_before_by_the_age_of_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let directory = Directory::open(dir.path()).unwrap();
    for (veth, seconds) in [("hw1", 1), ("hw2", 3), ("hw3", 2)] {
        directory.write(veth, &attachment(veth, "10.0.0.2")).unwrap();
        let file = File::options().write(true).open(dir.path().join(format!("{veth}.json"))).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds)).unwrap();
    }
    let loaded = directory.load().unwrap();
    let mut table = Table::new(Ipam::new("n".parse().unwrap(), &[]), loaded, Millis(0));
    let veths = |table: &Table| -> Vec<String> {
        table.newest_first().into_iter().map(|(veth, _)| veth.clone()).collect()
    };
    assert_eq!(veths(&table), ["hw2", "hw3", "hw1"]);
    table.insert("hw0", attachment("a", "10.0.0.3"));
    // Nobody knows how old it is.
    table.recover("hw4", vec![]);
    assert_eq!(veths(&table), ["hw0", "hw2", "hw3", "hw1", "hw4"]);
    assert!(table.remove("hw3").is_some());
    table.insert("hw3", attachment("b", "10.0.0.4"));
    assert_eq!(veths(&table), ["hw3", "hw0", "hw2", "hw1", "hw4"]);
}
